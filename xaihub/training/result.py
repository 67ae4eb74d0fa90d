"""The files a run writes: model card, weights and log."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
import torch
import yaml
from accelerate import Accelerator
from torch import Tensor

from xaihub.errors import ModelError, TrainingError
from xaihub.files import write_file
from xaihub.hub import Hub
from xaihub.models.weights import fill
from xaihub.objective import Objective
from xaihub.records import plain
from xaihub.specs import ModelCard
from xaihub.training.config import Config
from xaihub.training.loop.checkpoint import write_tensors

if TYPE_CHECKING:
    from xaihub.training.setup import Setup


def write_weights(path: Path, state: Mapping[str, Tensor]) -> str:
    """Write a state dict as safetensors and return the file's sha256."""
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
    measured: Mapping[str, float] = MappingProxyType({}),
    objective: Objective,
    wrapped: bool,
) -> None:
    """Write the card of a model that was trained from `base`; its weights are `weights.safetensors` next to the card.

    `wrapped` states that the objective must change the architecture before the weights fit.
    """
    licence = {"licence": base.weights.licence} if base.weights.licence else {}
    card: dict[str, Any] = {
        "name": path.parent.resolve().name or "trained",
        "summary": f"{base.name}, trained by xaihub with the objective {objective.name}",
        "adapter": base.adapter,
        "architecture": base.architecture,
        "weights": {"source": "file", "path": "weights.safetensors", "sha256": sha256, **licence},
        "classes": list(classes),
        "accuracy": accuracy,
        "tags": ["trained"],
    }
    if measured:
        card["measured"] = {name: float(f"{value:.4g}") for name, value in measured.items()}
    card |= {name: plain(value) for name in ("input", "layers", "options") if (value := getattr(base, name))}
    if wrapped:
        card |= {"objective": objective.name, "objective_options": plain(objective.parameters)}
    write_file(path, yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=120))


def write_log(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write one CSV row per epoch."""
    table = io.StringIO()
    columns = dict.fromkeys(name for record in history for name in record)
    writer = csv.DictWriter(table, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    for record in history:
        cells = {key: json.dumps(value) if isinstance(value, dict | list) else value for key, value in record.items()}
        writer.writerow(cells)
    write_file(path, table.getvalue())


def write_result(hub: Hub, setup: Setup, path: Path) -> None:
    """Write card and weights of the best epoch, and load them once to check that they work.

    Raises:
        ModelError: The loaded model's outputs differ from the trained network's.
    """
    trainer, data = setup.trainer, setup.data
    record = trainer.progress.history[trainer.progress.best - 1]
    fill(trainer.network, trainer.best, what="the best epoch")
    finished = trainer.objective.finish(trainer.network.eval())
    epochs = f"epoch {record['epoch']} of {len(trainer.progress.history)}"
    accuracy = f"not measured: no images were held out ({epochs})"
    if "val_accuracy" in record:
        accuracy = f"{record['val_accuracy']:.4f} on {len(data.val)} held-out images ({epochs})"
    write_card(
        path,
        setup.model.card,
        classes=data.images.classes,
        sha256=write_weights(path.parent / "weights.safetensors", finished.network.state_dict()),
        accuracy=accuracy,
        measured=record.get("measured", {}),
        objective=trainer.objective,
        wrapped=finished.wrapped,
    )
    device = trainer.accelerator.device
    loaded = hub.load_model(str(path), device=str(device))
    inputs = torch.stack([setup.images.row(index, None) for index in list(data.val or data.train)[:2]]).to(device)
    with torch.no_grad():
        before, after = finished.network.eval()(inputs), loaded(inputs)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        raise ModelError(
            f"the model of the card {str(path)!r} differs from the trained network",
            hint="the objective's wrap must build the same architecture again",
        )


def start_tracker(accelerator: Accelerator, config: Config, folder: Path) -> None:
    """Start the plan's tracker in the main process, with the plan; TensorBoard writes to a subfolder of the run.

    Raises:
        TrainingError: The tracker cannot be started, for instance without a login.
    """
    plan = {name: value if isinstance(value, int | float | str) else json.dumps(value)
            for name, value in msgspec.to_builtins(config).items()}  # fmt: skip
    project = "tensorboard" if config.logger == "tensorboard" else "xaihub"
    try:
        accelerator.init_trackers(project, config=plan, init_kwargs={"wandb": {"name": folder.resolve().name}})
    except Exception as error:  # each tracker raises its own types
        raise TrainingError(f"the tracker {config.logger!r} cannot be started: {error}") from error


def track(accelerator: Accelerator, record: Mapping[str, Any]) -> None:
    """Send the numbers of one epoch to the tracker, such as "val/loss"."""
    numbers = {
        name.replace("_", "/", 1) if name.startswith(("train_", "val_")) else name: value
        for name, value in record.items()
        if isinstance(value, int | float) and name not in ("epoch", "steps")
    }
    accelerator.log(numbers, step=record["epoch"])
