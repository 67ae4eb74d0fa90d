"""Training objectives: the loss, and the change of the network that it needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, wraps
from inspect import isfunction
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from xaihub.models.model import Model
from xaihub.models.process import fenced
from xaihub.params import Parametrised


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step and its random numbers.

    Attributes:
        number: Optimizer steps completed before this one.
        total: Optimizer steps of the whole run.
        generator: A CPU generator seeded by the run's seed and `number`, so that a resumed run draws the same numbers
            as an uninterrupted one. torch's global generator is seeded in the same way.
    """

    number: int
    total: int
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The losses of one batch.

    Attributes:
        terms: Scalar tensors by name; training minimises their sum.
        logits: (B, K) class scores of the unmodified inputs, for the accuracy.
        notes: Further numbers for the log; a scalar tensor spares an accelerator the wait for its value.
    """

    terms: Mapping[str, Tensor]
    logits: Tensor
    notes: Mapping[str, float | Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The scalar that training minimises."""
        return torch.stack([term.float() for term in self.terms.values()]).sum()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Weights with their own learning rate or weight decay.

    Attributes:
        weights: The parameters.
        lr_scale: Learning-rate multiplier.
        weight_decay: Weight decay, or None for the run's.
        like_head: Multiply the classifier's learning rate instead of the run's.
    """

    weights: list[nn.Parameter]
    lr_scale: float = 1.0
    weight_decay: float | None = None
    like_head: bool = False


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A trained network as it is saved.

    Attributes:
        network: The network to save.
        wrapped: Whether `wrap` must be called again before the weights fit; if not, the model's card needs no plugin.
    """

    network: nn.Module
    wrapped: bool


