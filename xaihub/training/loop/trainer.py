"""The training loop: steps, epochs and checkpoints; a resumed run is exact, because counters fix every draw."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import torch
from accelerate import Accelerator
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from xaihub.errors import ModelError, ParameterError, TrainingError
from xaihub.files import decoding
from xaihub.models.weights import fill
from xaihub.objective import Losses, Objective, Step
from xaihub.training.config import Config
from xaihub.training.data.loaders import Batch, Loader
from xaihub.training.loop.checkpoint import Checkpoint, load_optimizer, optimizer_state
from xaihub.training.loop.depthwise import quick_depthwise
from xaihub.training.loop.optimizer import make_optimizer, make_schedule, rates, weight_groups
from xaihub.training.loop.parallel import every_weight_is_used
from xaihub.training.loop.phases import Phases
from xaihub.training.loop.progress import Finite, Progress, Sums
from xaihub.training.loop.scores import Scores
from xaihub.training.seeds import generator, seed_everything

Watch = Callable[[str, int, int], None]


class _Loss(nn.Module):
    """The objective around the network as one module, so that several calls of the network share a backward pass."""

    def __init__(self, objective: Objective, network: nn.Module) -> None:
        super().__init__()
        self.objective, self.network = objective, network

    def forward(self, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        return self.objective.loss(self.network, inputs, labels, step)


def _private(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give the network a copy of its inputs, which it may write to; objectives use them again."""
    return (arguments[0].clone(), *arguments[1:])


