"""The base class of training objectives: what is minimised, and how the network is changed for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xaihub.models.model import Model
from xaihub.params import Parametrised

__all__ = ["Finished", "Group", "Losses", "Objective", "Step", "evaluation_mode"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of training, and its random numbers.

    Attributes:
        number: Optimiser steps done before this one.
        total: Optimiser steps of the whole run.
        generator: A generator on the CPU that the run's seed and `number` fix together, so that a resumed run draws
            what an undisturbed one would have drawn. torch's global generator is seeded in the same way.
    """

    number: int
    total: int
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What one batch costs.

    Attributes:
        terms: Scalar tensors by name; training minimises their sum.
        logits: (B, K) class scores of the unchanged inputs, for the accuracy.
        notes: Further figures for the log.
    """

    terms: Mapping[str, Tensor]
    logits: Tensor
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The scalar that is minimised."""
        return torch.stack([term.float() for term in self.terms.values()]).sum()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Weights that are trained otherwise than the rest.

    Attributes:
        weights: The parameters.
        lr_scale: Factor on the learning rate.
        weight_decay: Their own weight decay, or None for that of the run.
        like_head: The factor is on the classifier's learning rate, which has a factor of its own.
    """

    weights: list[nn.Parameter]
    lr_scale: float = 1.0
    weight_decay: float | None = None
    like_head: bool = False


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A trained network, as it is saved.

    Attributes:
        network: What is saved.
        wrapped: Whether `wrap` must be called again before the weights fit; if not, the model's card needs no plugin.
    """

    network: nn.Module
    wrapped: bool


class Objective(Parametrised, ABC):
    """One way to train a model so that it can be explained. Parameters are declared as in an `Explainer`.

    The training service owns data, optimiser, schedule, checkpoints and precision; an objective owns the loss, and
    the change of the network if there is one. Methods are called in the order `wrap`, `begin`, then for each epoch
    `loss` at every step and `epoch_end`, at last `finish`.

    Attributes:
        on_features: `loss` asks the network about the given inputs only and as they are, so that with a frozen
            backbone the inputs of `trainable` may be computed once and kept. An objective that changes the inputs
            (masks, noise) leaves this False.

    Example::

        class LabelSmoothing(Objective):
            on_features = True

            smoothing: Annotated[float, Meta(ge=0, lt=1, description="...")] = 0.1

            def loss(self, network, inputs, labels, step):
                logits = network(inputs)
                cost = F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
                return Losses(terms={"cross_entropy": cost}, logits=logits)
    """

    on_features: ClassVar[bool] = False

    # What an objective need not say does nothing here, and so leaves arguments unused.
    # ruff: noqa: ARG002

    def wrap(self, model: Model) -> nn.Module:
        """Return the network to train: the model's own, or one around it.

        Called before training, when the model has its own weights and as many classes as the data, and again
        whenever the result is loaded, with arbitrary weights that are overwritten afterwards. The parts and their
        names may depend on the objective's parameters and the model's architecture only.

        Raises:
            ModelError: The architecture does not suit the objective (say why).
        """
        network: nn.Module = model.module
        return network

    def trainable(self, network: nn.Module, head: nn.Module) -> nn.Module:
        """Return the part that learns when the backbone is frozen; it must end at the logits.

        Args:
            network: What `wrap` returned.
            head: The classifier of the model before it was wrapped.
        """
        return head

    def groups(self, network: nn.Module) -> list[Group]:
        """Return the weights that need their own learning rate or weight decay; the rest is the run's."""
        return []

    def begin(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], generator: torch.Generator, epochs: int
    ) -> None:
        """Prepare once before the first step, for instance calibrate a penalty and note it in `state`.

        Args:
            network: What `wrap` returned, in evaluation mode.
            batches: Batches of (B, C, H, W) inputs and (B,) labels held out for validation, without augmentation.
            generator: Fixed by the run's seed.
            epochs: Of the whole run.

        Raises:
            ParameterError: A parameter does not suit the run. Nothing has been written yet.
        """

    @abstractmethod
    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        """Return what a batch costs; also called on validation batches, in evaluation mode and without a graph.

        There a term whose weight grows during training has its last weight, so that epochs can be compared.

        Args:
            network: What `wrap` returned (or its trainable part, with kept features as inputs).
            inputs: (B, C, H, W) in the model's units.
            labels: (B,) class indices.
            step: Where training stands.
        """

    def comparable(self, epoch: int) -> bool:
        """Tell whether the loss on what is held out after an epoch (counted from 1) is that of all later ones.

        The best epoch is one of those, unless there are none.
        """
        return True

    def epoch_end(self, network: nn.Module, epoch: int) -> Mapping[str, Any]:
        """Return what belongs into the record of an epoch (counted from 1); JSON types only."""
        return {}

    def finish(self, network: nn.Module) -> Finished:
        """Return the network as it is to be saved."""
        return Finished(network=network, wrapped=type(self).wrap is not Objective.wrap)

    @cached_property
    def state(self) -> dict[str, Any]:
        """What must survive an interruption besides the weights; JSON types only."""
        return {}


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Switch off batch statistics, dropout and dropped paths inside, for a loss that asks the network as it is used.

    Afterwards each module is back in the mode it was in, which `network.train()` would not do: norms may be frozen.
    Gradients are computed as before.
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
