"""Activation-Deactivation (Chanchal, Kelly, Chockler 2025, arXiv 2510.01038): hide pixels inside the network.

No fill value is chosen. The mask travels with the image, and every unit that stands for hidden pixels is set to zero,
so that nothing flows from it to the next layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from xaihub import ExplainerRefused, Model, ParameterError
from xaihub.masking import Removal
from xaihub_convad.live import Aligned, Layerwise
from xaihub_convad.rules import RULES
from xaihub_convad.tokens import TokenNetwork
from xaihub_convad.tracking import Tracker

__all__ = [
    "Deactivation",
    "MaskedNetwork",
    "make_deactivation",
    "make_layerwise",
    "make_live",
    "make_neighbours",
    "make_whole",
]

# A mask may have soft borders; a unit is on or off.
KEPT = 0.5


class Deactivation(Removal):
    """Units that stand for hidden pixels are switched off, in any convolutional network or token transformer.

    Attributes:
        rule: "aligned" judges each unit by its cell of the image; "layerwise" by its window of the layer before.
        threshold: The share of live places from which on a unit stays on, in (0, 1].
        pooling: Means over places count what is off as 0 ("plain") or leave it out ("live"); dropped tokens are
            always left out.
        padding: What convolutions read where a place is off: "zero", or the mean of its live "neighbours".
    """

    def __init__(
        self,
        *,
        rule: Literal["aligned", "layerwise"] = "aligned",
        threshold: float = 0.5,
        pooling: Literal["plain", "live"] = "plain",
        padding: Literal["zero", "neighbours"] = "zero",
    ) -> None:
        """Check and store the options.

        Raises:
            ParameterError: An option is not one of the above.
        """
        choices = {"rule": ("aligned", "layerwise"), "pooling": ("plain", "live"), "padding": ("zero", "neighbours")}
        for name, value in (("rule", rule), ("pooling", pooling), ("padding", padding)):
            if value not in choices[name]:
                raise ParameterError(f"{name}={value!r} is not one of {', '.join(choices[name])}")
        if not 0 < threshold <= 1:
            raise ParameterError(f"threshold={threshold!r} is not in (0, 1]")
        self.rule = rule
        self.threshold = threshold
        self.pooling = pooling
        self.padding = padding

    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        """Return the (n, K) logits of the (C, H, W) image under each of (n, 1, H, W) masks."""
        return self.forward(model.module, image.expand(len(masks), -1, -1, -1), masks, call=model)

    def forward(
        self, network: nn.Module, inputs: Tensor, masks: Tensor, *, call: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the outputs for (N, C, H, W) inputs, each under its own one of (N, 1, H, W) masks.

        Hidden pixels may hold anything, NaN included. `call` runs the network, if not the module itself does.

        Raises:
            ExplainerRefused: Some layer mixes places in a way that is not covered; it is named. Or tokens are
                dropped, which knows neither the layerwise rule nor neighbours.
        """
        call = call or network
        tokens = TokenNetwork.of(network)
        if tokens is not None:
            if (self.rule, self.padding) != ("aligned", "zero"):
                raise ExplainerRefused(
                    f"rule={self.rule!r} with padding={self.padding!r} has no meaning where tokens are dropped",
                    hint="use baseline=deactivate",
                )
            return tokens.forward(call, inputs, self._kept(inputs, masks), self.threshold)
        with self.tracking(network, inputs, masks) as tracker:
            return tracker.finish(call(tracker.start(inputs)))  # type: ignore[no-any-return]

    @contextmanager
    def tracking(self, network: nn.Module, inputs: Tensor, masks: Tensor) -> Iterator[Tracker]:
        """Gate everything that the network computes inside from `tracker.start(inputs)`."""
        propagation = {"aligned": Aligned, "layerwise": Layerwise}[self.rule](self._kept(inputs, masks), self.threshold)
        with Tracker(
            network, propagation, RULES, pooling=self.pooling, neighbours=self.padding == "neighbours"
        ) as tracker:
            yield tracker

    @staticmethod
    def _kept(inputs: Tensor, masks: Tensor) -> Tensor:
        if masks.shape != (len(inputs), 1, *inputs.shape[2:]):
            raise ParameterError(
                f"masks of shape {tuple(masks.shape)} do not fit inputs of shape {tuple(inputs.shape)}",
                hint="one channel, and one mask an image",
            )
        return (masks >= KEPT).to(device=inputs.device, dtype=torch.float32)


class MaskedNetwork(nn.Module):
    """A network that takes a mask beside the image, `network(x, mask)`; without one, NaN pixels are the hidden ones.

    The second form is for tools that only know how to fill pixels with a value.
    """

    def __init__(self, network: nn.Module, deactivation: Deactivation | None = None) -> None:
        """Hold the network, which stays as it is."""
        super().__init__()
        self.network = network
        self.deactivation = deactivation or Deactivation()

    def forward(self, inputs: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the outputs for (N, C, H, W) inputs under (N, 1, H, W) masks, 1 for kept pixels."""
        if masks is None:
            masks = (~inputs.isnan().any(1, keepdim=True)).to(torch.float32)
        return self.deactivation.forward(self.network, inputs, masks)


def make_deactivation(model: Model, image: Tensor) -> Deactivation:  # noqa: ARG001
    """Return the recommended form: aligned rule, threshold one half, plain pooling."""
    return Deactivation()


def make_whole(model: Model, image: Tensor) -> Deactivation:  # noqa: ARG001
    """Return the form in which a unit is on only where every pixel that it stands for is shown."""
    return Deactivation(threshold=1.0)


def make_live(model: Model, image: Tensor) -> Deactivation:  # noqa: ARG001
    """Return the form whose means over places leave out what is off."""
    return Deactivation(pooling="live")


def make_layerwise(model: Model, image: Tensor) -> Deactivation:  # noqa: ARG001
    """Return the layer-by-layer rule; a threshold of one half would eat the corners of every mask, so it is 0.4."""
    return Deactivation(rule="layerwise", threshold=0.4)


def make_neighbours(model: Model, image: Tensor) -> Deactivation:  # noqa: ARG001
    """Return the form in which convolutions read the mean of live neighbours where a place is off."""
    return Deactivation(pooling="live", padding="neighbours")
