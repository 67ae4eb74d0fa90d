"""The base class of the three objectives: cross-entropy plus gamma times a penalty, and the calibration of gamma."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from itertools import islice
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from xaihub import Finished, Losses, Meta, Model, Objective, ParameterError, Step, When
from xaihub.masking import BaselineName, Segments, make_features
from xaihub_expo.penalties import calibrated

MANY = 10  # classes above which only the true one and its best rivals are penalised
RIVALS = 4
Grid = Annotated[int, Meta(ge=2, description="Cells per side of the grid whose opacities are the features.")]
Select = Callable[[Tensor], Tensor]


class Expo(Objective):
    """Cross-entropy plus a penalty whose weight is calibrated once: gamma = c L_0 / R_0 on a held-out batch.

    With `warmup` epochs of plain training, that is the first validation batch after them (the next training batch if no
    data are held out): with a fresh head neither loss nor penalty is meaningful.
    """

    weighs_classes = True
    penalised_in: ClassVar[int] = 1  # by default one in this many images is penalised

    c: Annotated[
        float,
        Meta(
            ge=0,
            description="Penalty as a fraction of the loss when it is switched on (the paper's c); 0: no penalty, so"
            " that the other parameters do nothing.",
        ),
        When(weight=None),
    ] = 0.01
    weight: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="Absolute penalty weight, instead of c.")
    ] = None
    relative: Annotated[
        bool,
        Meta(
            description="Divide by the variance of the logits on the neighbourhood (stability: by their mean square), "
            "so that smaller logits gain nothing."
        ),
    ] = False
    grid: Grid = 4
    baseline: BaselineName = "mean"
    penalty_batch: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Images per batch that are penalised [stability: all, 1d: a quarter, fidelity: a sixteenth]."),
    ] = None
    every: Annotated[int, Meta(ge=1, description="Apply the penalty every N steps, scaled by N.")] = 1
    warmup: Annotated[
        int,
        Meta(ge=0, description="Epochs of plain training before the weight is calibrated; 0: at the start."),
        When(weight=None),
    ] = 1

    _model: Model = field(init=False)  # set by `wrap`
    _cells: Segments | None = field(default=None, init=False)

    def wrap(self, model: Model) -> nn.Module:
        """Return the model's own network; its preprocessing gives the units of pixels.

        Raises:
            ParameterError: A parameter is out of range, or has no effect with the others.
        """
        self.check_parameters()
        self._model, self._cells = model, None
        network: nn.Module = model.module
        return network

    def finish(self, network: nn.Module) -> Finished:
        """Return the network, whose architecture is unchanged."""
        return Finished(network=network, wrapped=False)

    def begin(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], generator: torch.Generator, epochs: int
    ) -> None:
        """Fix the weight if there is no warm-up; else compute the penalty once, so that it refuses parameters now.

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
                    next(self._penalties(network, inputs[:1], labels[:1], logits[:1], generator))

    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        """Return cross-entropy and weighted penalty."""
        logits = network(inputs)
        cost = self.cross_entropy(logits, labels)
        learning = torch.is_grad_enabled()  # a frozen network is in evaluation mode even then
        if self._due(learning=learning):
            with torch.no_grad():
                self._calibrate(network, inputs, labels, logits, step.generator)
        gamma = float(self.state.get("gamma", 0.0))
        every = self.every if learning else 1  # validation always includes the penalty
        if gamma == 0 or step.number % every:
            return Losses(terms={"cross_entropy": cost}, logits=logits, notes={"gamma": gamma})
        _, penalty = next(self._penalties(network, inputs, labels, logits, step.generator))
        terms = {"cross_entropy": cost, "expo": gamma * every * penalty}
        return Losses(terms=terms, logits=logits, notes={"gamma": gamma, "penalty": every * float(penalty.detach())})

    def comparable(self, epoch: int) -> bool:
        """Return whether the validation of this epoch included the penalty."""
        return self.c == 0 or self.weight is not None or epoch >= self.warmup

    def epoch_end(self, network: nn.Module, epoch: int) -> Mapping[str, Any]:  # noqa: ARG002 - as in the base class
        """Count the epochs, and record the weight."""
        self.state["epochs"] = epoch
        return {"gamma": self.state.get("gamma")}

    def _due(self, *, learning: bool) -> bool:
        """Return whether this batch is the one that calibrates the weight."""
        if self.c == 0 or self.weight is not None or "gamma" in self.state:
            return False
        epochs = int(self.state.get("epochs", 0))
        return epochs >= self.warmup or (not learning and epochs == self.warmup - 1)

    def _calibrate(
        self, network: nn.Module, inputs: Tensor, labels: Tensor, logits: Tensor, generator: torch.Generator
    ) -> None:
        """Fix the weight on a batch, without advancing the generator.

        All images of the batch are penalised, in groups as large as in a step: single images differ several-fold.
        """
        own = torch.Generator().set_state(generator.get_state())
        loss = float(self.cross_entropy(logits, labels))
        penalty = sum(part * float(found) for part, found in self._penalties(network, inputs, labels, logits, own))
        self.state.update(gamma=calibrated(self.c, loss, penalty), loss_at_start=loss, penalty_at_start=penalty)

    def _penalties(
        self, network: nn.Module, inputs: Tensor, labels: Tensor, logits: Tensor, generator: torch.Generator
    ) -> Iterator[tuple[float, Tensor]]:
        """Split a batch at random into groups as large as one step penalises; yield their fractions and penalties."""
        count = min(self.penalty_batch or max(1, len(inputs) // self.penalised_in), len(inputs))
        order = torch.randperm(len(inputs), generator=generator) if count < len(inputs) else torch.arange(count)
        for rows in order.to(inputs.device).split(count):
            select = selection(labels[rows], logits[rows], centred=self.relative)
            yield len(rows) / len(inputs), self.penalty(network, inputs[rows], logits[rows], select, generator)

    def cells(self, inputs: Tensor) -> Segments:
        """Return the grid over inputs of this size."""
        if self._cells is None or self._cells.size != tuple(inputs.shape[-2:]):
            self._cells = make_features(f"grid:{self.grid}", self._model, inputs[0])
        return self._cells

    @abstractmethod
    def penalty(
        self, network: nn.Module, inputs: Tensor, logits: Tensor, select: Select, generator: torch.Generator
    ) -> Tensor:
        """Return the penalty of (b, C, H, W) inputs with their (b, K) logits, a scalar in float32."""


def selection(labels: Tensor, logits: Tensor, *, centred: bool = False) -> Select:
    """Return a function that selects the penalised logits: all, or with many classes the true one and its best rivals.

    In the latter case the mean logit is subtracted first, since the softmax ignores it. Relative penalties always
    need that: otherwise a term common to all logits would enlarge the denominator at no cost. The rivals of (b,) labels
    follow from the (b, K) logits of the unchanged images.
    """
    many = logits.shape[1] > MANY
    others = logits.detach().float().scatter(1, labels.unsqueeze(1), float("-inf"))
    chosen = torch.cat([labels.unsqueeze(1), others.topk(RIVALS, dim=1).indices], 1) if many else None

    def select(logits: Tensor) -> Tensor:  # (b, m, K) to (b, m, K or 1 + RIVALS), in float32
        logits = logits.float()
        if centred or many:
            logits = logits - logits.mean(2, keepdim=True)
        return logits if chosen is None else logits.gather(2, chosen.unsqueeze(1).expand(-1, logits.shape[1], -1))

    return select


def is_deterministic(network: nn.Module) -> bool:
    """Return whether the network's present mode gives the outputs of evaluation mode."""
    training = [module for module in network.modules() if module.training]
    # The names of probabilities in torch and torchvision (p) and in timm (drop_prob, drop_rate).
    rates = [getattr(module, name, 0.0) for module in training for name in ("p", "drop_prob", "drop_rate")]
    return not any(isinstance(module, nn.modules.batchnorm._NormBase) for module in training) and not any(
        isinstance(rate, (int, float)) and rate > 0 for rate in rates
    )
