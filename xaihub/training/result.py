"""What a run leaves: a model card and weights that every command takes, and the log."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from xaihub.errors import ModelError
from xaihub.files import write_file
from xaihub.hub import Hub
from xaihub.models.weights import fill
from xaihub.objective import Objective
from xaihub.specs import ModelCard
from xaihub.training.checkpoint import write_tensors

if TYPE_CHECKING:
    from xaihub.training.setting import Setting

__all__ = ["Tensorboard", "write_card", "write_log", "write_result", "write_weights"]


def write_weights(path: Path, state: Mapping[str, Tensor]) -> str:
    """Write a state dict as safetensors and return the file's sha256.

    Raises:
        OutputError: The file cannot be written.
    """
    write_tensors(path, state)
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
    write_file(path, text)


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


def write_result(hub: Hub, setting: Setting, path: Path) -> None:
    """Write card and weights of the best epoch, and load them once, so that what is left behind is known to work.

    Raises:
        ModelError: The card does not give the trained network's scores.
        OutputError: A file cannot be written.
    """
    trainer, data = setting.trainer, setting.data
    record = trainer.place.history[trainer.place.best - 1]
    fill(trainer.network, trainer.best, what="the best epoch")
    finished = setting.objective.finish(trainer.network.eval())
    epochs = f"epoch {record['epoch']} of {len(trainer.place.history)}"
    accuracy = f"not measured: no images were held out ({epochs})"
    if "val_accuracy" in record:
        accuracy = f"{record['val_accuracy']:.4f} on {len(data.val)} held-out images ({epochs})"
    write_card(
        path,
        setting.model.card,
        classes=data.images.classes,
        sha256=write_weights(path.parent / "weights.safetensors", finished.network.state_dict()),
        accuracy=accuracy,
        objective=setting.objective,
        wrapped=finished.wrapped,
    )
    device = setting.accelerator.device
    loaded = hub.load_model(str(path), device=str(device))
    inputs = torch.stack([setting.images.row(index, None) for index in list(data.val or data.train)[:2]]).to(device)
    with torch.no_grad():
        before, after = finished.network.eval()(inputs), loaded(inputs)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        raise ModelError(
            f"the card {str(path)!r} does not give the trained network's scores",
            hint="the objective's wrap must build the same architecture again",
        )


class Tensorboard:
    """Figures for TensorBoard, beside log.csv."""

    def __init__(self, folder: Path) -> None:
        """Open the folder `tensorboard` in the run's."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def write(self, record: Mapping[str, Any]) -> None:
        """Add the figures of one epoch."""
        for name, value in record.items():
            if isinstance(value, int | float) and name not in ("epoch", "steps"):
                self._writer.add_scalar(name.replace("_", "/", 1), value, record["epoch"])
        self._writer.flush()
