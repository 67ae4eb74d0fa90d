"""Similarity of two maps: 1 if equal, 0 if unrelated, independent of their scales."""

from __future__ import annotations

from typing import Literal

import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from xaihub import MetricRefused
from xaihub.ranking import correlation, is_constant

Similarity = Literal["ssim", "spearman", "cosine"]

_WINDOW = 11  # side of the Gaussian window of Wang et al. 2004, in pixels


def similarity(reference: Tensor, other: Tensor, kind: Similarity, *, absolute: bool) -> float:
    """Compare two (H, W) maps; absolute values first if `absolute`. In [-1, 1].

    "ssim" is the structural similarity of Wang et al. 2004 with their Gaussian window and constants, after each map
    is divided by its largest absolute value; "spearman" is the correlation of average ranks, "cosine" the cosine
    similarity of the values. An uninformative `other` map (constant for "spearman", zero for "cosine") scores 0.

    Raises:
        MetricRefused: The reference is zero or constant, or too small for the window.
    """
    a, b = (_prepared(values, absolute=absolute) for values in (reference, other))
    if not a.any():
        raise MetricRefused("the map is zero everywhere, so nothing is similar to it")
    if kind == "ssim":
        return _ssim(a, b, data_range=1.0 if absolute else 2.0)
    if kind == "cosine":
        return float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0, eps=0).nan_to_num(0).clamp(-1, 1))
    if is_constant(a.flatten()):
        raise MetricRefused("the map is constant, so it has no ranks to correlate", hint="use similarity=ssim")
    return float(correlation(a.flatten(), b.flatten(), ranks=True).nan_to_num(0))


def _prepared(values: Tensor, *, absolute: bool) -> Tensor:
    values = values.double().abs() if absolute else values.double()
    peak = values.abs().max()
    return values / peak if peak > 0 else values


def _ssim(a: Tensor, b: Tensor, data_range: float) -> float:
    if min(a.shape) < _WINDOW:
        raise MetricRefused(
            f"structural similarity needs maps of at least {_WINDOW}x{_WINDOW} pixels, not {tuple(a.shape)}",
            hint="use similarity=spearman",
        )
    return float(
        structural_similarity(
            a.numpy(), b.numpy(), data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )
