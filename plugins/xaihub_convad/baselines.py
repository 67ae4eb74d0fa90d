"""The baselines that this plugin registers: variants of deactivation, and two fills of ReX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xaihub import Model
from xaihub.masking import Fill, Removal, make_removal
from xaihub_convad.deactivation import Deactivation


def make_min(model: Model, image: Tensor) -> Fill:  # noqa: ARG001
    """Fill (C, H, W) pixels with the smallest value of the input, in the model's units and over all channels."""
    return Fill(torch.full_like(image, float(image.min())))


def make_max(model: Model, image: Tensor) -> Fill:  # noqa: ARG001
    """Fill with the largest value of the input."""
    return Fill(torch.full_like(image, float(image.max())))


def _variant(**options: Any) -> Callable[[Model, Tensor], Deactivation]:
    return lambda _model, _image: Deactivation(**options)


make_deactivation = _variant()  # recommended: aligned rule, threshold one half, plain pooling
make_whole = _variant(threshold=1.0)  # a unit is active only if every pixel of its cell is visible
make_most = _variant(threshold=7 / 8)  # a cell may lose a pixel at each side: (1 - 1/16)^2 of 32 x 32 are more than 7/8
make_live = _variant(pooling="live")  # spatial means are taken over active units only
make_layerwise = _variant(rule="layerwise", threshold=0.4)  # one half would erode every mask's corners
# Convolutions read the mean of active neighbours in place of inactive units.
make_neighbours = _variant(pooling="live", padding="neighbours")
OWN = {"min": make_min, "max": make_max, "deactivate_most": make_most}


def named_removal(name: str, model: Model, image: Tensor) -> Removal:
    """Return the removal called `name`; this plugin's own are found even if the model comes without a hub."""
    return OWN[name](model, image) if name in OWN else make_removal(name, model, image)
