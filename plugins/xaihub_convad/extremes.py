"""Fills with the lowest and the highest number of the model's input, as ReX names them."""

from __future__ import annotations

import torch
from torch import Tensor

from xaihub import Model
from xaihub.masking import Fill

__all__ = ["make_max", "make_min"]


def make_min(model: Model, image: Tensor) -> Fill:  # noqa: ARG001
    """Fill (C, H, W) pixels with the lowest number of the input, in the model's units and over all channels."""
    return Fill(torch.full_like(image, float(image.min())))


def make_max(model: Model, image: Tensor) -> Fill:  # noqa: ARG001
    """Fill with the highest number of the input."""
    return Fill(torch.full_like(image, float(image.max())))
