"""What each command prints with `--json`, as types; keys may be added at any time: readers ignore unknown ones."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

Number = int | float


class PixelSet(TypedDict):
    """A set of pixels, without the mask."""

    role: str
    area: float
    holds: bool | None
    score: float | None
    whole: float | None
    runner_up: float | None
    baseline: str | None
    details: dict[str, Any]


class Origin(TypedDict):
    """The plugin that made a result."""

    plugin: str
    distribution: str
    version: str


class Explanation(TypedDict):
    """An explanation, without its values."""

    format: int
    target: dict[str, Any]
    against: dict[str, Any] | None
    predicted: dict[str, Any] | None
    geometry: dict[str, Any] | None
    sets: list[PixelSet]
    model: str
    outputs: str
    weights_sha256: str
    preprocessing: dict[str, Any]
    explainer: str
    variant: str
    plugin: Origin
    parameters: dict[str, Any]
    seed: int
    device: str
    versions: dict[str, str]
    forward_passes: Number
    backward_passes: Number
    seconds: Number
    warnings: list[str]
    layer: str | None
    details: dict[str, Any]
    image: NotRequired[dict[str, Any]]


class Check(TypedDict):
    """Whether a map can be trusted; `passed` is null if a part could not be measured, for one of the `reasons`."""

    passed: bool | None
    verdict: str
    insertion: float | None
    random: list[float]
    randomised: float | None
    seeds: float | None
    reasons: dict[str, str]


class Explained(Explanation):
    """An explanation with the files that were written."""

    source: str
    png: str
    sets_png: NotRequired[str]
    check: NotRequired[Check]
    html: NotRequired[str]


class Failed(TypedDict):
    """An image or an explanation that failed."""

    source: str
    explainer: str
    error: str


class Compared(TypedDict):
    """The figure of a comparison, and its explanations: one list per model."""

    png: str
    html: NotRequired[str]
    explanations: list[list[Explanation]]


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


class Ranked(TypedDict):
    """A ranking of features, with the files that were written."""

    files: list[str]
    format: int
    kind: str
    method: str
    feature: str
    names: list[str]
    grid: list[int] | None
    metadata: dict[str, Any]
    ranking: list[dict[str, Any]]
    runs: list[Any]
    history: list[Any] | None


class NotRanked(TypedDict):
    """A ranking that failed."""

    model: str
    explainer: str
    error: str


class Trained(TypedDict):
    """The result of a training; `history` has the columns of log.csv."""

    card: str
    best: dict[str, Any]
    history: list[dict[str, Any]]
    early: bool
    baseline: NotRequired[str]
    compared: NotRequired[dict[str, tuple[Number | None, Number | None]]]


class TrainingCost(TypedDict):
    """The estimated cost of a training."""

    data: str
    classes: list[str]
    train: int
    held_out: int
    steps: int
    rows_per_image: Number
    cost: str
    trainable_weights: int
    seconds_per_step: Number
    minutes: Number
    notes: list[str]


class Trial(TypedDict):
    """One value of a sweep."""

    value: str
    card: str
    loss: float
    accuracy: float
    scores: dict[str, float | None]
    reasons: dict[str, str]


class Swept(TypedDict):
    """The result of a sweep."""

    trials: list[Trial]


class Environment(TypedDict):
    """Versions and devices, for bug reports."""

    xaihub: str
    python: str
    platform: str
    devices: list[str]
    cpus: int
    threads: int
    libraries: dict[str, str]
    plugins: list[dict[str, Any]]


class Listed(TypedDict):
    """A registered object or a plugin."""

    name: str
    summary: NotRequired[str]
    plugin: NotRequired[str]


class Card(TypedDict):
    """The description of one object; further keys depend on its kind."""

    kind: str
    name: str
    summary: str
    plugin: str
    parameters: NotRequired[list[dict[str, Any]]]


class PluginState(TypedDict):
    """A plugin, known from metadata."""

    name: str
    distribution: str
    version: str
    builtin: bool
    state: str
    seconds: Number | None
    problems: list[str]


class LoadedPlugin(TypedDict):
    """A plugin and what it registers, by kind."""

    name: str
    distribution: str
    version: str
    registered: dict[str, list[str]]
    seconds: Number | None
    heavy: list[str]
    problems: list[str]


class KnownPlugin(TypedDict):
    """An entry of the list of known plugins."""

    name: str
    summary: str
    adds: list[str]
    licence: str
    source: str
    install: str


class Cached(TypedDict):
    """A file that is kept between commands; `used` is local time."""

    kind: str
    about: str
    bytes: int
    used: str


class Checked(TypedDict):
    """The result of one check."""

    subject: str
    kind: str
    check: str
    outcome: str
    advice: str
    seconds: Number
    plugin: str


# By command and form of the command.
OUTPUTS: dict[str, dict[str, Any]] = {
    "explain": {"explain": list[Explained | Failed]},
    "compare": {"compare": Compared},
    "evaluate": {"evaluate": Evaluated, "evaluate --dry-run": EvaluationCost},
    "rank": {"rank": list[Ranked | NotRanked]},
    "recommend": {"recommend": list[Recommended]},
    "train": {"train": Trained, "train --dry-run": TrainingCost},
    "sweep": {"sweep": Swept},
    "tune": {"tune": Tuned, "tune --dry-run": TuningCost},
    "info": {"info": Environment},
    "list": {"list": dict[str, list[Listed]], "list KIND": list[Listed], "list models --timm": list[str]},
    "show": {"show": Card},
    "cache list": {"cache list": list[Cached]},
    "plugins list": {"plugins list": list[PluginState], "plugins list --load": list[LoadedPlugin]},
    "plugins info": {"plugins info": list[LoadedPlugin]},
    "plugins install": {"plugins install": list[LoadedPlugin]},
    "plugins search": {"plugins search": list[KnownPlugin]},
    "plugins check": {"plugins check": list[Checked]},
}
