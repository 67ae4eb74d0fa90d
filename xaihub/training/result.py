"""What a run leaves: a model card and weights that every command takes, and the log."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from xaihub.explanation import write_file
from xaihub.objective import Objective
from xaihub.specs import ModelCard

__all__ = ["write_card", "write_log", "write_weights"]


def write_weights(path: Path, state: Mapping[str, Tensor]) -> str:
    """Write a state dict as safetensors and return the file's sha256.

    Raises:
        OutputError: The file cannot be written.
    """
    flat = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    write_file(path, lambda file: save_file(flat, file))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_card(
    path: Path,
    base: ModelCard,
    *,
    classes: Sequence[str],
    sha256: str,
    accuracy: str,
    objective: Objective,
    wrapped: bool,
) -> None:
    """Write the card of a trained model.

    Args:
        path: The card's file; the weights are `weights.safetensors` beside it.
        base: The card of the model before training.
        classes: The classes that it was trained for.
        sha256: Of the weights.
        accuracy: In words, with its source.
        objective: What it was trained by.
        wrapped: Whether the objective must change the architecture before the weights fit.

    Raises:
        OutputError: The file cannot be written.
    """
    weights = {"source": "file", "path": "weights.safetensors", "sha256": sha256}
    if base.weights.licence:
        weights["licence"] = base.weights.licence
    card: dict[str, Any] = {
        "name": path.parent.resolve().name or "trained",
        "summary": f"{base.name}, trained by xaihub with the objective {objective.name}",
        "adapter": base.adapter,
        "architecture": base.architecture,
        "weights": weights,
        "classes": list(classes),
        "accuracy": accuracy,
        "tags": ["trained"],
    }
    for name in ("input", "layers", "options"):
        if getattr(base, name):
            card[name] = _plain(getattr(base, name))
    if wrapped:
        card["objective"] = objective.name
        card["objective_options"] = _plain(objective.parameters)
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=120)
    write_file(path, lambda file: file.write_text(text, encoding="utf-8"))


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def write_log(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write the record of each epoch as one row of a CSV file.

    Raises:
        OutputError: The file cannot be written.
    """
    columns = list(dict.fromkeys(name for record in history for name in record))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    for record in history:
        writer.writerow({key: json.dumps(value) if isinstance(value, dict) else value for key, value in record.items()})
    write_file(path, lambda file: file.write_text(buffer.getvalue(), encoding="utf-8"))
