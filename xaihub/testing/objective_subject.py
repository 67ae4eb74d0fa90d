"""A training objective under test: created anew for each check, on a toy network and a batch of toy images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xaihub.errors import ModelError, ParameterError
from xaihub.models.model import Model
from xaihub.objective import Losses, Objective, Step
from xaihub.specs import ObjectiveSpec
from xaihub.testing.budgets import small_parameters
from xaihub.testing.catalogue import Refused, require
from xaihub.testing.process import Observation, observed
from xaihub.testing.toys import CLASSES, SIDE, images, tiny_cnn, tiny_plain, tiny_vit

ROWS = 6
TOTAL, EPOCHS = 200, 10  # optimizer steps and epochs of the run that steps belong to


def step(number: int, *, seed: int = 0) -> Step:
    """Return a step, whose random numbers follow from `seed`."""
    return Step(number=number, total=TOTAL, generator=torch.Generator().manual_seed(seed))


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Seed torch's global generator within, as the training loop does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@dataclass
class Run:
    """An objective at the beginning of a training run."""

    objective: Objective
    model: Model
    network: nn.Module
    inputs: Tensor
    labels: Tensor

    def losses(self, number: int = 0, *, seed: int = 0) -> Losses:
        """Return the losses of the batch in one step, whose random numbers follow from `seed`."""
        with _drawing(seed):
            found = self.objective.loss(self.network, self.inputs.clone(), self.labels, step(number, seed=seed))
        require(isinstance(found, Losses), f"`loss` returned {type(found).__name__}", advice="return `Losses(...)`")
        return found


class ObjectiveSubject:
    """An objective's class, its record, and parameters with small budgets."""

    def __init__(
        self, method: type[Objective], *, spec: ObjectiveSpec | None = None, parameters: Mapping[str, Any] | None = None
    ) -> None:
        """Check `method` with `parameters`, and with small budgets for parameters with the usual names."""
        self.method = method
        self.spec = spec
        self.given = dict(parameters or {})
        self._values: dict[str, Any] = {**small_parameters(method, SIDE), **self.given}
        self.name = spec.name if spec is not None else method.__name__
        self.seen = Observation()
        self._home: Callable[..., Model] | None = None

    def make(self) -> Objective:
        """Return a new instance with the quick parameters."""
        objective = self.method(**self._values)
        objective.name = self.name
        return objective

    def start(self, *, seed: int = 0) -> Run:
        """Return a new run on the first toy that the objective supports.

        Raises:
            Refused: It supports none.
        """
        model, objective, network = self.wrapped(seed=seed)
        inputs, labels = images(ROWS), torch.arange(ROWS) % len(CLASSES)
        try:
            with _drawing(seed):
                objective.begin(network, [(inputs, labels)], torch.Generator().manual_seed(seed), EPOCHS)
        except ParameterError:
            if self._values == self.given:
                raise
            self._values = self.given  # a small budget does not fit its other parameters
            return self.start(seed=seed)
        return Run(objective, model, network.train(), inputs, labels)

    def wrapped(self, *, seed: int = 0) -> tuple[Model, Objective, nn.Module]:
        """Return a new toy, a new objective, and the network that it returns for training, in evaluation mode."""
        reasons = []
        for toy in (self._home,) if self._home else (tiny_cnn, tiny_vit, tiny_plain):
            model, objective = toy(seed=seed), self.make()
            model.module.requires_grad_(True)
            try:
                with _drawing(seed):
                    network = objective.wrap(model)
            except ModelError as error:
                reasons.append(str(error))
                continue
            self._home = toy
            return model, objective, network.requires_grad_(True).eval()
        raise Refused(f"it refuses every network of the kit: {reasons[0]}")

    def exercise(self) -> None:
        """Create it and run it once, observed."""
        with observed(self.seen):
            run = self.start()
            run.losses().total.backward()
            run.objective.finish(run.network)
