"""HiResCAM (Draelos and Carin 2020, arXiv 2011.08891)."""

from __future__ import annotations

from torch import Tensor

from xaihub import ExplainerRefused, Layer, Model, ResolvedTarget
from xaihub_cam.base import CAM, activations_and_gradients

__all__ = ["HiResCAM"]

# A normalisation of each cell's channels does not change when they are scaled, so the gradient is orthogonal to the
# activations and the sum is rounding error. Largest ratio over a map, measured on 20 families with random weights:
# at most 2e-6 where it cancels, at least 2e-2 elsewhere.
CANCELLED = 1e-3


class HiResCAM(CAM):
    """Sum gradient times activation over the channels of each cell."""

    plain_first = True

    def maps(self, model: Model, layer: Layer, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        """Return the (B, h, w) maps."""
        cells, gradients = activations_and_gradients(model, layer, inputs, target)
        terms = gradients * cells  # (B, C, h, w)
        sums, sizes = terms.sum(1), terms.abs().sum(1)
        if bool((sizes.amax((1, 2)) > 0).any()) and bool((sums.abs() <= CANCELLED * sizes).all()):
            raise ExplainerRefused(
                f"HiResCAM is zero on layer {layer.name!r} whatever the image: a normalisation of each cell follows,"
                " so gradient times activation cancels",
                hint="use gradcam or layercam",
            )
        return sums.relu()
