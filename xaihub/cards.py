"""Model cards: reading and checking YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml

from xaihub.errors import ModelError
from xaihub.specs import ModelCard, Paper, Weights

__all__ = ["read_card"]

# The C parser is several times faster, where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Input(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    size: int | tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None


class _Weights(msgspec.Struct, forbid_unknown_fields=True):
    source: str = "pretrained"
    package: str = ""
    distribution: str = ""
    path: str = ""
    sha256: str = ""
    keys: str = "names"
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
    num_classes: int | None = None
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
        data = yaml.load(file.read_bytes(), Loader=_LOADER)  # noqa: S506 - a safe loader either way
    except OSError as error:
        raise ModelError(f"cannot read the model card {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
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


def _to_card(card: _Card, file: Path) -> ModelCard:
    weights = card.weights
    if weights.source not in ("pretrained", "package", "file", "none"):
        raise ValueError(f"weights.source is {weights.source!r}, not one of pretrained, package, file, none")
    if weights.keys not in ("names", "order"):
        raise ValueError(f"weights.keys is {weights.keys!r}, not one of names, order")
    if weights.source in ("package", "file") and not weights.path:
        raise ValueError(f"weights.path is missing for the source {weights.source!r}")
    if weights.sha256 and (len(weights.sha256) != 64 or set(weights.sha256) - set("0123456789abcdef")):
        raise ValueError("weights.sha256 is not 64 hexadecimal digits")
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
