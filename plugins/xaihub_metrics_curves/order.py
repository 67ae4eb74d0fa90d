"""The order in which a map's pixels or patches are masked, and the masks that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from xaihub import Case, Meta, When
from xaihub.masking import make_features

Direction = Literal["hide", "show"]
Unit = Annotated[
    Literal["pixels", "patches"],
    Meta(description="What is masked as one piece; patches are ordered by their mean value."),
]
Patch = Annotated[int, Meta(ge=1, description="Side length of a patch in pixels."), When(unit="patches")]

TIES = 0  # seed of the order within ties; fixed, so that equal maps get equal scores


@dataclass(frozen=True)
class Ranking:
    """The order of a map's pieces."""

    ranks: Tensor  # (H, W) position of each pixel's piece in the order; 0 is the highest value of the map
    count: int  # number of pieces
    key: tuple[str, int | None]  # the unit and the patch size

    def masks(self, counts: Tensor, direction: Direction) -> Tensor:
        """Return (n, 1, H, W) masks of 0 and 1: the first `counts` (n,) pieces masked, or only these visible."""
        later = self.ranks.to(counts.device) >= counts.view(-1, 1, 1)  # (n, H, W)
        return (later ^ (direction == "show")).float().unsqueeze(1)


def ranking(case: Case, unit: str = "pixels", patch: int = 16) -> Ranking:
    """Rank the case's map, once for all metrics.

    Equal values are in a fixed pseudo-random order, so that constant regions are not scanned in raster order, and all
    metrics order them alike.

    Raises:
        ParameterError: A patch is larger than the input.
    """
    key = (unit, patch if unit == "patches" else None)
    return case.memory.once(("curves: ranking", *key), lambda: Ranking(*_rank(case, unit, patch), key))


def _rank(case: Case, unit: str, patch: int) -> tuple[Tensor, int]:
    if unit == "pixels":
        ranks = _descending(case.heat.flatten())
        return ranks.view(case.heat.shape).to(case.model.device), len(ranks)
    features = make_features(f"patches:{patch}", case.model, case.scene.image)
    labels = features.spread(torch.arange(features.count)).flatten()  # (H * W,) patch of each pixel
    sums = torch.zeros(features.count, dtype=torch.float64).index_add_(0, labels, case.heat.flatten().double())
    # The mean, not the sum: patches cut off at the borders are smaller.
    return features.spread(_descending(sums / torch.bincount(labels))).to(case.model.device), features.count


def _descending(values: Tensor) -> Tensor:
    """Return the position of each of (n,) values in descending order."""
    shuffled = torch.randperm(len(values), generator=torch.Generator().manual_seed(TIES))
    order = shuffled[values[shuffled].argsort(descending=True, stable=True)]
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
