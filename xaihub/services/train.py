"""Training a model: from a plan to a run's folder with a card and weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from xaihub.errors import ModelError, OutputError, ParameterError
from xaihub.explanation import write_file
from xaihub.hub import Hub, pick_device
from xaihub.training.config import Config
from xaihub.yamlfile import YamlFile

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn

    from xaihub.model import Model
    from xaihub.objective import Objective
    from xaihub.training.data import Split
    from xaihub.training.feed import Feed, ImageFeed
    from xaihub.training.loop import Place, Trainer, Watch

__all__ = ["CARD", "Estimate", "Outcome", "estimate", "read_config", "train"]

CARD, CHECKPOINT, CONFIG, LOG, WEIGHTS = (
    "card.yaml",
    "checkpoint.safetensors",
    "config.yaml",
    "log.csv",
    "weights.safetensors",
)
# What may differ when a run goes on: it changes nothing that is computed.
_FREE = ("workers", "save_every", "logger")
_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run.

    Attributes:
        card: The card of the trained model.
        best: The record of the epoch whose weights it has.
        history: The records of all epochs.
        early: Whether training stopped before the last epoch.
    """

    card: Path
    best: dict[str, Any]
    history: list[dict[str, Any]]
    early: bool


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would do.

    Attributes:
        classes: Class names.
        train: Pictures to learn from.
        val: Pictures held out.
        steps: Optimiser steps in all.
        rows: Rows that pass through the network a picture, counted on one batch.
        trainable: Weights that learn.
        seconds: One step, measured once.
        notes: What was left out.
    """

    classes: tuple[str, ...]
    train: int
    val: int
    steps: int
    rows: float
    trainable: int
    seconds: float
    notes: tuple[str, ...]


@dataclass(kw_only=True)
class _Setting:
    """What both running and estimating need."""

    accelerator: Accelerator
    model: Model
    objective: Objective
    data: Split
    images: ImageFeed
    trainer: Trainer


def read_config(folder: str | Path) -> Config:
    """Return the plan of a run.

    Raises:
        OutputError: There is no run, or its config.yaml cannot be read.
    """
    if not (Path(folder) / CONFIG).is_file():
        raise OutputError(f"there is no run {str(folder)!r}", hint="--resume takes the folder of a run")
    return YamlFile(Path(folder) / CONFIG, what="plan", error=OutputError).convert(Config)


def train(
    hub: Hub,
    config: Config,
    folder: str | Path,
    *,
    resume: bool = False,
    device: str = "auto",
    watch: Watch = lambda _text, _done, _total: None,
    tell: Callable[[str], None] = lambda _text: None,
) -> Outcome:
    """Train as planned, or go on where an interrupted run stopped; write card, weights, log and checkpoint.

    Args:
        hub: Models and objectives.
        config: The plan.
        folder: The run's folder; new, unless `resume`.
        resume: Go on with the run in `folder`.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        watch: Told what is being done, how far, of how much.
        tell: Told one line after each epoch.

    Raises:
        XaihubError: The data, the model, a parameter or the folder cannot be used, or training diverged.
    """
    place = Path(folder)
    if not resume and place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise OutputError(f"{str(folder)!r} is there already", hint="--resume goes on with a run, or take another -o")
    with _accelerator(config, device) as accelerator:
        setting = _set_up(hub, config, accelerator, watch)
        for note in setting.data.pictures.notes:
            tell(f"note: {note}")
        with _locked(place):
            return _run(hub, config, setting, place, watch, tell)


def estimate(
    hub: Hub, config: Config, *, device: str = "auto", watch: Watch = lambda _text, _done, _total: None
) -> Estimate:
    """Check everything and do one batch, without storing anything.

    Raises:
        XaihubError: As `train`.
    """
    with _accelerator(config, device) as accelerator:
        setting = _set_up(hub, config, accelerator, watch)
        trainer, data = setting.trainer, setting.data
        trainer.begin(_held_out(setting.images))
        rows = [0]
        stem = next(part for part in trainer.asked.modules() if not list(part.children()) and list(part.parameters()))
        handle = stem.register_forward_hook(lambda _module, given, _output: rows.append(len(given[0])))
        started = time.monotonic()
        trainer.try_step()
        seconds = time.monotonic() - started
        handle.remove()
        batch = min(config.batch_size * config.accumulate, len(data.train))
        return Estimate(
            classes=data.pictures.classes,
            train=len(data.train),
            val=len(data.val),
            steps=trainer.total,
            rows=sum(rows) / batch,
            trainable=sum(weight.numel() for weight in trainer.weights),
            seconds=seconds,
            notes=tuple(data.pictures.notes),
        )


@contextmanager
def _accelerator(config: Config, device: str) -> Iterator[Accelerator]:
    """Give Accelerate's object for the device and the precision, and forget its global state afterwards."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import DistributedDataParallelKwargs

    chosen = pick_device(device)
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    try:
        yield Accelerator(
            mixed_precision=_PRECISION[config.precision],
            cpu=chosen.type == "cpu",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:  # Accelerate's word for a precision that the device lacks
        raise ParameterError(f"--precision {config.precision} does not work on {chosen}: {error}") from error
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def _set_up(hub: Hub, config: Config, accelerator: Accelerator, watch: Watch) -> _Setting:
    from xaihub.training.data import check_classes, readable, split
    from xaihub.training.draws import seed_everything
    from xaihub.training.feed import ImageFeed
    from xaihub.training.head import find_head, with_classes
    from xaihub.training.loop import Trainer
    from xaihub.training.sources import open_pictures

    objective = hub.get_objective(config.objective, **config.parameters)
    pictures = open_pictures(config.data, classes=_classes(config))
    check_classes(pictures)
    seed_everything("weights", config.seed)
    model = hub.load_model(
        config.model,
        device=str(accelerator.device),
        checkpoint=config.checkpoint,
        scratch=config.scratch,
        size=config.size,
    )
    if model.card.objective:
        raise ModelError(
            f"model {config.model!r} was changed by the objective {model.card.objective!r} already",
            hint="train from the model that it was made of",
        )
    pictures = readable(pictures, skip=config.skip_unreadable, watch=watch)
    check_classes(pictures)
    data = split(pictures, share=config.val, seed=config.seed)
    model = with_classes(model, pictures.classes, seed=config.seed)
    images = ImageFeed(
        data, model.preprocessing, config, rank=accelerator.process_index, world=accelerator.num_processes
    )
    try:
        head = find_head(model)
    except ModelError:
        if config.freeze:
            raise
        head = None
    seed_everything("wrap", config.seed)
    network = objective.wrap(model).to(accelerator.device)
    part = objective.trainable(network, head) if config.freeze and head is not None else None
    feed, asked = _feed(objective, network, part, images, config, accelerator, watch)
    trainer = Trainer(
        objective,
        network,
        feed=feed,
        config=config,
        accelerator=accelerator,
        head=head,
        part=part,
        asked=asked,
        identity=_identity(config, data),
    )
    return _Setting(
        accelerator=accelerator, model=model, objective=objective, data=data, images=images, trainer=trainer
    )


def _feed(
    objective: Objective,
    network: nn.Module,
    part: nn.Module | None,
    images: ImageFeed,
    config: Config,
    accelerator: Accelerator,
    watch: Watch,
) -> tuple[Feed, nn.Module | None]:
    """Keep the features that go into the part that learns, where that is the same as reading pictures again."""
    from xaihub.training.features import cache_features

    if part is None or part is network or config.augments or not objective.on_features:
        return images, None
    kept = cache_features(network, part, images, device=accelerator.device, watch=watch)
    return (images, None) if kept is None else (kept, part)


def _run(
    hub: Hub, config: Config, setting: _Setting, folder: Path, watch: Watch, tell: Callable[[str], None]
) -> Outcome:
    from xaihub.training.checkpoint import Checkpoint
    from xaihub.training.result import write_log

    trainer, checkpoint = setting.trainer, folder / CHECKPOINT
    if setting.accelerator.is_main_process and not (folder / CONFIG).exists():
        text = yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False)
        write_file(folder / CONFIG, lambda file: file.write_text(text, encoding="utf-8"))
    if checkpoint.exists():
        trainer.restore(Checkpoint.load(checkpoint))
    else:
        trainer.begin(_held_out(setting.images))
    logs = _Tensorboard(folder) if config.logger == "tensorboard" and setting.accelerator.is_main_process else None

    def epoch_done(place: Place) -> None:
        write_log(folder / LOG, place.history)
        if logs is not None:
            logs.write(place.history[-1])
        tell(_line(place.history[-1], config.epochs))

    trainer.run(checkpoint, watch=watch, epoch_done=epoch_done)
    place = trainer.place
    if setting.accelerator.is_main_process:
        write_log(folder / LOG, place.history)
        _write_result(hub, setting, folder)
    setting.accelerator.wait_for_everyone()
    return Outcome(
        card=folder / CARD,
        best=place.history[place.best - 1],
        history=place.history,
        early=place.epoch < config.epochs,
    )


