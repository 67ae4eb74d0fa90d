"""HiResCAM, Grad-CAM++ and Smooth Grad-CAM++ from a layer's activations and gradients.

Draelos and Carin 2020, arXiv 2011.08891; Chattopadhay et al. 2018, arXiv 1710.11063; Omeiza et al. 2019, arXiv
1908.01224. Notation follows Eq. 19 of Grad-CAM++: A activations, alpha the coefficient of each cell, w the weight of
each channel; D1, D2, D3 are the gradients to the first, second and third power, averaged over noisy images in the
smooth variant.
"""

from __future__ import annotations

import warnings
from typing import Annotated

import torch
from torch import Tensor

from xaihub import ExplainerRefused, Layer, Meta, Model, Passes, ResolvedTarget, current_generator
from xaihub.masking import batch_rows
from xaihub_cam.base import CAM, activations, activations_and_gradients

# Normalising each cell's channels is invariant to their scale, so the gradient is orthogonal to the activations and the
# sum is rounding error. Largest ratio over a map, measured on 20 families with random weights: at most 2e-6 where it
# cancels, at least 2e-2 elsewhere.
CANCELLED = 1e-3
ROUNDING = 1e-5  # a variance of gradients below this fraction of their largest square is rounding error


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
                f"HiResCAM is zero on layer {layer.name!r} for every image: each cell is normalised next, so gradient"
                " times activation cancels",
                hint="use gradcam or layercam",
            )
        return sums.relu()


class GradCAMPlusPlus(CAM):
    """Weight each channel by its positive gradients, with one coefficient per cell."""

    plain_first = True

    def maps(self, model: Model, layer: Layer, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        """Return the (B, h, w) maps."""
        A, D1 = activations_and_gradients(model, layer, inputs, target)
        # D2 / (2 D2 + sum(A) D3) with D2 = D1^2 and D3 = D1^3: dividing by D2 avoids underflow.
        return _weighted(A, D1, torch.ones_like(D1), 2 + A.sum((2, 3), keepdim=True) * D1, layer)


class SmoothGradCAMPlusPlus(CAM):
    """Grad-CAM++ with the powers of the gradient averaged over noisy copies of the image."""

    stochastic = True

    samples: Annotated[
        int,
        Meta(ge=1, description="Number of noisy copies; each costs one forward and one backward pass."),
        Passes(each=3),
    ] = 16
    noise: Annotated[
        float, Meta(gt=0, description="Standard deviation of the noise, in the model's normalised units.")
    ] = 0.3

    def maps(self, model: Model, layer: Layer, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        """Return the (1, h, w) map."""
        A = activations(model, layer, inputs)
        D1, D2, D3 = torch.zeros_like(A), torch.zeros_like(A), torch.zeros_like(A)
        rows, done, generator = batch_rows(model), 0, current_generator()
        while done < self.samples:
            count = min(rows, self.samples - done)
            # Drawn one by one, so that the noise does not depend on the batch size.
            noise = torch.cat([torch.randn(inputs.shape, generator=generator) for _ in range(count)]).to(inputs)
            _, gradients = activations_and_gradients(model, layer, inputs + self.noise * noise, target)
            D1 += gradients.sum(0) / self.samples
            D2 += gradients.pow(2).sum(0) / self.samples
            D3 += gradients.pow(3).sum(0) / self.samples
            done += count
        if self.samples > 1 and bool((D2 - D1.square()).abs().max() <= ROUNDING * D2.max()):
            warnings.warn(
                f"noise and samples have no effect: the gradient at layer {layer.name!r} is the same for every copy, as"
                " where only pooling and a linear classifier follow; gradcam_pp gives the same map in one pass",
                stacklevel=2,
            )
        return _weighted(A, D1, D2, 2 * D2 + A.sum((2, 3), keepdim=True) * D3, layer)


def _weighted(A: Tensor, D1: Tensor, numerator: Tensor, denominator: Tensor, layer: Layer) -> Tensor:
    counts = (D1 > 0) & (numerator > 0)  # the ReLU of Eq. 17 removes all other cells
    if bool((denominator[counts] <= 0).any()):
        raise ExplainerRefused(
            f"Grad-CAM++ is undefined on layer {layer.name!r}: negative activations make a denominator of Eq. 19"
            " zero or negative",
            hint="use gradcam, or a layer after a ReLU",
        )
    alpha = torch.where(counts, numerator / denominator, 0)
    w = (alpha * D1).sum((2, 3), keepdim=True)
    return (w * A).sum(1).relu()
