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
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from xaihub.errors import ModelError, TrainingError
from xaihub.files import decoding
from xaihub.models.weights import fill
from xaihub.objective import Losses, Objective, Step
from xaihub.training.config import Config
from xaihub.training.data.loaders import Batch, Loader
from xaihub.training.loop.checkpoint import Checkpoint, load_optimizer, optimizer_state
from xaihub.training.loop.depthwise import quick_depthwise
from xaihub.training.loop.optimizer import make_optimizer, make_schedule, weight_groups
from xaihub.training.loop.progress import Progress, Sums
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
        head: nn.Module | None = None,
        part: nn.Module | None = None,
        loss_network: nn.Module | None = None,
        identity: str = "",
    ) -> None:
        """Make optimizer and schedule; the `head` has a learning rate of its own.

        Without `part` the whole network is trained. `loss_network` is `part` if `loader` yields features. A checkpoint
        with another `identity`, which is plan and data as text, is refused.
        """
        self.objective, self.network, self.loader, self.config = objective, network, loader, config
        self.accelerator, self.identity = accelerator, identity
        self.part = part or network
        self.loss_network = loss_network or network
        for module in {network, self.loss_network}:
            module.register_forward_pre_hook(_private)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.total = loader.steps * config.epochs
        network.requires_grad_(False)
        self.part.requires_grad_(True)
        self.optimizer = make_optimizer(weight_groups(network, objective.groups(network), head, config), config)
        self.schedule = make_schedule(self.optimizer, config, self.total)
        self.weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self.ema = ModelEmaV3(network, decay=config.ema, use_warmup=True) if config.ema is not None else None
        self._loss, self._stepper = accelerator.prepare(_Loss(objective, self.loss_network), self.optimizer)
        self._saved, self._writing = time.monotonic(), 0.0

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
        self._step(next(self.loader.epoch(0)), Sums({}))

    def run(self, path: Path | None, *, watch: Watch, epoch_done: Callable[[Progress], None]) -> None:
        """Train to the end from the current progress, with checkpoints in the file `path`, if given.

        `epoch_done` is called after each epoch, in the main process, when the checkpoint is written.

        Raises:
            TrainingError: The loss or the gradient is not finite.
            OutputError: The checkpoint cannot be written; the previous one is kept.
        """
        self.save(path)
        while not self.progress.done:
            self._epoch(path, watch)
            self._close_epoch()
            # Epochs shorter than writing are not saved one by one; an interruption then costs a few of them.
            if self.progress.done or self._since() >= min(self.config.save_every, 10 * self._writing):
                self.save(path)
            if self.accelerator.is_main_process:
                epoch_done(self.progress)

    def _epoch(self, path: Path | None, watch: Watch) -> None:
        progress, config = self.progress, self.config
        sums, started, before = Sums(progress.sums), time.monotonic(), progress.seconds
        for batches in self.loader.epoch(progress.epoch, progress.epoch_step):
            self._train_mode()
            self._step(batches, sums)
            progress.epoch_step += 1
            progress.step += 1
            progress.sums, progress.seconds = sums.values, before + time.monotonic() - started
            watch(f"epoch {progress.epoch + 1}/{config.epochs}", progress.step, self.total)
            if self._since() >= config.save_every and progress.epoch_step < self.loader.steps:
                self.save(path)

    def _step(self, batches: list[Batch], sums: Sums) -> None:
        config = self.config
        self.schedule.step_update(self.progress.step + 1)
        self.optimizer.zero_grad()
        for turn, batch in enumerate(batches):
            last = turn == len(batches) - 1
            with self.accelerator.no_sync(self._loss) if not last else nullcontext():
                labels = batch.labels.to(self.accelerator.device)
                inputs, step = self._moved(batch.inputs), self._counters("step", self.progress.step, turn)
                losses = self._loss(inputs, labels, step)
                cost = losses.total
                if not math.isfinite(float(cost.detach())):
                    raise self._stopped(losses)
                with quick_depthwise(cost.device, config.precision):
                    self.accelerator.backward(cost * batch.fraction)
                sums.add(losses, labels, batch.fraction)
        norm = self.accelerator.clip_grad_norm_(self.weights, config.clip or math.inf)
        if self.accelerator.scaler is None and norm is not None and not math.isfinite(float(norm)):
            raise self._stopped(None)
        self._stepper.step()
        if self.ema is not None:
            self.ema.update(self.network, step=self.progress.step)

    def _counters(self, purpose: str, *counters: int) -> Step:
        """Seed the global generators, and return the step with a generator of its own."""
        seed = (purpose, self.config.seed, *counters, self.accelerator.process_index)
        seed_everything(*seed)
        return Step(number=self.progress.step, total=self.total, generator=generator("own", *seed))

    def _stopped(self, losses: Losses | None) -> TrainingError:
        what = "the gradient"
        if losses is not None:
            bad = [name for name, term in losses.terms.items() if not math.isfinite(float(term.detach()))]
            what = f"the loss {bad[0]!r}" if bad else "the loss"
        return TrainingError(
            f"{what} is not finite at step {self.progress.step + 1} of {self.total}",
            hint="the last checkpoint is kept; try a lower --lr or --clip, or --precision fp32",
        )

    def _close_epoch(self) -> None:
        progress = self.progress
        record: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "steps": progress.step,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            **Sums(progress.sums).means(self.accelerator, "train"),
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
        progress.epoch, progress.epoch_step, progress.sums, progress.seconds = progress.epoch + 1, 0, {}, 0.0
        waited = self.config.patience is not None and progress.epoch - progress.best >= self.config.patience
        progress.done = progress.epoch >= self.config.epochs or waited

    def _beats(self, new: dict[str, Any], old: dict[str, Any]) -> bool:
        new_counts, old_counts = (self.objective.comparable(record["epoch"]) for record in (new, old))
        if new_counts != old_counts:
            return new_counts
        if "val_loss" not in new:
            return True
        if self.config.monitor == "accuracy" and new["val_accuracy"] != old["val_accuracy"]:
            return bool(new["val_accuracy"] > old["val_accuracy"])
        return bool(new["val_loss"] < old["val_loss"]) or not math.isfinite(old["val_loss"])

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Return mean losses and accuracy on the validation images; random draws are the same in every epoch."""
        loss_network = self.loss_network
        if network is not self.network:  # the averaged copy has its own counterpart of the trainable part
            name = next(name for name, part in self.network.named_modules() if part is loss_network)
            loss_network = network.get_submodule(name)
        network.eval()
        sums = Sums({})
        with torch.no_grad():
            for turn, batch in enumerate(self.loader.validation()):
                labels = batch.labels.to(self.accelerator.device)
                step = self._counters("validation", turn)
                with self.accelerator.autocast():
                    losses = self.objective.loss(loss_network, self._moved(batch.inputs), labels, step)
                sums.add(losses, labels, batch.fraction)
        return sums.means(self.accelerator, "val")

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
        """Continue from a checkpoint.

        Raises:
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
            self.objective.state.clear()
            self.objective.state.update(state["objective"])
            if state["scaler"] is not None and self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
