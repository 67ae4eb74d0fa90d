"""The files a run writes: model card, weights and log."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from accelerate import Accelerator

from xaihub.errors import ModelError, TrainingError
from xaihub.files import write_file
from xaihub.hub import Hub
from xaihub.models.saving import WEIGHTS, write_card, write_weights
from xaihub.models.weights import fill
from xaihub.training.config import Config

if TYPE_CHECKING:
    from xaihub.training.setup import Setup


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
    base, objective = setup.model.card, trainer.objective
    options = {"objective": objective.name, "objective_options": objective.parameters} if finished.wrapped else {}
    write_card(
        path,
        base,
        sha256=write_weights(path.parent / WEIGHTS, finished.network.state_dict()),
        classes=data.images.classes,
        name=path.parent.resolve().name or "trained",
        summary=f"{base.name}, trained by xaihub with the objective {objective.name}",
        accuracy=accuracy,
        measured={name: float(f"{value:.4g}") for name, value in record.get("measured", {}).items()},
        tags=["trained"],
        **options,
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
