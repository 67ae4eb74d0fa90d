"""Model cards: reading and checking YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from xaihub.errors import ModelError
from xaihub.records import YamlFile
from xaihub.specs import ModelCard, Paper, Weights

__all__ = ["read_card"]


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
    objective: str = ""
    objective_options: dict[str, Any] = {}
    extra: str = ""
    paper: _Paper | None = None
    tags: tuple[str, ...] = ()


def read_card(path: str | Path) -> ModelCard:
    """Read one model card.

    Raises:
        ModelError: The file cannot be read, is no YAML, holds a tag, an unknown key or a wrong value; the message
            names the file, the key and what was expected.
    """
    file = YamlFile(path, what="model card", error=ModelError)
    hint = "docs/how-to/add-a-model.md lists the keys"
    card = file.convert(_Card, hint=hint)
    size, weights = card.input.size, card.weights
    if size is not None and min(size if isinstance(size, tuple) else (size,)) < 1:
        raise file.complaint(f"{size!r} is not one or two numbers of pixels", "input", "size", hint=hint)
    if weights.source in ("package", "file") and not weights.path:
        raise file.complaint(f"'path' is missing for the source {weights.source!r}", "weights", hint=hint)
    if weights.source == "package" and not weights.package.isidentifier():
        raise file.complaint(
            f"{weights.package!r} is not the import name of a package", "weights", "package", hint=hint
        )
    if card.objective and weights.source not in ("package", "file"):
        raise file.complaint("a changed architecture needs its own weights: the source 'file'", "weights", hint=hint)
    return _to_card(card, Path(path))


def _to_card(card: _Card, file: Path) -> ModelCard:
    weights = msgspec.structs.asdict(card.weights)
    weights["sha256"] = weights["sha256"].lower()
    return ModelCard(
        name=card.name,
        summary=card.summary,
        adapter=card.adapter,
        architecture=card.architecture,
        weights=Weights(**weights),
        classes=card.classes if isinstance(card.classes, str) else tuple(card.classes),
        num_classes=card.num_classes,
        input={key: value for key, value in msgspec.structs.asdict(card.input).items() if value is not None},
        layers=card.layers,
        options=card.options,
        accuracy=card.accuracy,
        objective=card.objective,
        objective_options=card.objective_options,
        extra=card.extra,
        paper=Paper(**msgspec.structs.asdict(card.paper)) if card.paper else None,
        tags=card.tags,
        base=str(file.resolve().parent),
    )
