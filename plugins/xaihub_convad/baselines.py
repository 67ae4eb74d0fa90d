"""The baselines that this plugin registers: variants of deactivation, and two fills of ReX."""

from __future__ import annotations

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


def make_deactivation(model: Model, image: Tensor) -> Deactivation:  # noqa: ARG001
    """Return the recommended variant: aligned rule, threshold one half, plain pooling."""
    return Deactivation()


def make_whole(model: Model, image: Tensor) -> Deactivation:  # noqa: ARG001
    """Return the variant in which a unit is active only if every pixel of its cell is visible."""
    return Deactivation(threshold=1.0)


def make_live(model: Model, image: Tensor) -> Deactivation:  # noqa: ARG001
    """Return the variant whose spatial means are taken over active units only."""
    return Deactivation(pooling="live")


def make_layerwise(model: Model, image: Tensor) -> Deactivation:  # noqa: ARG001
    """Return the layer-by-layer rule; a threshold of one half would erode every mask's corners, so it is 0.4."""
    return Deactivation(rule="layerwise", threshold=0.4)


def make_neighbours(model: Model, image: Tensor) -> Deactivation:  # noqa: ARG001
    """Return the variant in which convolutions read the mean of active neighbours in place of inactive units."""
    return Deactivation(pooling="live", padding="neighbours")


OWN = {"min": make_min, "max": make_max, "deactivate_whole": make_whole}


def named_removal(name: str, model: Model, image: Tensor) -> Removal:
    """Return the removal called `name`; this plugin's own are found even if the model comes without a hub."""
    return OWN[name](model, image) if name in OWN else make_removal(name, model, image)
