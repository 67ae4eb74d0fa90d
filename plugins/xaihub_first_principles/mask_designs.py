"""Designs of masks as points: Y = M x + (1 - M) Z."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from xaihub.masking import CERTAIN, Coalitions, binomial_sizes, draw_coalitions
from xaihub_first_principles.measures import FIXED, Points

__all__ = ["block_masks", "design_points", "fixed_masks"]


def fixed_masks(masks: Tensor, *, copies: int) -> Coalitions:
    """Return (n, d) masks as a non-random design, once per replacement."""
    return Coalitions(
        shown=masks.repeat(copies, 1),
        draw=torch.full((len(masks) * copies,), CERTAIN),
        copy=torch.arange(copies).repeat_interleave(len(masks)),
        log_expected=torch.full((len(masks) * copies,), float(copies), dtype=torch.float64).log(),
    )


def block_masks(sides: tuple[int, int], block: int, count: int, generator: torch.Generator) -> Coalitions:
    """Draw about `count` masks of a grid whose squares of `block` x `block` cells are visible with probability 1/2.

    Each mask's squares are shifted at random. A mask comes with its complement.
    """
    rows, columns = (-(-(side - 1) // block) + 1 for side in sides)
    coarse = draw_coalitions(
        rows * columns, count, binomial_sizes(rows * columns, 0.5), ends=False, generator=generator
    )
    shift = torch.randint(0, block, (len(coarse) // 2, 2), generator=generator).repeat_interleave(2, 0)
    vertical, horizontal = (
        (torch.arange(side) + shift[:, [axis]]) // block for axis, side in enumerate(sides)
    )  # (n, side): the square of each row and column of cells
    squares = vertical.unsqueeze(2) * columns + horizontal.unsqueeze(1)
    shown = coarse.shown.gather(1, squares.flatten(1))
    return Coalitions(
        shown=shown,
        draw=coarse.draw,
        copy=coarse.copy,
        log_expected=torch.full((len(shown),), -shown.shape[1] * log(2), dtype=torch.float64),
    )


def design_points(x: Tensor, design: Coalitions, background: Tensor) -> Points:
    """Return the points Y = M x + (1 - M) Z of a design, for the (d,) input and (k, d) replacements Z."""
    M = design.shown.double()
    return Points(
        values=M * x + (1 - M) * background[design.copy],
        x=x,
        count=len(x),
        cluster=torch.where(design.draw == CERTAIN, FIXED, design.draw),
        masks=design.shown,
        base=design.copy,
        log_density=design.log_expected,
        distinct=True,
    )
