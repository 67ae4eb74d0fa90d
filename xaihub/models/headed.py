"""Heads: functions that turn whatever a network returns into rows of scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from xaihub.errors import ModelError


class RowsHead(ABC):
    """Turns what a network returns into (B, K) rows of scores."""

    @abstractmethod
    def rows(self, outputs: Any) -> Tensor:
        """Return (B, K) scores for the outputs of B images; must be differentiable wherever the network is."""


class Headed(nn.Module):
    """A network followed by a head, with the network's own layers under the network's own names.

    Hooks, layer names, weights and their hash are those of the network, so that whatever reads a layer or calls the
    network sees rows of scores without knowing of the head.
    """

    def __init__(self, network: nn.Module, head: RowsHead) -> None:
        super().__init__()
        self.__dict__.update(network=network, head=head)  # not a submodule, whose layers would get a prefix
        for table in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[table] = network.__dict__[table]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, K) scores of (B, C, H, W) inputs."""
        scores: Tensor = self.head.rows(self.network(inputs))
        return scores

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the network."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "network" not in self.__dict__:  # while it is copied
                raise
            return getattr(self.network, name)

    @property
    def training(self) -> bool:
        """The network's own mode."""
        return bool(self.network.training)

    @training.setter
    def training(self, mode: bool) -> None:
        if "network" in self.__dict__:  # not while it is made
            self.network.training = mode


def without_head(network: nn.Module) -> nn.Module:
    """Return the network itself."""
    return network.network if isinstance(network, Headed) else network


class Columns(RowsHead):
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
