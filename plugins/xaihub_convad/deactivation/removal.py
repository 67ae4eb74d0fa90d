"""Activation-Deactivation (Chanchal, Kelly, Chockler 2025, arXiv 2510.01038): mask pixels inside the network.

There is no fill value. The mask is passed through the network with the image, and every unit that represents masked
pixels is set to zero, so that nothing flows from it to the next layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from xaihub import ExplainerRefused, Model, ParameterError
from xaihub.masking import Removal, variant_scores
from xaihub_convad.deactivation.live_map import Aligned, Layerwise
from xaihub_convad.deactivation.rules import RULES
from xaihub_convad.deactivation.tokens import TokenNetwork
from xaihub_convad.deactivation.tracking import Tracker

# A mask may have soft borders; a unit is either active or not.
KEPT = 0.5


class Deactivation(Removal):
    """Switches off units that represent masked pixels, in convolutional networks and plain vision transformers.

    Attributes:
        rule: A unit's active fraction is that of its cell of the input mask ("aligned"), or that of its window in the
            previous layer's live map ("layerwise").
        threshold: Minimum active fraction for a unit to stay active, in (0, 1].
        pooling: Spatial means count inactive units as 0 ("plain") or exclude them ("live"); dropped tokens are always
            excluded.
        padding: What convolutions read in place of inactive units: "zero", or the mean of active "neighbours".
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
        for name, value, choices in (
            ("rule", rule, ("aligned", "layerwise")),
            ("pooling", pooling, ("plain", "live")),
            ("padding", padding, ("zero", "neighbours")),
        ):
            if value not in choices:
                raise ParameterError(f"{name}={value!r} is not one of {', '.join(choices)}")
        if not 0 < threshold <= 1:
            raise ParameterError(f"threshold={threshold!r} is not in (0, 1]")
        self.rule, self.threshold, self.pooling, self.padding = rule, threshold, pooling, padding

    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        """Return the (n, K) logits of the (C, H, W) image under each of (n, 1, H, W) masks."""
        return self.evaluate(model, image.expand(len(masks), -1, -1, -1), masks)

    def evaluate(self, model: Model, inputs: Tensor, masks: Tensor) -> Tensor:
        """Return the (N, K) logits of (N, C, H, W) inputs under (N, 1, H, W) masks.

        Raises:
            ParameterError: The masks do not fit.
            ExplainerRefused: As `forward`.
        """
        kept, network = self._kept(inputs, masks), model.module

        def run(call: Callable[[Tensor], Tensor], both: Tensor) -> Tensor:
            return self.forward(network, both[:, :-1].clone(), both[:, -1:], call=call)

        return variant_scores(model, self.name, run, torch.cat([inputs, kept.to(inputs.dtype)], dim=1))

    @property
    def name(self) -> str:
        """The options in words."""
        return f"deactivation rule={self.rule} threshold={self.threshold} pooling={self.pooling} padding={self.padding}"

    def forward(
        self, network: nn.Module, inputs: Tensor, masks: Tensor, *, call: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the outputs for (N, C, H, W) inputs under (N, 1, H, W) masks.

        Masked pixels may hold anything, NaN included. `call` runs the network (default: the module itself).

        Raises:
            ExplainerRefused: A layer, which is named, mixes positions in an unsupported way; or the network is a vision
                transformer, which supports neither the layerwise rule nor neighbours.
        """
        call = call or network
        tokens = TokenNetwork.of(network)
        if tokens is not None:
            if (self.rule, self.padding) != ("aligned", "zero"):
                raise ExplainerRefused(
                    f"rule={self.rule!r} with padding={self.padding!r} is not defined for vision transformers",
                    hint="use baseline=deactivate",
                )
            return tokens.forward(call, inputs, self._kept(inputs, masks), self.threshold)
        with self.tracking(network, inputs, masks) as tracker:
            return tracker.finish(call(tracker.start(inputs)))  # type: ignore[no-any-return]

    @contextmanager
    def tracking(self, network: nn.Module, inputs: Tensor, masks: Tensor) -> Iterator[Tracker]:
        """Gate everything that the network computes from `tracker.start(inputs)` in this context."""
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
                hint="give one single-channel mask per image",
            )
        return (masks >= KEPT).to(device=inputs.device, dtype=torch.float32)


class MaskedNetwork(nn.Module):
    """A network with the mask as an extra input, `network(x, mask)`; without one, NaN pixels are masked.

    The second form is for tools that can only fill pixels with a value.
    """

    def __init__(self, network: nn.Module, deactivation: Deactivation | None = None) -> None:
        """Store the network, which is not modified."""
        super().__init__()
        self.network = network
        self.deactivation = deactivation or Deactivation()

    def forward(self, inputs: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the outputs for (N, C, H, W) inputs under (N, 1, H, W) masks, 1 for visible pixels."""
        if masks is None:
            masks = (~inputs.isnan().any(1, keepdim=True)).to(torch.float32)
        return self.deactivation.forward(self.network, inputs, masks)
