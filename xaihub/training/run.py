"""Train one model: from a plan to a folder with a model card and weights."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from xaihub.errors import OutputError, ParameterError
from xaihub.files import locked, write_file
from xaihub.hub import Hub
from xaihub.records import YamlFile
from xaihub.training.config import Config

if TYPE_CHECKING:
    from xaihub.training.loop.progress import Progress
    from xaihub.training.loop.trainer import Watch
    from xaihub.training.setup import Setup


CARD, CHECKPOINT, CONFIG, LOG, WEIGHTS = FILES = (
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
        classes: Class names, in the order of the scores.
        best: The record of the epoch whose weights were saved.
        history: The records of all epochs.
        early: Whether training stopped before the last epoch.
    """

    card: Path
    classes: Sequence[str]
    best: dict[str, Any]
    history: list[dict[str, Any]]
    early: bool


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The size and cost of a run.

    Attributes:
        classes: Class names.
        train: Number of training images.
        held_out: Number of images held out for validation.
        steps: Optimizer steps in total.
        rows_per_image: Forward passes per training image, counted in a step of the last epoch.
        cost: The objective's declared cost.
        trainable_weights: Number of trainable weights.
        seconds_per_step: Measured duration of that step.
        minutes: Estimated duration of the training.
        notes: What was skipped.
    """

    classes: list[str]
    train: int
    held_out: int
    steps: int
    rows_per_image: float
    cost: str
    trainable_weights: int
    seconds_per_step: float
    minutes: float
    notes: list[str]


def read_config(folder: str | Path) -> Config:
    """Return the plan of a run.

    Raises:
        OutputError: The folder holds no run, or its config.yaml cannot be read.
    """
    if not (Path(folder) / CONFIG).is_file():
        raise OutputError(f"there is no run in {str(folder)!r}", hint="give --resume the folder of a run")
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
    """Train a model, or resume an interrupted run; write card, weights, log and checkpoint.

    Args:
        hub: Models and objectives.
        config: The plan.
        folder: The run's folder; new, unless `resume`.
        resume: Continue the run in `folder`.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        held_out: A new folder for copies of the held-out images, as `xaihub evaluate` reads them.
        watch: Receives the current activity, completed steps and total steps.
        tell: Receives one line per epoch.

    Raises:
        XaihubError: The data, the model, a parameter or the folder cannot be used, or training diverged.
    """
    from xaihub.training.setup import accelerating, set_up

    folder = Path(folder)
    if not resume and folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
        raise OutputError(f"{str(folder)!r} already exists", hint="resume it with --resume, or give another -o")
    # The objective runs in this process, which it may end: then the next command names it.
    running = hub.host.notes.running(hub.get_objective(config.objective))
    with running, accelerating(config, device, folder) as accelerator:
        setup = set_up(hub, config, accelerator, watch)
        for note in setup.data.images.notes:
            tell(f"note: {note}")
        if held_out is not None and not setup.data.val:
            raise ParameterError("--held-out: no image is held out", hint="raise --val, or drop --held-out")
        with _locked(folder):
            return _run(hub, setup, folder, held_out, watch, tell)


def estimate(
    hub: Hub, config: Config, *, device: str = "auto", watch: Watch = lambda _text, _done, _total: None
) -> Estimate:
    """Check the plan and take three steps, without storing anything.

    Raises:
        XaihubError: As for `train`.
    """
    from xaihub.training.setup import accelerating, set_up

    running = hub.host.notes.running(hub.get_objective(config.objective))
    with running, accelerating(config, device) as accelerator:
        setup = set_up(hub, config, accelerator, watch)
        trainer, data = setup.trainer, setup.data
        trainer.begin(setup.held_out())
        rows: list[int] = []
        # Every row passes through the first layer, whichever part of the network an objective calls.
        stem = next(
            part for part in trainer.loss_network.modules() if not list(part.children()) and list(part.parameters())
        )
        trainer.try_step()
        trainer.try_step(at_the_end=True)  # an objective may calibrate in this step
        handle = stem.register_forward_hook(lambda _module, given, _output: rows.append(len(given[0])))
        started = time.monotonic()
        trainer.try_step(at_the_end=True)
        seconds = time.monotonic() - started
        handle.remove()
        return Estimate(
            classes=list(data.images.classes),
            train=len(data.train),
            held_out=len(data.val),
            steps=trainer.total,
            rows_per_image=sum(rows) / min(config.batch_size * config.accumulate, len(data.train)),
            cost=hub.objectives.get(config.objective).cost,
            trainable_weights=sum(weight.numel() for weight in trainer.weights),
            seconds_per_step=round(seconds, 3),
            minutes=round(seconds * trainer.total / 60, 1),
            notes=list(data.images.notes),
        )


def _run(
    hub: Hub, setup: Setup, folder: Path, held_out: str | Path | None, watch: Watch, tell: Callable[[str], None]
) -> Outcome:
    from xaihub.training.data.held_out import write_held_out
    from xaihub.training.loop.checkpoint import Checkpoint
    from xaihub.training.result import start_tracker, track, write_log, write_result

    trainer, config, main = setup.trainer, setup.trainer.config, setup.trainer.accelerator.is_main_process
    checkpoint, card = folder / CHECKPOINT, folder / CARD
    if checkpoint.exists():
        trainer.restore(Checkpoint.load(checkpoint))
        if trainer.progress.done:
            tell(_ended(trainer.progress, config, folder))
    else:
        trainer.begin(setup.held_out())  # before anything is written: an objective may refuse its parameters here
    if held_out is not None and main:
        write_held_out(setup.data, Path(held_out))
    if config.logger != "csv" and not trainer.progress.done:
        start_tracker(trainer.accelerator, config, folder)
    if main:
        plan = yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False)
        if not (folder / CONFIG).exists() or (folder / CONFIG).read_text(encoding="utf-8") != plan:
            write_file(folder / CONFIG, plan)  # again if it has more epochs than before

    def epoch_done(progress: Progress) -> None:
        write_log(folder / LOG, progress.history)
        track(trainer.accelerator, progress.history[-1])
        tell(epoch_line(progress.history[-1], config.epochs, progress.terms))

    trainer.run(checkpoint, watch=watch, epoch_done=epoch_done, tell=tell)
    progress = trainer.progress
    if main:
        write_log(folder / LOG, progress.history)
        write_result(hub, setup, card)
    trainer.accelerator.wait_for_everyone()
    best = progress.history[progress.best - 1]
    for text in trainer.objective.advice(best.get("measured", {})):
        tell(f"warning: {text}")
    return Outcome(
        card=card,
        classes=setup.data.images.classes,
        best=best,
        history=progress.history,
        early=progress.epoch < config.epochs,
    )


def epoch_line(record: Mapping[str, Any], epochs: int, terms: Sequence[str]) -> str:
    """Return one line on an epoch: the loss by its terms, the scores, and what the objective reports."""
    parts = [f"epoch {record['epoch']}/{epochs}: training {_loss(record, 'train', terms)}"]
    if "val_loss" in record:
        parts.append(f"validation {_loss(record, 'val', terms)}, {scores(record)}")
    reported = {**record.get("objective", {}), **record.get("measured", {})}
    parts += [
        f"{name.replace('_', ' ')} {value:.3g}" for name, value in reported.items() if isinstance(value, int | float)
    ]
    return "; ".join([*parts, f"{record['seconds']:.1f} s"])


def scores(record: Mapping[str, Any]) -> str:
    """Return the validation scores of an epoch in words; runs of earlier versions have the accuracy only."""
    balanced = f", balanced {record['val_balanced_accuracy']:.3f}" if "val_balanced_accuracy" in record else ""
    return f"accuracy {record['val_accuracy']:.3f}{balanced}"


def _loss(record: Mapping[str, Any], part: str, terms: Sequence[str]) -> str:
    found = [f"{name} {record[f'{part}/{name}']:.4g}" for name in terms if f"{part}/{name}" in record]
    return found[0] if len(found) == 1 else f"loss {record[f'{part}_loss']:.4g} = {' + '.join(found)}"


def _ended(progress: Progress, config: Config, folder: Path) -> str:
    """Return why a run is not resumed, and how to train on."""
    if progress.epoch < config.epochs:
        why = f"the run stopped early, after {progress.epoch} epochs, {config.patience} of them without improvement"
        return f"{why}; train on from its result with -m {folder / CARD}"
    return (
        f"the run has completed its {config.epochs} epochs;"
        f" train on with: xaihub train --resume {folder} --epochs {2 * config.epochs}"
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes away from the folder; the lock is released when its process ends."""
    if int(os.environ.get("LOCAL_RANK", "0")):
        yield  # the first of several processes holds the lock for all
        return
    with locked(folder, busy=f"another process is working on the run {str(folder)!r}"):
        for name in FILES:
            for left in folder.glob(f".{name}.*"):  # by a process that was killed while writing
                left.unlink(missing_ok=True)
        yield
