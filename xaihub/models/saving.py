"""Writing models: weights, and the card that loads them again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from xaihub.errors import ModelError, OutputError
from xaihub.files import write_file
from xaihub.records import plain
from xaihub.specs import ModelCard

if TYPE_CHECKING:
    from xaihub.models.model import Model

CARD, WEIGHTS = "card.yaml", "weights.safetensors"
INPUT = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, then rename it into place; a previous file is kept if that fails.

    Raises:
        OutputError: The disk is full, or the file cannot be written.
    """
    # One copy each: safetensors supports neither shared memory nor strides.
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        save_file(flat, temporary, metadata=metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())

    try:
        write_file(path, write)
    except SafetensorError as error:  # wraps the system's error
        why = "No space left on device" if "os error 28" in str(error) else str(error)
        raise OutputError(f"cannot write {str(path)!r}: {why}") from error


def write_weights(path: Path, state: Mapping[str, Tensor]) -> str:
    """Write a state dict as safetensors and return the file's sha256."""
    write_tensors(path, state)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_card(path: Path, base: ModelCard, *, sha256: str, classes: Sequence[str], **facts: Any) -> None:
    """Write the card of a model whose weights are `weights.safetensors` next to it.

    Args:
        path: The card's file.
        base: The card from which adapter, architecture, input, layers and options are taken.
        sha256: The checksum of the weights.
        classes: The class names.
        facts: Further keys of the card, which replace those of `base`; empty ones are left out.
    """
    licence = {"licence": base.weights.licence} if base.weights.licence else {}
    kept = ("adapter", "architecture", "outputs", "input", "layers", "options")
    card: dict[str, Any] = {"name": "", "summary": "", **{name: getattr(base, name) for name in kept}}
    card |= {"weights": {"source": "file", "path": WEIGHTS, "sha256": sha256, **licence}, "classes": list(classes)}
    card |= facts
    written = {name: plain(value) for name, value in card.items() if value not in ("", (), {}, [], None)}
    write_file(path, yaml.safe_dump(written, sort_keys=False, allow_unicode=True, width=120))


def save_model(model: Model, folder: str | Path) -> Path:
    """Write a model's weights and card into a new folder, from which it can be loaded without a network.

    Returns:
        The card's path.

    Raises:
        ModelError: No adapter built the model, so that no card can describe it.
        OutputError: The folder exists already and is not empty, or cannot be written.
    """
    folder, base = Path(folder), model.card
    if not base.architecture:
        raise ModelError(f"{model.name!r} was made from a module, which no card describes", hint="save its state_dict")
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{str(folder)!r} is not empty", hint="choose a new folder")
    facts: dict[str, Any] = {
        "name": folder.resolve().name,
        "summary": f"{base.name}, with its weights in this folder",
        "accuracy": base.accuracy,
        "measured": base.measured,
        "objective": base.objective,
        "objective_options": base.objective_options,
    }
    config = getattr(model.module, "pretrained_cfg", None) or {}
    if ":" in base.architecture and config.get("architecture"):  # a name on a hub, which cannot be read offline
        drawn = model.preprocessing.description
        facts["architecture"] = config["architecture"]
        facts["input"] = {
            "size": list(model.preprocessing.size[1:]),
            **{key: drawn[key] for key in INPUT if key in drawn},
        }
    sha256 = write_weights(folder / WEIGHTS, model.module.state_dict())
    write_card(folder / CARD, base, sha256=sha256, classes=model.classes, **facts)
    return folder / CARD
