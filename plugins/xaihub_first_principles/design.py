"""Designs of random masks as points: Y = M x + (1 - M) Z."""

from __future__ import annotations

import torch
from torch import Tensor

from xaihub.masking import CERTAIN, Coalitions
from xaihub_first_principles.measures import FIXED, Points

__all__ = ["fixed_masks", "lift"]


def fixed_masks(masks: Tensor, *, copies: int) -> Coalitions:
    """Return (n, d) masks as a design without chance, once for each of the replacements."""
    return Coalitions(
        shown=masks.repeat(copies, 1),
        draw=torch.full((len(masks) * copies,), CERTAIN),
        copy=torch.arange(copies).repeat_interleave(len(masks)),
        log_expected=torch.full((len(masks) * copies,), float(copies), dtype=torch.float64).log(),
    )


def lift(x: Tensor, design: Coalitions, *, background: Tensor, groups: Tensor) -> Points:
    """Return the points Y = M x + (1 - M) Z of a design over the (k, D) `background`, copy by copy."""
    M = design.shown.double()[:, groups]
    return Points(
        values=M * x + (1 - M) * background[design.copy],
        x=x,
        count=design.shown.shape[1],
        cluster=torch.where(design.draw == CERTAIN, FIXED, design.draw),
        masks=design.shown,
        base=design.copy,
        log_density=design.log_expected,
        distinct=True,
    )
