"""From a responsibility map to sets of pixels that keep the model's decision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from xaihub.masking import SizeSearch
from xaihub_convad.search.evaluation import Verdicts
from xaihub_convad.search.partition import Mask, Values
from xaihub_convad.search.scheduling import Task

DISC_GROWTH = 1.2  # as in ReX
SAME_CONFIDENCE = 0.005  # equal to two decimals


class Budget:
    """Rows that may still be evaluated; every step reserves its rows first, and gets by with fewer if it must."""

    def __init__(self, rows: float = math.inf) -> None:
        self._left = max(0.0, rows)

    def take(self, wanted: int, *, each: int = 1, whole: bool = False) -> int:
        """Reserve `wanted` sets of `each` rows, or as many as fit (`whole`: all or none); return their number."""
        granted = wanted if wanted * each <= self._left else int(self._left // each)
        granted = 0 if whole and granted < wanted else granted
        self._left -= granted * each
        return granted


@dataclass(frozen=True)
class Goal:
    """What a set of pixels must achieve."""

    confidence: float = 0.0  # alone, it keeps the target with at least this confidence
    necessary: bool = False  # without it, the target is lost

    @property
    def rows(self) -> int:
        """Rows per set."""
        return 2 if self.necessary else 1

    def masks(self, sets: Sequence[Mask]) -> Mask:
        """Return the masks to evaluate for n sets: (n, H, W), or (2 n, H, W) with each set before its complement."""
        if not self.necessary:
            return np.stack(sets)
        return np.stack([mask for one in sets for mask in (one, ~one)])

    def met(self, verdicts: Verdicts) -> NDArray[np.bool_]:
        """Return for each set whether it achieves the goal: (n,)."""
        passed = verdicts.pass_at(self.confidence)
        return passed[::2] & ~verdicts.keeps[1::2] if self.necessary else passed


def ranking(values: Values, allowed: Mask | None = None) -> NDArray[np.intp]:
    """Return the flat indices of the (allowed) pixels, most responsible first.

    Equally responsible pixels are ordered by the responsibility of their neighbourhood, then row by row.
    """
    around = gaussian_filter(values, sigma=max(values.shape) / 16, mode="nearest").ravel()
    # Neighbourhoods that differ by rounding only are equal.
    order = np.lexsort((-np.round(around / (around.max() or 1.0), 9), -values.ravel()))
    return order if allowed is None else order[allowed.ravel()[order]]


def prefix(order: NDArray[np.intp], count: int, size: tuple[int, int]) -> Mask:
    """Return the (H, W) mask of the first `count` pixels of a ranking."""
    mask = np.zeros(size, dtype=np.bool_)
    mask.ravel()[order[:count]] = True
    return mask


def grown(
    build: Callable[[int], Mask], total: int, goal: Goal, *, step: int, budget: Budget | None = None
) -> Task[int]:
    """Find a small size at which nested sets achieve the goal, to `step` pixels or until the budget is spent.

    `total`, the size of everything, is taken to achieve it.
    """
    search, budget = SizeSearch(total, resolution=step), budget or Budget()
    while granted := budget.take(len(search.sizes), each=goal.rows):
        # With too small a budget evenly chosen sizes, the largest among them.
        places = np.linspace(len(search.sizes) - 1, 0, granted)[::-1].round().astype(int)
        sizes = [search.sizes[place] for place in places]
        verdicts = yield goal.masks([build(size) for size in sizes])
        search.narrow(sizes, goal.met(verdicts))
    return search.smallest


def disc(values: Values, radius: float, goal: Goal, budget: Budget | None = None) -> Task[Mask | None]:
    """Return the smallest disc around the most responsible pixel that achieves the goal; None if none does.

    Radii grow by a fifth from `radius`, as in ReX, but are evaluated together; None as well if the budget is too small.
    """
    height, width = values.shape
    row, column = divmod(int(ranking(values)[0]), width)
    distance = np.hypot(*np.ogrid[-row : height - row, -column : width - column])
    count = 1 + max(0, int(np.ceil(np.log(distance.max() / radius) / np.log(DISC_GROWTH))))
    discs = [distance <= radius * DISC_GROWTH**step for step in range(count)]
    if not (budget or Budget()).take(count, each=goal.rows, whole=True):
        return None
    hits = np.flatnonzero(goal.met((yield goal.masks(discs))))
    return discs[int(hits[0])] if len(hits) else None


def completed(
    mask: Mask, order: NDArray[np.intp], confidence: float, *, step: int, budget: Budget | None = None
) -> Task[Mask]:
    """Add the lowest ranked pixels, as few as possible, until the confidence is the whole image's."""
    rest = order[::-1][~mask.ravel()[order[::-1]]]

    def build(count: int) -> Mask:
        return mask | prefix(rest, count, mask.shape)

    budget, goal = budget or Budget(), _Same(confidence)
    if not budget.take(1):
        return np.ones_like(mask)
    verdicts = yield mask[None]
    if abs(float(verdicts.confidence[0]) - confidence) < SAME_CONFIDENCE:
        return mask
    return build((yield from grown(build, len(rest), goal, step=step, budget=budget)))


class _Same(Goal):
    """The confidence is that of the whole image to two decimals."""

    def met(self, verdicts: Verdicts) -> NDArray[np.bool_]:
        near: NDArray[np.bool_] = verdicts.keeps & (np.abs(verdicts.confidence - self.confidence) < SAME_CONFIDENCE)
        return near


def cells(mask: Mask, side: int, values: Values) -> list[Mask]:
    """Cut a mask along a grid of `side` pixels; return the pieces that have pixels, least responsible first."""
    height, width = mask.shape
    columns = -(-width // side)
    label = (np.arange(height) // side)[:, None] * columns + np.arange(width) // side
    counts = np.bincount(label[mask], minlength=1)
    totals = np.bincount(label[mask], weights=values[mask], minlength=1)
    present = np.flatnonzero(counts)
    weakest = present[np.argsort(totals[present] / counts[present], kind="stable")]
    return [mask & (label == cell) for cell in weakest]


def shrunk(
    mask: Mask, values: Values, goal: Goal, *, side: int, budget: Budget | None = None
) -> Task[tuple[Mask, bool]]:
    """Remove cells until removing any single further one would miss the goal: minimal up to a cell.

    Each round evaluates all single removals, then how many of the possible ones, weakest first, can go together. The
    last round proves that none can go; if the budget does not cover it, the second result is False.
    """
    budget = budget or Budget()
    while True:
        pieces = cells(mask, side, values)
        if not pieces:
            return mask, True
        if not budget.take(len(pieces), each=goal.rows, whole=True):
            return mask, False
        verdicts = yield goal.masks([mask & ~piece for piece in pieces])
        loose = [piece for piece, free in zip(pieces, goal.met(verdicts), strict=True) if free]
        if not loose:
            return mask, True
        without = mask & ~np.logical_or.accumulate(loose)  # (n, H, W): the weakest gone, the weakest two, ...
        counts = np.unique(np.geomspace(2, len(loose), 8).round().astype(int)) if len(loose) > 1 else np.array([], int)
        counts = counts[: budget.take(len(counts), each=goal.rows)]
        together = 1
        if len(counts):
            verdicts = yield goal.masks([without[count - 1] for count in counts])
            together = max([1, *counts[goal.met(verdicts)].tolist()])
        mask = without[together - 1]
