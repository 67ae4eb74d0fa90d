"""Model cards: reading and validating YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from xaihub.errors import ModelError
from xaihub.records import YamlFile
from xaihub.specs import ModelCard, Paper, Weights


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
    """The schema of the file; `ModelCard` is the record made from it."""

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
        ModelError: The file cannot be read, is not valid YAML, or contains a tag, an unknown key or a wrong value; the
            message names the file, the line and what was expected.
    """
    file = YamlFile(path, what="model card", error=ModelError)
    hint = "docs/how-to/add-a-model.md lists the keys"
    card = file.convert(_Card, hint=hint)
    size, weights = card.input.size, card.weights
    if size is not None and min(size if isinstance(size, tuple) else (size,)) < 1:
        raise file.complaint(f"{size!r} is not one or two positive numbers of pixels", "input", "size", hint=hint)
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
