"""Model cards: reading and checking YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from xaihub.errors import ModelError
from xaihub.specs import ModelCard, Paper, Weights

__all__ = ["read_card"]

# The C parser is several times faster, where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LARGEST = 4_000_000  # bytes; 20 000 class names are a tenth of it
_DEEPEST = 16  # the C parser overflows the stack on deep nesting


class _Input(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    size: int | tuple[int, int] | None = None  # checked below: msgspec 0.22 misreads such a union with limits
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, msgspec.Meta(gt=0)], ...] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None = None
    crop_pct: Annotated[float, msgspec.Meta(gt=0)] | None = None
    crop_mode: Literal["center", "squash", "border"] | None = None


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
    """The file's form; `ModelCard` is the meaning."""

    name: str
    architecture: str
    summary: str = ""
    adapter: str = "timm"
    weights: _Weights = msgspec.field(default_factory=_Weights)
    input: _Input = msgspec.field(default_factory=_Input)
    classes: str | list[str] = "imagenet-1k"
    num_classes: Annotated[int, msgspec.Meta(ge=1)] | None = None
    layers: dict[str, str] = {}
    options: dict[str, Any] = {}
    accuracy: str = ""
    extra: str = ""
    paper: _Paper | None = None
    tags: tuple[str, ...] = ()


def read_card(path: str | Path) -> ModelCard:
    """Read one model card.

    Raises:
        ModelError: The file cannot be read, is no YAML, holds a tag, an unknown key or a wrong value; the message
            names the file, the key and what was expected.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            text = stream.read(_LARGEST + 1)
        _refuse_bombs(text)
        data = yaml.load(text, Loader=_LOADER)  # noqa: S506 - a safe loader either way
    except OSError as error:
        raise ModelError(f"cannot read the model card {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # PyYAML lets the ValueError of an impossible date or number pass
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ModelError(f"model card {str(path)!r}{where}: {problem}") from error
    try:
        card = msgspec.convert(data, type=_Card)
        return _to_card(card, file)
    except (msgspec.ValidationError, ValueError) as error:
        raise ModelError(
            f"model card {str(path)!r}: {error}", hint="docs/how-to/add-a-model.md lists the keys"
        ) from error


def _refuse_bombs(text: bytes) -> None:
    """Refuse what makes a small file large or deep in memory: aliases, nesting, and sheer size."""
    if len(text) > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST:,} bytes")
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("anchors and aliases are not allowed")  # noqa: TRY004 - the text is wrong, not a type
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")


def _to_card(card: _Card, file: Path) -> ModelCard:
    size = card.input.size
    if size is not None and min(size if isinstance(size, tuple) else (size,)) < 1:
        raise ValueError(f"input.size is {size!r}, not one or two numbers of pixels")
    weights = card.weights
    weights.sha256 = weights.sha256.lower()
    if weights.source in ("package", "file") and not weights.path:
        raise ValueError(f"weights.path is missing for the source {weights.source!r}")
    if weights.source == "package" and not weights.package.isidentifier():
        raise ValueError(f"weights.package is {weights.package!r}, not the import name of a package")
    return ModelCard(
        name=card.name,
        summary=card.summary,
        adapter=card.adapter,
        architecture=card.architecture,
        weights=Weights(**msgspec.structs.asdict(weights)),
        classes=card.classes if isinstance(card.classes, str) else tuple(card.classes),
        num_classes=card.num_classes,
        input={key: value for key, value in msgspec.structs.asdict(card.input).items() if value is not None},
        layers=card.layers,
        options=card.options,
        accuracy=card.accuracy,
        extra=card.extra,
        paper=Paper(**msgspec.structs.asdict(card.paper)) if card.paper else None,
        tags=card.tags,
        base=str(file.resolve().parent),
    )
