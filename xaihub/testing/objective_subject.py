"""A training objective under test: created anew for each check, on a toy network and a batch of toy images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xaihub.errors import ModelError
from xaihub.models.model import Model
from xaihub.objective import Losses, Objective, Step
from xaihub.specs import ObjectiveSpec
from xaihub.testing.budgets import small_parameters
from xaihub.testing.catalogue import Refused, require
from xaihub.testing.process import Observation, observed
from xaihub.testing.toys import CLASSES, SIDE, images, tiny_cnn, tiny_plain, tiny_vit

ROWS = 6
TOTAL = 20  # optimizer steps of the run that steps belong to


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
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = self.objective.loss(
                self.network, self.inputs.clone(), self.labels, Step(number=number, total=TOTAL, generator=generator)
            )
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
        self.name = spec.name if spec is not None else method.__name__
        self.seen = Observation()
        self._home: Callable[..., Model] | None = None

    def make(self) -> Objective:
        """Return a new instance with the quick parameters."""
        objective = self.method(**{**small_parameters(self.method, SIDE), **self.given})
        objective.name = self.name
        return objective

    def start(self, *, seed: int = 0) -> Run:
        """Return a new run on the first toy that the objective supports.

        Raises:
            Refused: It supports none.
        """
        reasons = []
        for toy in (self._home,) if self._home else (tiny_cnn, tiny_vit, tiny_plain):
            model, objective = toy(seed=seed), self.make()
            model.module.requires_grad_(True)
            try:
                network = objective.wrap(model)
            except ModelError as error:
                reasons.append(str(error))
                continue
            self._home = toy
            inputs = images(ROWS)
            labels = torch.arange(ROWS) % len(CLASSES)
            network.requires_grad_(True).eval()
            objective.begin(network, [(inputs, labels)], torch.Generator().manual_seed(seed), 1)
            return Run(objective, model, network.train(), inputs, labels)
        raise Refused(f"it refuses every network of the kit: {reasons[0]}")

    def exercise(self) -> None:
        """Create it and run it once, observed."""
        with observed(self.seen):
            run = self.start()
            run.losses().total.backward()  # type: ignore[no-untyped-call]
            run.objective.finish(run.network)