def _write_result(hub: Hub, setting: _Setting, folder: Path) -> None:
    """Write card and weights of the best epoch, and load them once, so that what is left behind is known to work."""
    import torch

    from xaihub.training.result import write_card, write_weights
    from xaihub.weights import fill

    trainer, data = setting.trainer, setting.data
    record = trainer.place.history[trainer.place.best - 1]
    fill(trainer.network, trainer.best, what="the best epoch")
    finished = setting.objective.finish(trainer.network.eval())
    sha256 = write_weights(folder / WEIGHTS, finished.network.state_dict())
    accuracy = f"measured in epoch {record['epoch']} of {len(trainer.place.history)}, on no pictures held out"
    if "val_accuracy" in record:
        accuracy = (
            f"{record['val_accuracy']:.4f} on {len(data.val)} held-out pictures"
            f" (epoch {record['epoch']} of {len(trainer.place.history)})"
        )
    write_card(
        folder / CARD,
        setting.model.card,
        classes=data.pictures.classes,
        sha256=sha256,
        accuracy=accuracy,
        objective=setting.objective,
        wrapped=finished.wrapped,
    )
    loaded = hub.load_model(str(folder / CARD), device=str(setting.accelerator.device))
    inputs = torch.stack([setting.images.row(index, None) for index in list(data.val or data.train)[:2]])
    inputs = inputs.to(setting.accelerator.device)
    with torch.no_grad():
        before, after = finished.network.eval()(inputs), loaded(inputs)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        raise ModelError(f"the card {str(folder / CARD)!r} does not give the trained network's scores",
                         hint="the objective's wrap must build the same architecture again")  # fmt: skip


