"""What the three objectives share: cross-entropy plus gamma times a penalty, and when gamma is calibrated."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from xaihub import Finished, Losses, Model, Objective, ParameterError, Step
from xaihub.masking import Segments, make_features
from xaihub_expo.mlp import calibrated

__all__ = ["Expo", "Outputs", "steady"]

MANY = 10  # classes above which only the true one and the best others are penalised
RIVALS = 4  # those others


class Expo(Objective):
    """Cross-entropy and a penalty whose weight is calibrated once: gamma = c L_0 / R_0 on a batch held out.

    With `warmup` epochs of plain training, that batch is the first that is validated on after the last of them (the
    first training batch that follows, where nothing is held out). Until then a fresh head would make both numbers
    meaningless.
    """

    c: float
    weight: float | None
    relative: bool
    penalty_batch: int | None
    every: int
    warmup: int

    _model: Model | None = field(default=None, init=False)
    _cells: Segments | None = field(default=None, init=False)

    def wrap(self, model: Model) -> nn.Module:
        """Return the model's own network; its preprocessing gives the units of pixels."""
        self._model, self._cells = model, None
        network: nn.Module = model.module
        return network

    def finish(self, network: nn.Module) -> Finished:
        """Return the network, whose architecture is unchanged."""
        return Finished(network=network, wrapped=False)

    def begin(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], generator: torch.Generator, epochs: int
    ) -> None:
        """Fix the weight, if that needs no warm-up; else try the penalty once, so that it refuses its parameters now.

        Raises:
            ParameterError: No epoch is left after the warm-up, or the penalty refuses its parameters.
        """
        if self.weight is not None or self.c == 0:
            self.state["gamma"] = self.weight or 0.0
        elif self.warmup >= epochs:
            raise ParameterError(
                f"{self.name or type(self).__name__}: no epoch is left after a warm-up of {self.warmup}",
                hint="train for more epochs, or use warmup=0",
            )
        for inputs, labels in islice(batches, 1):
            with torch.no_grad():
                logits = network(inputs)
                if self.warmup == 0 and "gamma" not in self.state:
                    self._calibrate(network, inputs, labels, logits, generator)
                elif self.state.get("gamma", 1.0):
                    self._penalty(network, inputs[:1], labels[:1], logits[:1], generator)

    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        """Return cross-entropy and weighted penalty."""
        logits = network(inputs)
        cost = F.cross_entropy(logits.float(), labels)
        learning = torch.is_grad_enabled()  # a frozen network is in evaluation mode even then
        if self._due(learning=learning):
            with torch.no_grad():
                self._calibrate(network, inputs, labels, logits, step.generator)
        gamma = float(self.state.get("gamma", 0.0))
        turn = self.every if learning else 1
        # All of what is held out is judged alike; while learning, the skipped steps are made up for.
        if gamma == 0 or (learning and step.number % self.every):
            return Losses(terms={"cross_entropy": cost}, logits=logits, notes={"gamma": gamma})
        penalty = self._penalty(network, inputs, labels, logits, step.generator)
        terms = {"cross_entropy": cost, "expo": gamma * turn * penalty}
        return Losses(terms=terms, logits=logits, notes={"gamma": gamma, "penalty": turn * float(penalty.detach())})

    def comparable(self, epoch: int) -> bool:
        """Tell whether what is held out was judged with the penalty already."""
        return self.c == 0 or self.weight is not None or epoch >= self.warmup

    def epoch_end(self, network: nn.Module, epoch: int) -> Mapping[str, Any]:  # noqa: ARG002 - as in the base class
        """Count the epochs, and note the weight."""
        self.state["epochs"] = epoch
        return {"gamma": self.state.get("gamma")}

    def _due(self, *, learning: bool) -> bool:
        """Tell whether the weight is to be fixed by this batch."""
        if self.c == 0 or self.weight is not None or "gamma" in self.state:
            return False
        epochs = int(self.state.get("epochs", 0))
        return epochs >= self.warmup or (not learning and epochs == self.warmup - 1)

    def _calibrate(
        self, network: nn.Module, inputs: Tensor, labels: Tensor, logits: Tensor, generator: torch.Generator
    ) -> None:
        """Fix the weight by a batch; whoever draws from the same generator afterwards draws what it would have.

        All images of the batch are penalised, as many at once as in a step: single images differ several-fold.
        """
        own = torch.Generator().set_state(generator.get_state())
        loss = float(F.cross_entropy(logits.float(), labels))
        shares = [
            len(rows) / len(inputs) * float(self._of(rows, network, inputs, labels, logits, own))
            for rows in self._parts(inputs, own)
        ]
        penalty = sum(shares)
        self.state.update(gamma=calibrated(self.c, loss, penalty), loss_at_start=loss, penalty_at_start=penalty)

    def _penalty(
        self, network: nn.Module, inputs: Tensor, labels: Tensor, logits: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the penalty of some rows of a batch whose logits are known."""
        return self._of(self._parts(inputs, generator)[0], network, inputs, labels, logits, generator)

    def _parts(self, inputs: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
        """Return the rows of a batch in parts, drawn at random, of as many as a step penalises."""
        count = min(self.penalty_batch or self.rows(len(inputs)), len(inputs))
        order = torch.randperm(len(inputs), generator=generator) if count < len(inputs) else torch.arange(count)
        parts: Sequence[Tensor] = order.to(inputs.device).split(count)
        return parts

    def _of(
        self,
        rows: Tensor,
        network: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        logits: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        outputs = Outputs(labels[rows], logits[rows], centred=self.relative)
        return self.penalty(network, inputs[rows], logits[rows], outputs, generator)

    def known(self) -> Model:
        """Return the model that is trained.

        Raises:
            ParameterError: `wrap` was not called.
        """
        if self._model is None:
            raise ParameterError("this objective has no model yet", hint="call wrap(model) first")
        return self._model

    def cells(self, side: int, inputs: Tensor) -> Segments:
        """Return a grid over inputs of this size."""
        if self._cells is None or self._cells.size != tuple(inputs.shape[-2:]):
            self._cells = make_features(f"grid:{side}", self.known(), inputs[0])
        return self._cells

    @abstractmethod
    def rows(self, batch: int) -> int:
        """Return how many images of a batch are penalised by default."""

    @abstractmethod
    def penalty(
        self, network: nn.Module, inputs: Tensor, logits: Tensor, outputs: Outputs, generator: torch.Generator
    ) -> Tensor:
        """Return the penalty of (b, C, H, W) inputs with their (b, K) logits, a scalar in float32."""


class Outputs:
    """The logits of each image that are penalised: all, or of many classes the true one and its best rivals.

    The mean logit is then taken away first, since the softmax does not see it. Relative penalties always need that:
    all logits rising together would make what they divide by larger at no cost.
    """

    def __init__(self, labels: Tensor, logits: Tensor, *, centred: bool = False) -> None:
        self._chosen: Tensor | None = None
        self._centred = centred or logits.shape[1] > MANY
        if logits.shape[1] > MANY:
            others = logits.detach().float().scatter(1, labels.unsqueeze(1), float("-inf"))
            self._chosen = torch.cat([labels.unsqueeze(1), others.topk(RIVALS, dim=1).indices], 1)  # (b, 1 + RIVALS)

    def __call__(self, logits: Tensor) -> Tensor:
        """Choose from (b, m, K) logits, in float32."""
        logits = logits.float()
        if self._centred:
            logits = logits - logits.mean(2, keepdim=True)
        if self._chosen is None:
            return logits
        return logits.gather(2, self._chosen.unsqueeze(1).expand(-1, logits.shape[1], -1))


def steady(network: nn.Module) -> bool:
    """Tell whether the network answers in its present mode as it does in evaluation mode."""
    return not any(_varies(module) for module in network.modules() if module.training)


def _varies(module: nn.Module) -> bool:
    """Tell whether a module in training mode may compute other than in evaluation mode."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return True
    # The names of probabilities in torch (p), in timm (drop_prob, drop_rate) and in torchvision (p).
    rates = (getattr(module, name, 0.0) for name in ("p", "drop_prob", "drop_rate"))
    return any(isinstance(rate, (int, float)) and rate > 0 for rate in rates)
