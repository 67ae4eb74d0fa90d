"""Model cards: reading and validating YAML files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from xaihub.errors import ModelError, ParameterError, did_you_mean
from xaihub.models.outputs import Outputs
from xaihub.records import YamlFile
from xaihub.specs import ModelCard, Paper, Weights

# A card is data, possibly from a stranger: these bound what it can make an architecture allocate.
LARGEST_SIDE = 2048  # pixels to which an image is scaled before it is cropped for the model
LARGEST_CLASSES = 1_000_000
LARGEST_OPTION = 2**16
_MOST_CHANNELS = 256
_Short = Annotated[str, msgspec.Meta(max_length=1000)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Level = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
_Number = Annotated[int, msgspec.Meta(ge=1)]
_Spread = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
_PER_CHANNEL = ("mean", "std", "bands")  # of which there may be one


class _Input(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    size: int | tuple[int, int] | None = None  # checked below: msgspec 0.22 misreads such a union with limits
    mean: Annotated[tuple[_Level, ...], msgspec.Meta(max_length=_MOST_CHANNELS)] | None = None
    std: Annotated[tuple[_Spread, ...], msgspec.Meta(max_length=_MOST_CHANNELS)] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None = None
    crop_pct: Annotated[float, msgspec.Meta(ge=0.1, le=2)] | None = None
    crop_mode: Literal["center", "squash", "border"] | None = None
    range: tuple[_Level, _Level] | None = None
    bands: Annotated[tuple[_Number, ...], msgspec.Meta(min_length=1, max_length=3)] | None = None


class _Weights(msgspec.Struct, forbid_unknown_fields=True):
    source: Literal["pretrained", "package", "file", "none"] = "pretrained"
    package: str = ""
    distribution: str = ""
    path: str = ""
    sha256: Annotated[str, msgspec.Meta(pattern="^([0-9a-fA-F]{64})?$")] = ""
    keys: Literal["names", "order"] = "names"
    licence: str = ""


class _Paper(msgspec.Struct, forbid_unknown_fields=True):
    title: str
    year: int
    url: str


class _Card(msgspec.Struct, forbid_unknown_fields=True):
    """The schema of the file; `ModelCard` is the record made from it."""

    name: _Name
    architecture: _Short
    summary: str = ""
    adapter: str = "timm"
    weights: _Weights = msgspec.field(default_factory=_Weights)
    input: _Input = msgspec.field(default_factory=_Input)
    classes: str | list[str] = "imagenet-1k"
    num_classes: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_CLASSES)] | None = None
    outputs: _Short = ""
    layers: dict[str, str] = {}
    options: dict[str, Any] = {}
    accuracy: str = ""
    measured: dict[_Name, float] = {}
    objective: str = ""
    objective_options: dict[str, Any] = {}
    extra: str = ""
    paper: _Paper | None = None
    tags: tuple[str, ...] = ()


def read_card(path: str | Path) -> ModelCard:
    """Read one model card.

    Raises:
        ModelError: The file cannot be read, is not valid YAML, or contains a tag, an unknown key or a wrong value; the
            message names the file, the line and what was expected.
    """
    file = YamlFile(path, what="model card", error=ModelError)
    hint = "docs/how-to/add-a-model.md lists the keys"
    card = file.convert(_Card, hint=hint)
    weights = card.weights
    if fault := _fault(card.input):
        raise file.complaint(fault, "input", "size", hint="reduce the size" if "more than" in fault else hint)
    if card.outputs:
        try:
            Outputs.parse(card.outputs)
        except ParameterError as error:
            raise file.complaint(error.message, "outputs", hint=error.hint) from error
    for name, value in card.options.items():
        if reason := _unusable(value):
            raise file.complaint(f"{name!r} {reason}", "options", name, hint=hint)
    if weights.source in ("package", "file") and not weights.path:
        raise file.complaint(f"'path' is missing for the source {weights.source!r}", "weights", hint=hint)
    if weights.source == "package" and not weights.package.isidentifier():
        raise file.complaint(
            f"{weights.package!r} is not the import name of a package", "weights", "package", hint=hint
        )
    if card.objective and weights.source not in ("package", "file"):
        raise file.complaint("an objective needs its own weights: use the source 'file'", "weights", hint=hint)
    facts = {
        **msgspec.structs.asdict(card),
        "weights": Weights(**{**msgspec.structs.asdict(weights), "sha256": weights.sha256.lower()}),
        "classes": card.classes if isinstance(card.classes, str) else tuple(card.classes),
        "input": {key: value for key, value in msgspec.structs.asdict(card.input).items() if value is not None},
        "paper": Paper(**msgspec.structs.asdict(card.paper)) if card.paper else None,
    }
    return ModelCard(**facts, base=str(Path(path).resolve().parent))


def _fault(given: _Input) -> str:
    """Say what is wrong with the size of an input; "" if it can be used."""
    size = given.size
    sides = size if isinstance(size, tuple) else (size or 1,)
    if min(sides) < 1 or size == 0:
        return f"{size!r} is not one or two positive numbers of pixels"
    large = max(sides) / min(given.crop_pct or 1, 1) > LARGEST_SIDE
    return f"images would be scaled to more than {LARGEST_SIDE} pixels" if large else ""


def read_input(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings like those under `input` in a card; a text is a number, a word, or numbers between commas.

    Raises:
        ParameterError: One is unknown, or has a wrong value.
    """
    try:
        found = msgspec.convert({name: _read(name, value) for name, value in settings.items()}, _Input)
    except msgspec.ValidationError as error:
        names = ", ".join(_Input.__struct_fields__)
        raise ParameterError(f"the input's settings are wrong: {error}", hint=f"they are {names}") from error
    if fault := _fault(found):
        raise ParameterError(f"the input's settings are wrong: {fault}")
    return {name: value for name, value in msgspec.structs.asdict(found).items() if value is not None}


def _read(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        parts = [float(part) for part in value.split(",")]
    except ValueError:
        return value
    numbers = [int(part) if part.is_integer() else part for part in parts]
    return numbers if len(numbers) > 1 or name in _PER_CHANNEL else numbers[0]


def check_options(card: ModelCard, known: Collection[str]) -> dict[str, Any]:
    """Return a card's options for the architecture's constructor.

    A card is data: it may choose numbers, words and lists of them for the keywords in `known`, which an adapter derives
    from the constructor, and nothing that concerns files, addresses, caches or code.

    Raises:
        ModelError: An option is not among the known ones, or is not plain data.
    """
    for name, value in card.options.items():
        if name not in known:
            hint = did_you_mean(name, known) or "a card sets keywords of the architecture's constructor only"
            raise ModelError(f"model card {card.name!r}: the option {name!r} is not allowed", hint=hint)
        if reason := _unusable(value):
            raise ModelError(f"model card {card.name!r}: the option {name!r} {reason}")
    return dict(card.options)


def _unusable(value: Any, depth: int = 0) -> str:
    """Say why a value cannot be an option; "" if it can."""
    if isinstance(value, (list, tuple)):
        if len(value) > 1000 or depth > 3:
            return "is too long or too deep"
        return next(filter(None, (_unusable(item, depth + 1) for item in value)), "")
    if isinstance(value, str):
        return "is longer than 1000 characters" if len(value) > 1000 else ""
    if isinstance(value, (int, float)):
        return "" if abs(value) <= LARGEST_OPTION else f"is not a number up to {LARGEST_OPTION:,}"
    return "" if value is None else f"is a {type(value).__name__}, not a number, a word or a list"