def _held_out(images: ImageFeed) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield what is held out; where nothing is, the pictures to learn from, without augmentation."""
    for batch in images.validation() if images.data.val else images.plain():
        yield batch.inputs, batch.labels


def _classes(config: Config) -> tuple[str, ...] | None:
    from xaihub.adapter import read_classes

    return None if config.classes is None else read_classes(config.classes)


def _identity(config: Config, data: Split) -> str:
    plan = {name: value for name, value in msgspec.to_builtins(config).items() if name not in _FREE}
    return msgspec.json.encode([plan, data.digest], order="sorted").decode()


def _line(record: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {record['epoch']}/{epochs}: loss {record['train_loss']:.4g}"]
    if "val_loss" in record:
        parts.append(f"held out {record['val_loss']:.4g}, accuracy {record['val_accuracy']:.3f}")
    return ", ".join([*parts, f"{record['seconds']:.1f} s"])


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process away from the folder; the lock goes with the process that holds it."""
    import os

    from filelock import FileLock, Timeout

    if int(os.environ.get("LOCAL_RANK", "0")):
        yield  # the first process of several holds it for all
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise OutputError(f"another process is working on the run {str(folder)!r}") from error
    except OSError as error:
        raise OutputError(f"cannot write {str(folder)!r}: {error.strerror or error}") from error


class _Tensorboard:
    """Figures for TensorBoard, beside log.csv."""

    def __init__(self, folder: Path) -> None:
        from xaihub.errors import MissingExtra

        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise MissingExtra(
                "--logger tensorboard needs 'tensorboard', which is not installed",
                hint="pip install 'xaihub[tensorboard]'",
            ) from error
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def write(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if isinstance(value, int | float) and name not in ("epoch", "steps"):
                self._writer.add_scalar(name.replace("_", "/", 1), value, record["epoch"])
        self._writer.flush()
