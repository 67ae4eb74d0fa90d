"""Heads: functions that turn whatever a network returns into rows of scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xaihub.errors import ModelError, ParameterError
from xaihub.models.outputs import Outputs
from xaihub.models.process import fenced
from xaihub.params import Parametrised
from xaihub.records import canonical


class Head(Parametrised, ABC):
    """Turns what a network returns (a tensor, a tuple, a dictionary, anything) into (B, K) rows of scores.

    Attributes:
        outputs: The meaning of the rows; values by default.
        classes: The names of the columns; empty if they have none.
        title: What the record calls it; the head's name by default.
        identity: What else distinguishes it from heads of the same title, such as a hash.

    Example::

        class Area(Head):
            def rows(self, outputs):
                return outputs["masks"].sigmoid().mean((2, 3))
    """

    noun: ClassVar[str] = "head"
    outputs = Outputs("regression")
    classes: tuple[str, ...] = ()
    title = ""
    identity = ""

    @abstractmethod
    def rows(self, outputs: Any) -> Tensor:
        """Return (B, K) scores for the outputs of B images; differentiable wherever the network is."""

    def bind(self, model: Any) -> None:
        """Look at the `xaihub.Model` whose network returns the outputs, such as for names; called once, first."""


def identified(head: Head) -> list[str]:
    """Return what results of a head depend on: title, identity, parameters, and the plugin with its version."""
    own = {item.name: getattr(head, item.name) for item in fields(head)}  # a constructor's are in `identity`
    return [head.title, head.identity, canonical(own), *([head.origin.described] if head.origin.plugin else [])]


def of_plugin(head: Head) -> AbstractContextManager[None]:
    """Return the fence around the code of a plugin's head; what a function of the user's raises is the user's."""
    return fenced(head) if head.origin.plugin else nullcontext()


class Shell(nn.Module, ABC):
    """A network inside another module, with the network's own layers under the network's own names.

    Hooks, layer names, weights and their hash are those of the network, so that whatever reads a layer or calls the
    network sees the shell's outputs without knowing of it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.__dict__["shell_network"] = network  # not a submodule, whose layers would get a prefix
        for table in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[table] = network.__dict__[table]

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the network."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "shell_network" not in self.__dict__:  # while it is copied
                raise
            return getattr(self.shell_network, name)

    @abstractmethod
    def around(self, network: nn.Module) -> Shell:
        """Return the same shell of another network."""

    def train(self, mode: bool = True) -> Shell:
        """Switch the mode of the network, in its own way."""
        self.shell_network.train(mode)
        return self

    @property
    def training(self) -> bool:
        """The network's own mode."""
        return bool(self.shell_network.training)

    @training.setter
    def training(self, mode: bool) -> None:
        if "shell_network" in self.__dict__:  # not while it is made
            self.shell_network.training = mode


class Headed(Shell):
    """A network followed by a head."""

    def __init__(self, network: nn.Module, head: Head) -> None:
        super().__init__(network)
        self.__dict__["shell_head"] = head

    def around(self, network: nn.Module) -> Headed:
        """Return the same shell of another network."""
        return Headed(network, self.shell_head)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, K) scores of (B, C, H, W) inputs."""
        outputs = self.shell_network(inputs)
        with of_plugin(self.shell_head):
            scores: Tensor = self.shell_head.rows(outputs)
        return scores


class BeforeClassifier(Shell):
    """A network that returns what its classifier reads."""

    def __init__(self, network: nn.Module, classifier: str) -> None:
        super().__init__(network)
        self.__dict__["shell_reads"] = classifier

    def around(self, network: nn.Module) -> BeforeClassifier:
        """Return the same shell of another network."""
        return BeforeClassifier(network, self.shell_reads)

    def forward(self, inputs: Tensor) -> Any:
        """Return the input of the classifier's last call."""
        read: list[Any] = []
        classifier = self.shell_network.get_submodule(self.shell_reads)
        handle = classifier.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        try:
            self.shell_network(inputs)
        finally:
            handle.remove()
        return read[-1]


def without_head(network: nn.Module) -> nn.Module:
    """Return what a head reads: the network itself, or what its classifier reads."""
    return network.shell_network if isinstance(network, Headed) else network


class Columns(Head):
    """One column per output; a network may return a vector of one output per image instead."""

    def rows(self, outputs: Any) -> Tensor:
        """Return (B, K) outputs as they are, and (B,) as (B, 1)."""
        whole: Tensor = outputs.unsqueeze(1) if isinstance(outputs, Tensor) and outputs.ndim == 1 else outputs
        return whole


class Signed(Columns):
    """The two sides of one logit."""

    def rows(self, outputs: Any) -> Tensor:
        """Return (B, 2): minus the logit, and the logit.

        Raises:
            ModelError: The network does not return one output per image.
        """
        logit = super().rows(outputs)
        if not isinstance(logit, Tensor) or logit.ndim != 2 or logit.shape[1] != 1:
            shape = tuple(logit.shape) if isinstance(logit, Tensor) else type(logit).__name__
            raise ModelError(
                f"binary outputs are one logit per image, but the network returned {shape}",
                hint="declare multiclass, multilabel or regression",
            )
        return torch.cat([-logit, logit], dim=1)


class FunctionHead(Head):
    """A function of the user's as a head; its scores are values."""

    def __init__(self, function: Callable[[Any], Tensor] | None = None, name: str = "") -> None:
        """Keep the function, which returns one score per image; by default its own name is recorded.

        Raises:
            ParameterError: There is no function.
        """
        if function is None:
            raise ParameterError("a target needs a function of the outputs")
        own = getattr(function, "__name__", "")
        self.function = function
        self.name = self.title = name or ("score" if own in ("", "<lambda>") else own.replace("_", " "))
        self.classes = (self.title,)

    def rows(self, outputs: Any) -> Tensor:
        """Return (B, K) scores.

        Raises:
            ModelError: The function does not return one score per image.
        """
        scores = self.function(outputs)
        if not isinstance(scores, Tensor) or scores.numel() != len(scores):
            what = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise ModelError(f"the target {self.title!r} returned {what}", hint="return one score per image")
        return scores.reshape(len(scores), -1)
