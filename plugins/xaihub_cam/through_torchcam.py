"""Grad-CAM, Layer-CAM and XGrad-CAM computed by torchcam, on our layer and with our target.

torchcam 0.5's Grad-CAM++ and Smooth Grad-CAM++ are not used: the former loses the division by the denominator (it
is applied to a copy), the latter weights the activations of the last noisy image by that image's gradient alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torchcam.methods
from torch import Tensor

from xaihub import Layer, Model, ResolvedTarget
from xaihub_cam.base import CAM, cut, disconnected, on_grid


class _Torchcam(CAM):
    plain_first = True
    extractor: ClassVar[Callable[..., Any]]

    def maps(self, model: Model, layer: Layer, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        """Return the extractor's (B, h, w) maps without rescaling."""
        reshape = partial(on_grid, layer)
        # Hooks run in the order of registration: torchcam sees the leaf at which the graph starts.
        with cut(layer), type(self).extractor(model.module, layer.name, reshape_transform=reshape) as extract:
            scores = model(inputs)
            if not scores.requires_grad:
                raise disconnected(layer)
            targets = [partial(_score_of_row, target[row : row + 1]) for row in range(len(inputs))]
            maps: list[Tensor] = extract(scores=scores, targets=targets, normalized=False)
        return maps[0]


def _score_of_row(target: ResolvedTarget, row: Tensor) -> Tensor:
    return target.score(row.unsqueeze(0))


class GradCAM(_Torchcam):
    """Weight each channel of a layer by its mean gradient."""

    extractor = torchcam.methods.GradCAM


class LayerCAM(_Torchcam):
    """Weight each cell of each channel by its own positive gradient."""

    extractor = torchcam.methods.LayerCAM


class XGradCAM(_Torchcam):
    """Weight each channel by its gradients, averaged in proportion to its activations."""

    extractor = torchcam.methods.XGradCAM
