"""What the commands that score explainers print with `--json`: evaluate, recommend and tune."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

Number = int | float


class Mean(TypedDict):
    """A mean score with the ends of its 95 % interval, null where there is none."""

    metric: str
    mean: float
    low: float | None
    high: float | None
    count: int


class Score(Mean):
    """The mean score of an explainer on the images of an evaluation."""

    explainer: str
    control: bool
    failed: int
    best: bool
    p: float | None


class Difference(TypedDict):
    """The mean score of `first` minus that of `second` on the same images; `p` is corrected for the `comparisons`."""

    metric: str
    first: str
    second: str
    mean: float
    count: int
    p: float
    comparisons: int


class Leaderboard(TypedDict):
    """The scores of one model; `p` of a score is that of its difference from the best method's."""

    model: str
    accuracy: float | None
    labelled: int
    rows: list[Score]
    differences: list[Difference]
    notes: list[str]


class Change(TypedDict):
    """The mean score on one checkpoint minus that on another, on the same images, with its 95 % interval."""

    explainer: str
    metric: str
    mean: float
    low: float
    high: float
    count: int
    p: float
    comparisons: int
    better: bool | None


class Checkpoints(TypedDict):
    """The changes from the `first` model to the `second`, of one architecture; `p` is corrected."""

    first: str
    second: str
    changes: list[Change]
    notes: list[str]


class Evaluated(TypedDict):
    """The result of an evaluation; `failed` gives the reason per image."""

    totals: dict[str, Number]
    boards: list[Leaderboard]
    checkpoints: list[Checkpoints]
    failed: dict[str, str]


class Part(TypedDict):
    """The cost of one explainer or metric on one image."""

    model: str
    what: str
    forward_passes: Number
    backward_passes: Number
    seconds: Number


class EvaluationCost(TypedDict):
    """The estimated cost of an evaluation; `not_counted` gives the reasons."""

    images: int
    forward_passes: Number
    backward_passes: Number
    seconds: Number
    for_one_image: list[Part]
    not_counted: dict[str, str]


class Measured(Mean):
    """A published mean score of an explainer; `best` if no other is better."""

    higher_is_better: bool
    best: bool


class Candidate(TypedDict):
    """An explainer for a model: `verdict` is works, warns, refused, failed or untried."""

    name: str
    needs: list[str]
    verdict: str
    reason: str
    cost: str
    passes: Number | None
    at_most: bool
    seconds: Number | None
    adjustable: bool
    affordable: int | None
    fits: bool | None
    measured: list[Measured]


class Recommended(TypedDict):
    """What is recommended for one model, the most recommended explainer first; `time` is in seconds."""

    model: str
    device: str
    forward_passes_per_second: Number
    time: Number | None
    explainers: list[Candidate]
    measured_with: dict[str, Any]
    commands: list[str]


class Tried(TypedDict):
    """A setting; `objective` is null for the given `reason`. A backward pass counts as two in `passes`."""

    parameters: dict[str, Any]
    objective: Number | None
    scores: dict[str, Number]
    passes: Number | None
    reason: str


class Gain(TypedDict):
    """The gain over the defaults on the test images, with its 95 % interval."""

    mean: Number
    low: Number
    high: Number
    images: int


class Tuned(TypedDict):
    """The result of a search: every setting, the defaults first; `metrics` are 1 if higher is better, or -1."""

    explainer: str
    model: str
    metrics: dict[str, int]
    searched: list[str]
    unsearched: list[str]
    tried: list[Tried]
    best: Tried
    images: int
    gain: Gain | None
    failed: dict[str, str]
    better: bool
    verdict: str
    command: str


class TuningCost(TypedDict):
    """The cost of a search, from the defaults on one image; `images` are the numbers on both halves."""

    settings: int
    images: list[int]
    forward_passes: int
    backward_passes: int
    seconds: Number
    unknown: dict[str, str]