def _several_values(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Refuse what torch would: batch statistics of a single value."""
    inputs = arguments[0]
    if module.training and inputs.numel() == inputs.shape[1]:
        raise TrainingError(
            "a batch norm received a single value per channel, which has no variance",
            hint="use a larger --batch-size, or --set freeze_norm=true",
        )


class Trainer:
    """Trains one network with one objective.

    Attributes:
        network: The network that `Objective.wrap` returned.
        part: The trainable part: the network, or its last part.
        loss_network: The module that the loss is computed with: the network, or `part` for cached features.
        progress: How far training has come.
        best: The weights of the best epoch by name, on the CPU.
        total: Optimizer steps of the whole run.
    """

    def __init__(
        self,
        objective: Objective,
        network: nn.Module,
        *,
        loader: Loader,
        config: Config,
        accelerator: Accelerator,
        classes: int,
        head: nn.Module | None = None,
        part: nn.Module | None = None,
        loss_network: nn.Module | None = None,
        identity: str = "",
    ) -> None:
        """Make optimizer and schedule for a number of `classes`; the `head` has a learning rate of its own.

        Without `part` the whole network is trained. `loss_network` is `part` if `loader` yields features. A checkpoint
        with another `identity`, which is plan and data as text, is refused.
        """
        self.objective, self.network, self.loader, self.config = objective, network, loader, config
        self.accelerator, self.identity = accelerator, identity
        self.part = part or network
        self.loss_network = loss_network or network
        for module in {network, self.loss_network}:
            module.register_forward_pre_hook(_private)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(_several_values)
        self._classes = classes
        mixing = {"mixup_alpha": config.mixup, "cutmix_alpha": config.cutmix, "label_smoothing": 0.0}
        self._mix = Mixup(**mixing, num_classes=classes) if config.mixes else None
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.total = loader.steps * config.epochs
        network.requires_grad_(False)
        self.part.requires_grad_(True)
        self.optimizer = make_optimizer(weight_groups(network, objective.groups(network), head, config), config)
        self.schedule = make_schedule(self.optimizer, config, self.total)
        self.weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self.ema = ModelEmaV3(network, decay=config.ema, use_warmup=True) if config.ema is not None else None
        if accelerator.num_processes > 1 and every_weight_is_used(self.loss_network, self.weights, loader):
            accelerator.ddp_handler.find_unused_parameters = False  # the search takes time in every step
        self._loss, self._stepper = accelerator.prepare(_Loss(objective, self.loss_network), self.optimizer)
        self._saved, self._writing = time.monotonic(), 0.0
        self._sums, self._finite = Sums({}), Finite(self.total)

    def begin(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Let the objective prepare before the first step."""
        seed_everything("begin", self.config.seed)
        self.network.eval()
        on_device = ((self._moved(inputs), labels.to(self.accelerator.device)) for inputs, labels in batches)
        seeded = generator("begin", self.config.seed)
        self.objective.begin(self.network, on_device, seeded, self.config.epochs)

    def try_step(self, *, at_the_end: bool = False) -> None:
        """Take the first step to measure its cost, or the last one, in which all terms of the loss take part."""
        if at_the_end and self.progress.step != self.total - 1:
            self.progress.step = self.total - 1
            self.network.eval()
            for epoch in range(1, self.config.epochs):
                self.objective.epoch_end(self.network, epoch)
        self._train_mode()
        self._step(next(self.loader.epoch(0)))

    def run(
        self,
        path: Path | None,
        *,
        watch: Watch,
        epoch_done: Callable[[Progress], None],
        tell: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Train to the end from the current progress, with checkpoints in the file `path`, if given.

        `epoch_done` is called after each epoch, in the main process, when the checkpoint is written; `tell` receives a
        line when another term of the loss begins.

        Raises:
            TrainingError: The loss or the gradient is not finite.
            OutputError: The checkpoint cannot be written; the previous one is kept.
        """
        self.save(path)
        phases = Phases(self.progress.terms, self.total, tell=tell)
        while not self.progress.done:
            self._epoch(path, watch, phases)
            self._close_epoch()
            # Epochs shorter than writing are not saved one by one; an interruption then costs a few of them.
            if self.progress.done or self._since() >= min(self.config.save_every, 10 * self._writing):
                self.save(path)
            if self.accelerator.is_main_process:
                epoch_done(self.progress)

    def _epoch(self, path: Path | None, watch: Watch, phases: Phases) -> None:
        progress, config = self.progress, self.config
        started, before = time.monotonic(), progress.seconds
        self._sums = Sums(progress.sums)
        begun = started
        for batches in self.loader.epoch(progress.epoch, progress.epoch_step):
            self._train_mode()
            terms = self._step(batches)
            if phases.measures(terms):
                self._finite.look()  # waits for the device
            progress.epoch_step += 1
            progress.step += 1
            progress.seconds = before + time.monotonic() - started
            progress.terms = phases.step(progress.step, time.monotonic() - begun, terms)
            watch(f"epoch {progress.epoch + 1}/{config.epochs}", progress.step, self.total)
            if self._since() >= config.save_every and progress.epoch_step < self.loader.steps:
                self.save(path)
            begun = time.monotonic()

    def _step(self, batches: list[Batch]) -> set[str]:
        """Take one step and return the names of the terms of its loss."""
        config, terms = self.config, set[str]()
        self.schedule.step_update(self.progress.step + 1)
        self.optimizer.zero_grad()
        for turn, batch in enumerate(batches):
            last = turn == len(batches) - 1
            with self.accelerator.no_sync(self._loss) if not last else nullcontext():
                inputs, labels = self._moved(batch.inputs), self._moved(batch.labels)
                step = self._counters("step", self.progress.step, turn)
                if self._mix is not None:
                    inputs, labels = self._mixed(inputs, labels)
                losses = self._loss(inputs, labels, step)
                self._finite.losses(self.progress.step, losses)
                cost, terms = losses.total, terms | {*losses.terms}
                with quick_depthwise(cost.device, config.precision):
                    self.accelerator.backward(cost * batch.fraction)
                self._sums.add(losses, labels, batch.fraction)
        norm = self.accelerator.clip_grad_norm_(self.weights, config.clip or math.inf)
        if self.accelerator.scaler is None and norm is not None:  # a scaler skips such a step, and scales less
            self._finite.gradient(self.progress.step, norm)
        self._stepper.step()
        if self.ema is not None:
            self.ema.update(self.network, step=self.progress.step)
        return terms

    def _mixed(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the images of a batch in pairs, and return (B, K) class probabilities; one of an odd number stays."""
        even = len(inputs) // 2 * 2
        soft = nn.functional.one_hot(labels, self._classes).float()
        if even and self._mix is not None:
            inputs[:even], soft[:even] = self._mix(inputs[:even], labels[:even])
        return inputs, soft

    def _counters(self, purpose: str, *counters: int) -> Step:
        """Seed the global generators, and return the step with a generator of its own."""
        seed = (purpose, self.config.seed, *counters, self.accelerator.process_index)
        seed_everything(*seed)
        return Step(number=self.progress.step, total=self.total, generator=generator("own", *seed))

    def _close_epoch(self) -> None:
        progress = self.progress
        self._finite.look()
        record: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "steps": progress.step,
            **rates(self.optimizer, self.config),
            **self._sums.means(self.accelerator, "train"),
        }
        judged = self.ema.module if self.ema is not None else self.network
        record |= self.validate(judged)
        with torch.no_grad():
            judged.eval()
            noted = dict(self.objective.epoch_end(judged, progress.epoch + 1))
            measured = dict(self.objective.figures(judged, record))
        record["seconds"] = round(progress.seconds, 3)
        if noted:
            record["objective"] = noted
        if measured:
            record["measured"] = measured
        history = progress.history
        history.append(record)
        if progress.best == 0 or self._beats(record, history[progress.best - 1]) or self.config.keep == "last":
            progress.best = progress.epoch + 1
            self.best = {name: value.detach().cpu().clone() for name, value in judged.state_dict().items()}
        progress.epoch, progress.epoch_step, progress.seconds = progress.epoch + 1, 0, 0.0
        self._sums = Sums({})
        progress.done = self._complete()

    def _complete(self) -> bool:
        progress, patience = self.progress, self.config.patience
        return progress.epoch >= self.config.epochs or (
            patience is not None and progress.epoch - progress.best >= patience
        )

    def _beats(self, new: dict[str, Any], old: dict[str, Any]) -> bool:
        new_counts, old_counts = (self.objective.comparable(record["epoch"]) for record in (new, old))
        if new_counts != old_counts:
            return new_counts
        if "val_loss" not in new:
            return True
        if self.config.monitor == "accuracy" and new["val_accuracy"] != old["val_accuracy"]:
            return bool(new["val_accuracy"] > old["val_accuracy"])
        return bool(new["val_loss"] < old["val_loss"]) or not math.isfinite(old["val_loss"])

    def validate(self, network: nn.Module) -> dict[str, Any]:
        """Return mean losses and the scores on the validation images; random draws are the same in every epoch."""
        loss_network = self.loss_network
        if network is not self.network:  # the averaged copy has its own counterpart of the trainable part
            name = next(name for name, part in self.network.named_modules() if part is loss_network)
            loss_network = network.get_submodule(name)
        network.eval()
        sums, scores = Sums({}), Scores(self._classes, self.accelerator.device)
        with torch.no_grad():
            for turn, batch in enumerate(self.loader.validation()):
                labels = self._moved(batch.labels)
                step = self._counters("validation", turn)
                with self.accelerator.autocast():
                    losses = self.objective.loss(loss_network, self._moved(batch.inputs), labels, step)
                sums.add(losses, labels, batch.fraction)
                scores.add(losses.logits, labels)
        means = sums.means(self.accelerator, "val")
        return means and {**means, **{f"val_{name}": value for name, value in scores.values().items()}}

    def _train_mode(self) -> None:
        self.network.train(self.part is self.network)
        self.part.train()
        if self.config.freeze_norm:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _moved(self, inputs: Tensor) -> Tensor:
        return inputs.to(self.accelerator.device, non_blocking=True)

    def _since(self) -> float:
        return time.monotonic() - self._saved

    def save(self, path: Path | None) -> None:
        """Write the checkpoint in the main process."""
        self._finite.look()
        self.progress.sums = self._sums.values
        started = time.monotonic()
        if path is not None and self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            tensors = {"model": self.network.state_dict(), "best": self.best,
                       "optimizer": optimizer_state(self.optimizer)}  # fmt: skip
            if self.ema is not None:
                tensors["ema"] = self.ema.module.state_dict()
            Checkpoint(
                tensors=tensors,
                state={
                    "identity": self.identity,
                    "progress": asdict(self.progress),
                    "objective": self.objective.state,
                    "scaler": scaler.state_dict() if scaler is not None else None,
                },
            ).save(path)
        self._saved = time.monotonic()
        self._writing = self._saved - started

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint; the plan may have more epochs than that of the checkpoint.

        Raises:
            ParameterError: The plan has fewer epochs than the checkpoint has completed.
            ModelError: It belongs to another plan, other data or another architecture.
        """
        state = checkpoint.state
        if state.get("identity") != self.identity:
            raise ModelError(
                "the checkpoint belongs to another run: its plan or data differ", hint="start a new run with another -o"
            )
        with decoding(ModelError("the checkpoint is damaged", hint="start a new run with another -o")):
            fill(self.network, checkpoint.tensors.get("model", {}), what="the checkpoint")
            if self.ema is not None:
                fill(self.ema.module, checkpoint.tensors.get("ema", {}), what="the checkpoint's average")
            load_optimizer(self.optimizer, checkpoint.tensors.get("optimizer", {}))
            self.best = dict(checkpoint.tensors.get("best", {}))
            self.progress = msgspec.convert(state["progress"], type=Progress)
            self.progress.check()
            self._sums = Sums(self.progress.sums)
            self.objective.state.clear()
            self.objective.state.update(state["objective"])
            if state["scaler"] is not None and self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.config.epochs < self.progress.epoch:
            raise ParameterError(
                f"the run has completed {self.progress.epoch} epochs, so it cannot end after {self.config.epochs}",
                hint=f"--epochs {self.progress.epoch + self.config.epochs} trains on",
            )
        self.progress.done = self._complete()
