"""The loop: steps, epochs, checkpoints; exact after an interruption, because every draw is fixed by a counter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from xaihub.errors import ModelError, TrainingError
from xaihub.models.weights import fill
from xaihub.objective import Losses, Objective, Step
from xaihub.training.checkpoint import Checkpoint, load_optimizer, optimizer_state
from xaihub.training.config import Config
from xaihub.training.depthwise import quick_depthwise
from xaihub.training.draws import generator, seed_everything
from xaihub.training.feed import Batch, Feed
from xaihub.training.optimise import make_optimizer, make_schedule, weight_groups
from xaihub.training.place import Place
from xaihub.training.sums import Sums

__all__ = ["Trainer", "Watch"]

Watch = Callable[[str, int, int], None]


class _Loss(nn.Module):
    """What one backward pass goes through: the objective around the network, so that any calls of it are one call."""

    def __init__(self, objective: Objective, network: nn.Module) -> None:
        super().__init__()
        self.objective, self.network = objective, network

    def forward(self, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        return self.objective.loss(self.network, inputs, labels, step)


class Trainer:
    """Trains one network by one objective.

    Attributes:
        network: What `Objective.wrap` returned.
        part: What learns: the network, or its last part.
        place: Where training stands.
        best: The weights of the best epoch by name, on the CPU.
    """

    def __init__(
        self,
        objective: Objective,
        network: nn.Module,
        *,
        feed: Feed,
        config: Config,
        accelerator: Accelerator,
        head: nn.Module | None = None,
        part: nn.Module | None = None,
        asked: nn.Module | None = None,
        identity: str = "",
    ) -> None:
        """Make optimiser and schedule.

        Args:
            objective: What is minimised.
            network: What `Objective.wrap` returned, on the accelerator's device.
            feed: The batches.
            config: The plan.
            accelerator: Of Accelerate; knows devices, precision and processes.
            head: The classifier, which learns faster.
            part: The part that learns, if the rest is frozen.
            asked: What the objective's loss is computed with: the network, or `part` where `feed` holds features.
            identity: What a checkpoint must have been made by, in words, to be resumed.
        """
        self.objective, self.network, self.feed, self.config = objective, network, feed, config
        self.accelerator, self.identity = accelerator, identity
        self.part = part or network
        self.asked = asked or network
        self.place = Place()
        self.best: dict[str, Tensor] = {}
        self.total = feed.steps * config.epochs
        network.requires_grad_(False)
        self.part.requires_grad_(True)
        self.optimizer = make_optimizer(weight_groups(network, objective.groups(network), head, config), config)
        self.schedule = make_schedule(self.optimizer, config, self.total)
        self.weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self.ema = ModelEmaV3(network, decay=config.ema, use_warmup=True) if config.ema is not None else None
        self._loss, self._stepper = accelerator.prepare(_Loss(objective, self.asked), self.optimizer)
        self._saved, self._writing = time.monotonic(), 0.0

    def begin(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Let the objective prepare, before the first step."""
        seed_everything("begin", self.config.seed)
        self.network.eval()
        on_device = ((self._moved(inputs), labels.to(self.accelerator.device)) for inputs, labels in batches)
        seeded = generator("begin", self.config.seed)
        self.objective.begin(self.network, on_device, seeded, self.config.epochs)

    def try_step(self, *, at_the_end: bool = False) -> None:
        """Do one step for its cost, as the first or, when all terms of the loss take part, as one of the last epoch."""
        if at_the_end and self.place.number != self.total - 1:
            self.place.number = self.total - 1
            self.network.eval()
            for epoch in range(1, self.config.epochs):
                self.objective.epoch_end(self.network, epoch)
        self._train_mode()
        self._step(next(self.feed.epoch(0)), Sums({}))

    def run(self, path: Path | None, *, watch: Watch, epoch_done: Callable[[Place], None]) -> None:
        """Train from where it stands to the end.

        Args:
            path: The checkpoint's file, or None to keep none.
            watch: Told what is done, how many steps of how many.
            epoch_done: Called after each epoch, in the main process, when the checkpoint is written.

        Raises:
            TrainingError: The loss or the gradient is not finite.
            OutputError: The checkpoint cannot be written; the former one is kept.
        """
        self.save(path)
        while not self.place.done:
            self._epoch(path, watch)
            self._close_epoch()
            # Where epochs are shorter than writing takes, not after each; an interruption costs a few of them.
            if self.place.done or self._since() >= min(self.config.save_every, 10 * self._writing):
                self.save(path)
            if self.accelerator.is_main_process:
                epoch_done(self.place)

    def _epoch(self, path: Path | None, watch: Watch) -> None:
        place, config = self.place, self.config
        sums, started, before = Sums(place.sums), time.monotonic(), place.seconds
        for batches in self.feed.epoch(place.epoch, place.step):
            self._train_mode()
            self._step(batches, sums)
            place.step += 1
            place.number += 1
            place.sums, place.seconds = sums.values, before + time.monotonic() - started
            watch(f"epoch {place.epoch + 1}/{config.epochs}", place.number, self.total)
            if self._since() >= config.save_every and place.step < self.feed.steps:
                self.save(path)

    def _step(self, batches: list[Batch], sums: Sums) -> None:
        config = self.config
        self.schedule.step_update(self.place.number + 1)
        self.optimizer.zero_grad()
        for turn, batch in enumerate(batches):
            last = turn == len(batches) - 1
            with self.accelerator.no_sync(self._loss) if not last else nullcontext():
                labels = batch.labels.to(self.accelerator.device)
                inputs, step = self._moved(batch.inputs), self._counters("step", self.place.number, turn)
                losses = self._loss(inputs, labels, step)
                cost = losses.total
                if not math.isfinite(float(cost.detach())):
                    raise self._stopped(losses)
                with quick_depthwise(cost.device, config.precision):
                    self.accelerator.backward(cost * batch.share)
                sums.add(losses, labels, batch.share)
        norm = self.accelerator.clip_grad_norm_(self.weights, config.clip or math.inf)
        if self.accelerator.scaler is None and norm is not None and not math.isfinite(float(norm)):
            raise self._stopped(None)
        self._stepper.step()
        if self.ema is not None:
            self.ema.update(self.network, step=self.place.number)

    def _counters(self, purpose: str, *counters: int) -> Step:
        """Seed the global generators, and return where training stands with a generator of its own."""
        place = (purpose, self.config.seed, *counters, self.accelerator.process_index)
        seed_everything(*place)
        return Step(number=self.place.number, total=self.total, generator=generator("own", *place))

    def _stopped(self, losses: Losses | None) -> TrainingError:
        what = "the gradient"
        if losses is not None:
            bad = [name for name, term in losses.terms.items() if not math.isfinite(float(term.detach()))]
            what = f"the loss {bad[0]!r}" if bad else "the loss"
        return TrainingError(
            f"{what} is not finite at step {self.place.number + 1} of {self.total}",
            hint="the last checkpoint is kept; try a lower --lr, --clip, or --precision fp32",
        )

    def _close_epoch(self) -> None:
        place = self.place
        record: dict[str, Any] = {
            "epoch": place.epoch + 1,
            "steps": place.number,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            **Sums(place.sums).means(self.accelerator, "train"),
        }
        judged = self.ema.module if self.ema is not None else self.network
        record |= self.validate(judged)
        with torch.no_grad():
            judged.eval()
            noted = dict(self.objective.epoch_end(judged, place.epoch + 1))
        record["seconds"] = round(place.seconds, 3)
        if noted:
            record["objective"] = noted
        place.history.append(record)
        if place.best == 0 or self._beats(record, place.history[place.best - 1]) or self.config.keep == "last":
            place.best = place.epoch + 1
            self.best = {name: value.detach().cpu().clone() for name, value in judged.state_dict().items()}
        place.epoch, place.step, place.sums, place.seconds = place.epoch + 1, 0, {}, 0.0
        waited = self.config.patience is not None and place.epoch - place.best >= self.config.patience
        place.done = place.epoch >= self.config.epochs or waited

    def _beats(self, new: dict[str, Any], old: dict[str, Any]) -> bool:
        counts, counted = (self.objective.comparable(record["epoch"]) for record in (new, old))
        return self._better(new, old) if counts == counted else counts

    def _better(self, new: dict[str, Any], old: dict[str, Any]) -> bool:
        if "val_loss" not in new:
            return True
        if self.config.monitor == "accuracy" and new["val_accuracy"] != old["val_accuracy"]:
            return bool(new["val_accuracy"] > old["val_accuracy"])
        return bool(new["val_loss"] < old["val_loss"]) or not math.isfinite(old["val_loss"])

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Return the figures of the images held out; every random choice is the same in every epoch."""
        asked = self.asked if network is self.network else self._twin(network)
        network.eval()
        sums = Sums({})
        with torch.no_grad():
            for turn, batch in enumerate(self.feed.validation()):
                labels = batch.labels.to(self.accelerator.device)
                step = self._counters("validation", turn)
                with self.accelerator.autocast():
                    losses = self.objective.loss(asked, self._moved(batch.inputs), labels, step)
                sums.add(losses, labels, batch.share)
        return sums.means(self.accelerator, "val")

    def _twin(self, network: nn.Module) -> nn.Module:
        """Return the part of a copy of the network that answers for the part that the loss is computed with."""
        name = next(name for name, part in self.network.named_modules() if part is self.asked)
        return network.get_submodule(name)

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
        """Write the checkpoint, in the main process."""
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
                    "place": asdict(self.place),
                    "objective": self.objective.state,
                    "scaler": scaler.state_dict() if scaler is not None else None,
                },
            ).save(path)
        self._saved = time.monotonic()
        self._writing = self._saved - started

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            ModelError: It is of another plan, other data or another architecture.
        """
        state = checkpoint.state
        if state.get("identity") != self.identity:
            raise ModelError(
                "the checkpoint is of another run: its plan or its data have changed",
                hint="start a new run with another -o",
            )
        fill(self.network, checkpoint.tensors.get("model", {}), what="the checkpoint")
        if self.ema is not None:
            fill(self.ema.module, checkpoint.tensors.get("ema", {}), what="the checkpoint's average")
        load_optimizer(self.optimizer, checkpoint.tensors.get("optimizer", {}))
        self.best = dict(checkpoint.tensors.get("best", {}))
        self.place = Place(**state["place"])
        self.objective.state.clear()
        self.objective.state.update(state["objective"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
