"""What each command prints with `--json`, as types; keys may be added at any time: readers ignore unknown ones."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from docs.scores import Evaluated, EvaluationCost, Number, Recommended, Tuned, TuningCost


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
