"""Training a model: from a plan to a run's folder with a card and weights."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from xaihub.errors import MissingExtra, OutputError, ParameterError
from xaihub.files import write_file
from xaihub.hub import Hub
from xaihub.records import YamlFile
from xaihub.training.config import Config

if TYPE_CHECKING:
    from xaihub.training.loop import Watch
    from xaihub.training.place import Place
    from xaihub.training.setting import Setting

__all__ = ["Estimate", "Outcome", "estimate", "read_config", "train"]

CARD, CHECKPOINT, CONFIG, LOG, WEIGHTS = (
    "card.yaml",
    "checkpoint.safetensors",
    "config.yaml",
    "log.csv",
    "weights.safetensors",
)


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
        train: Images to learn from.
        val: Images held out.
        steps: Optimiser steps in all.
        rows: Rows that pass through the network an image, counted in a step of the last epoch.
        cost: What the objective says of its cost.
        trainable: Weights that learn.
        seconds: That step, measured.
        notes: What was left out.
    """

    classes: tuple[str, ...]
    train: int
    val: int
    steps: int
    rows: float
    cost: str
    trainable: int
    seconds: float
    notes: tuple[str, ...]


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
    held_out: str | Path | None = None,
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
        held_out: A new folder for copies of the images held out, which `xaihub evaluate` takes.
        watch: Told what is being done, how far, of how much.
        tell: Told one line after each epoch.

    Raises:
        XaihubError: The data, the model, a parameter or the folder cannot be used, or training diverged.
    """
    from xaihub.training.setting import accelerating, set_up

    place = Path(folder)
    if not resume and place.exists() and (not place.is_dir() or _visible(place)):
        raise OutputError(f"{str(folder)!r} is there already", hint="--resume goes on with a run, or take another -o")
    if config.logger == "tensorboard" and find_spec("tensorboard") is None:
        raise MissingExtra(
            "--logger tensorboard needs 'tensorboard', which is not installed", hint="pip install 'xaihub[tensorboard]'"
        )
    with accelerating(config, device) as accelerator:
        setting = set_up(hub, config, accelerator, watch)
        for note in setting.data.images.notes:
            tell(f"note: {note}")
        if held_out is not None and not setting.data.val:
            raise ParameterError("no image is held out that could be copied", hint="leave --held-out out")
        with _locked(place):
            return _run(hub, config, setting, place, None if held_out is None else Path(held_out), watch, tell)


def estimate(
    hub: Hub, config: Config, *, device: str = "auto", watch: Watch = lambda _text, _done, _total: None
) -> Estimate:
    """Check everything and do three steps, without storing anything.

    Raises:
        XaihubError: As `train`.
    """
    from xaihub.training.setting import accelerating, set_up

    with accelerating(config, device) as accelerator:
        setting = set_up(hub, config, accelerator, watch)
        trainer, data = setting.trainer, setting.data
        trainer.begin(setting.held_out())
        rows: list[int] = []
        # Every row goes through the first layer, whichever part of the network an objective calls.
        stem = next(part for part in trainer.asked.modules() if not list(part.children()) and list(part.parameters()))
        trainer.try_step()
        trainer.try_step(at_the_end=True)  # in which an objective may calibrate
        handle = stem.register_forward_hook(lambda _module, given, _output: rows.append(len(given[0])))
        started = time.monotonic()
        trainer.try_step(at_the_end=True)
        seconds = time.monotonic() - started
        handle.remove()
        return Estimate(
            classes=data.images.classes,
            train=len(data.train),
            val=len(data.val),
            steps=trainer.total,
            rows=sum(rows) / min(config.batch_size * config.accumulate, len(data.train)),
            cost=hub.objectives.get(config.objective).cost,
            trainable=sum(weight.numel() for weight in trainer.weights),
            seconds=seconds,
            notes=tuple(data.images.notes),
        )


def _run(
    hub: Hub,
    config: Config,
    setting: Setting,
    folder: Path,
    held_out: Path | None,
    watch: Watch,
    tell: Callable[[str], None],
) -> Outcome:
    from xaihub.training.checkpoint import Checkpoint
    from xaihub.training.held_out import write_held_out
    from xaihub.training.result import Tensorboard, write_log, write_result

    trainer, checkpoint, main = setting.trainer, folder / CHECKPOINT, setting.accelerator.is_main_process
    if checkpoint.exists():
        trainer.restore(Checkpoint.load(checkpoint))
    else:
        trainer.begin(setting.held_out())  # before anything is written: an objective may refuse its parameters here
    if held_out is not None and main:
        write_held_out(setting.data, held_out)
    logs = Tensorboard(folder) if config.logger == "tensorboard" and main else None
    if main and not (folder / CONFIG).exists():
        text = yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False)
        write_file(folder / CONFIG, text)

    def epoch_done(place: Place) -> None:
        write_log(folder / LOG, place.history)
        if logs is not None:
            logs.write(place.history[-1])
        tell(_line(place.history[-1], config.epochs))

    trainer.run(checkpoint, watch=watch, epoch_done=epoch_done)
    place = trainer.place
    card = folder / CARD
    if main:
        write_log(folder / LOG, place.history)
        write_result(hub, setting, card)
    setting.accelerator.wait_for_everyone()
    return Outcome(
        card=card, best=place.history[place.best - 1], history=place.history, early=place.epoch < config.epochs
    )


def _line(record: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {record['epoch']}/{epochs}: loss {record['train_loss']:.4g}"]
    if "val_loss" in record:
        parts.append(f"held out {record['val_loss']:.4g}, accuracy {record['val_accuracy']:.3f}")
    return ", ".join([*parts, f"{record['seconds']:.1f} s"])


def _visible(folder: Path) -> bool:
    return any(not path.name.startswith(".") for path in folder.iterdir())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process away from the folder; the lock goes with the process that holds it."""
    from filelock import FileLock, Timeout

    if int(os.environ.get("LOCAL_RANK", "0")):
        yield  # the first process of several holds it for all
        return
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise OutputError(f"another process is working on the run {str(folder)!r}") from error
    except OSError as error:
        raise OutputError(f"cannot write {str(folder)!r}: {error.strerror or error}") from error
    try:
        for name in (CARD, CHECKPOINT, CONFIG, LOG, WEIGHTS):
            for left in folder.glob(f".{name}.*"):  # by a process that was killed while it wrote
                left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
