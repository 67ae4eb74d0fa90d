"""The order in which a map's pixels or patches are hidden, and the masks that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from xaihub import Case, Meta
from xaihub.masking import make_features

__all__ = ["Direction", "Patch", "Ranking", "Unit", "ranking"]

Direction = Literal["hide", "show"]
Unit = Annotated[
    Literal["pixels", "patches"],
    Meta(description="What is hidden as one piece; a patch counts by the mean of its values."),
]
Patch = Annotated[int, Meta(ge=1, description="Pixels a side of a patch, for unit=patches.")]

TIES = 0  # the seed of the order within ties; one for all, so that equal maps get equal scores


@dataclass(frozen=True)
class Ranking:
    """Who comes first.

    Attributes:
        ranks: (H, W) position of each pixel's piece in the order; 0 is the highest value of the map.
        count: Number of pieces.
    """

    ranks: Tensor
    count: int

    def draws(self, counts: Tensor, direction: Direction) -> Tensor:
        """Return (n, 2) draws for `masks`: the `counts` first pieces hidden, or alone shown."""
        return torch.stack([counts, torch.full_like(counts, int(direction == "show"))], dim=1)

    def masks(self, draws: Tensor) -> Tensor:
        """Turn (n, 2) draws into (n, 1, H, W) masks of 0 and 1."""
        counts, shown = draws.view(-1, 2, 1, 1).unbind(1)
        later = self.ranks.to(draws.device) >= counts  # (n, H, W)
        return (later ^ shown.bool()).float().unsqueeze(1)


def ranking(case: Case, *, unit: str = "pixels", patch: int = 16) -> Ranking:
    """Rank the case's map, once for all metrics.

    Equal values stand in a fixed pseudo-random order, so that a constant region is neither scanned in raster order
    nor dealt with differently by two metrics.

    Raises:
        ParameterError: A patch is larger than the input.
    """
    key = ("curves: ranking", unit, patch if unit == "patches" else None)
    return case.memory.once(key, lambda: _rank(case, unit, patch))


def _rank(case: Case, unit: str, patch: int) -> Ranking:
    if unit == "pixels":
        order = _descending(case.heat.flatten())
        ranks = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        return Ranking(ranks.view(case.heat.shape).to(case.model.device), len(order))
    features = make_features(f"patches:{patch}", case.model, case.scene.image)
    labels = features.spread(torch.arange(features.count)).flatten()  # (H * W,) patch of each pixel
    sums = torch.zeros(features.count, dtype=torch.float64).index_add_(0, labels, case.heat.flatten().double())
    # The mean, not the sum: patches cut off by the far edges are smaller.
    order = _descending(sums / torch.bincount(labels))
    ranks = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    return Ranking(features.spread(ranks).to(case.model.device), features.count)


def _descending(values: Tensor) -> Tensor:
    shuffled = torch.randperm(len(values), generator=torch.Generator().manual_seed(TIES))
    return shuffled[values[shuffled].argsort(descending=True, stable=True)]
