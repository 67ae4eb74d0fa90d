"""Estimates of RISE's map, E[score x mask] / p, from masks and scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xaihub_rise.masks import RandomMasks

FOLDS = 5  # the control variates of a fold are fitted on the others, which keeps the estimate unbiased
RIDGE = 0.02  # penalty of that fit per mask, relative to a mask's values in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimated map.

    Attributes:
        values: (H, W) float64.
        masks: Number of masks.
        noise: Root mean square standard error over the spread of the map; NaN if unknown.
    """

    values: Tensor
    masks: int
    noise: float = float("nan")


def plain(masks: RandomMasks, draws: Tensor, scores: Tensor, *, centred: bool) -> Estimate:
    """Return Eq. 6: the mean of score times mask, divided by p.

    `centred` subtracts the density of the masks times the mean score, for scores without a natural zero: their mean
    would otherwise drown the map.
    """
    weights = scores.double() - (scores.double().mean() if centred else 0.0)
    values = masks.weighted_sum(draws, weights) / (len(draws) * masks.keep)
    return Estimate(values=values, masks=len(draws))


def controlled(masks: RandomMasks, draws: Tensor, scores: Tensor, *, centred: bool) -> Estimate:
    """Return an estimate with the same expectation and less variance (derived).

    The mean of a mask is p at every pixel, and its covariance with the mask's values at a few points is known. So the
    part of the score that is linear in these values is integrated exactly, and only the rest is estimated, with the
    mask's known mean subtracted. The linear part is fitted by ridge regression on the other folds (cross-fitting).
    """
    n, p = len(draws), masks.keep
    scores, points = scores.double(), masks.at_points(draws).double() - p
    pair = torch.arange(n) // 2
    folds = min(FOLDS, int(pair[-1]) + 1)
    rest, slopes = scores.clone(), torch.zeros(points.shape[1], dtype=torch.float64)
    for fold in range(folds):
        own = pair % folds == fold
        if folds > 1:
            level, slope = _ridge(points[~own], scores[~own])
            rest[own] -= level + points[own] @ slope
            slopes += slope * int(own.sum()) / n
    values = masks.weighted_sum(draws, rest / n) - p * rest.mean() + masks.covariance_with(slopes)
    # Rows of a pair are one draw.
    parts = torch.zeros(int(pair[-1]) + 1, points.shape[1], dtype=torch.float64)
    parts.index_add_(0, pair, points * rest.unsqueeze(1))
    error = float(((parts - parts.mean(0)).square().sum(0) / n**2).mean().sqrt())
    spread = float(values.std(correction=0))
    noise = 0.0 if error == 0 else min(error / max(spread, 1e-12), 1e6)
    return Estimate(values=values / p + (0.0 if centred else scores.mean()), masks=n, noise=noise)


def _ridge(points: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the level and the (d,) slopes of scores over points; the level is not penalised."""
    centre, level = points.mean(0), scores.mean()
    moved = points - centre
    penalty = RIDGE * len(points) * torch.eye(points.shape[1], dtype=torch.float64)
    slope: Tensor = torch.linalg.solve(moved.T @ moved + penalty, moved.T @ (scores - level))
    return level - centre @ slope, slope