class Objective(Parametrised, ABC):
    """A training objective for models that can be explained. Parameters are declared as in an `Explainer`.

    The training loop owns data, optimizer, schedule, checkpoints and precision; an objective owns the loss, and the
    change of the network if there is one. Methods are called in the order `wrap`, `begin`, then in each epoch `loss` at
    every step, `epoch_end` and `figures`, finally `finish` and `advice`.

    Attributes:
        on_features: `loss` runs the network on the given inputs only, unmodified, so that with a frozen backbone the
            inputs of `trainable` can be computed once and cached. An objective that changes the inputs (masks, noise)
            leaves this False.
        soft_labels: `loss` also takes (B, K) class probabilities as labels, which mixup and CutMix make.
        weighs_classes: `loss` takes its cross-entropy from `cross_entropy`, which applies the plan's class weights.

    Example::

        class LabelSmoothing(Objective):
            on_features = True
            weighs_classes = True

            smoothing: Annotated[float, Meta(ge=0, lt=1, description="...")] = 0.1

            def loss(self, network, inputs, labels, step):
                logits = network(inputs)
                cost = self.cross_entropy(logits, labels, smoothing=self.smoothing)
                return Losses(terms={"cross_entropy": cost}, logits=logits)
    """

    on_features: ClassVar[bool] = False
    noun: ClassVar[str] = "objective"
    soft_labels: ClassVar[bool] = False
    weighs_classes: ClassVar[bool] = False

    # The optional methods do nothing by default, so their arguments are unused.
    # ruff: noqa: ARG002

    def wrap(self, model: Model) -> nn.Module:
        """Return the network to train: the model's own, or a module around it.

        Called before training, with the model's weights and the data's classes, and again whenever the result is
        loaded, with arbitrary weights that are overwritten afterwards. Submodules and their names may depend only on
        the objective's parameters and the model's architecture.

        Raises:
            ModelError: The architecture is not supported; the message gives the reason.
        """
        network: nn.Module = model.module
        return network

    def trainable(self, network: nn.Module, head: nn.Module) -> nn.Module:
        """Return the part that is trained when the backbone is frozen; it must end at the logits.

        Args:
            network: The network that `wrap` returned.
            head: The model's classifier before `wrap`.
        """
        return head

    def groups(self, network: nn.Module) -> list[Group]:
        """Return the weights that need their own learning rate or weight decay."""
        return []

    def begin(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], generator: torch.Generator, epochs: int
    ) -> None:
        """Prepare once before the first step, for instance calibrate a penalty and store it in `state`.

        Args:
            network: The network that `wrap` returned, in evaluation mode.
            batches: Validation batches of (B, C, H, W) inputs and (B,) labels, without augmentation.
            generator: Seeded by the run's seed.
            epochs: Number of epochs of the run.

        Raises:
            ParameterError: A parameter is not valid for the run. Nothing has been written yet.
        """

    @abstractmethod
    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        """Return the losses of a batch; also called on validation batches, in evaluation mode and without a graph.

        On validation batches, a term whose weight grows during training must use its final weight, so that epochs can
        be compared.

        Args:
            network: The network that `wrap` returned (or its trainable part, with cached features as inputs).
            inputs: (B, C, H, W) in the model's units.
            labels: (B,) class indices; with `soft_labels` also (B, K) class probabilities.
            step: The optimizer step.
        """

    def cross_entropy(self, logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Return the mean over rows of -w[label] log softmax(logits)[label], in float32, with `class_weights` w.

        The mean divides by the number of rows, not by the sum of their weights as torch does, so that a row counts the
        same in every batch (our choice). Without weights this is torch's cross-entropy.

        Args:
            logits: (B, K) class scores.
            labels: (B,) class indices or (B, K) class probabilities.
            smoothing: Label smoothing, from 0 to 1.
        """
        weights = self.class_weights
        if weights is None:
            return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        weights = weights.to(logits.device)
        total = F.cross_entropy(logits.float(), labels, weights, label_smoothing=smoothing, reduction="sum")
        return total / len(labels)

    def comparable(self, epoch: int) -> bool:
        """Return whether the validation loss after an epoch (counted from 1) is comparable with all later ones.

        The best epoch is chosen among comparable epochs, unless there are none.
        """
        return True

    def epoch_end(self, network: nn.Module, epoch: int) -> Mapping[str, Any]:
        """Return entries for the record of an epoch (counted from 1); JSON types only.

        Numbers are also shown on the epoch's line; the names are those that users read.
        """
        return {}

    def figures(self, network: nn.Module, record: Mapping[str, Any]) -> Mapping[str, float]:
        """Return what the line of an epoch and, for the saved epoch, the model card report in addition to the losses.

        Args:
            network: The network whose weights would be saved, in evaluation mode.
            record: The epoch's means: "train/NAME" and "val/NAME" of terms and notes; without held-out images there is
                no "val/NAME".
        """
        return {}

    def advice(self, figures: Mapping[str, float]) -> list[str]:
        """Return warnings about the saved network, whose `figures` are given; each a lower-case line."""
        return []

    def finish(self, network: nn.Module) -> Finished:
        """Return the network to save."""
        return Finished(network=network, wrapped=type(self).wrap is not Objective.wrap)

    @cached_property
    def class_weights(self) -> Tensor | None:
        """(K,) factors on the cross-entropy of each class, set before training; None weighs all classes alike."""
        return None

    @cached_property
    def state(self) -> dict[str, Any]:
        """State that a checkpoint stores in addition to the weights; JSON types only."""
        return {}


_METHODS = [name for name, value in vars(Objective).items() if isfunction(value) and not name.startswith("_")]


def fenced_objective(objective: Objective) -> Objective:
    """Return the objective with methods that raise, in place of whatever they raise, an error that names the plugin."""

    def fence(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **values: Any) -> Any:
            with fenced(objective):
                return method(*args, **values)

        return call

    for name in _METHODS:
        setattr(objective, name, fence(getattr(objective, name)))
    return objective


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Switch off batch statistics, dropout and stochastic depth within, so that a loss sees the network as it is used.

    On leaving, each module returns to its previous mode, which `network.train()` would not do: norms may be frozen.
    Gradients are computed as before.
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
