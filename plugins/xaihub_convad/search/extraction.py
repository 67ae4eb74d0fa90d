"""From a responsibility map to sets of pixels that keep the model's decision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

from xaihub.masking import SizeSearch
from xaihub_convad.search.evaluation import Verdicts
from xaihub_convad.search.partition import Mask, Values
from xaihub_convad.search.scheduling import Task

DISC_GROWTH = 1.2  # as in ReX
SAME_CONFIDENCE = 0.005  # equal to two decimals
COARSE = (4, 2, 1)  # sides of the blocks that are removed from a set, in cells
ASCENDING = 2  # sizes that are evaluated at a time
TOGETHER = 6  # numbers of blocks whose joint removal is evaluated per round
MARGINS = (1, 2, 3)  # pixels around the cells of a set
PIXEL = np.ones((3, 3), dtype=np.bool_)  # a pixel and its eight neighbours


class Budget:
    """Rows that may still be evaluated; every step reserves its rows first, and gets by with fewer if it must."""

    def __init__(self, rows: float = math.inf, *, of: Budget | None = None) -> None:
        """Allow so many rows, which are taken from the budget `of` too."""
        self._left, self._of = max(0.0, rows), of

    @property
    def left(self) -> float:
        """The rows that are left."""
        return self._left if self._of is None else min(self._left, self._of.left)

    def take(self, wanted: int, *, each: int = 1, whole: bool = False) -> int:
        """Reserve `wanted` sets of `each` rows, or as many as fit (`whole`: all or none); return their number."""
        granted = wanted if wanted * each <= self.left else int(self.left // each)
        granted = 0 if whole and granted < wanted else granted
        self._spend(granted * each)
        return granted

    def _spend(self, rows: int) -> None:
        self._left -= rows
        if self._of is not None:
            self._of._spend(rows)


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


def grown(build: Callable[[int], Mask], total: int, goal: Goal, *, budget: Budget | None = None) -> Task[int]:
    """Find a small size at which nested sets achieve the goal, exactly or until the budget is spent.

    `total`, the size of everything, is taken to achieve it.
    """
    search, budget = SizeSearch(total), budget or Budget()
    while granted := budget.take(len(search.sizes), each=goal.rows):
        # With too small a budget evenly chosen sizes, the largest among them.
        places = np.linspace(len(search.sizes) - 1, 0, granted)[::-1].round().astype(int)
        sizes, met = [search.sizes[place] for place in places], list[bool]()
        while len(met) < len(sizes) and not any(met):  # larger sizes than the first that passes do not matter
            verdicts = yield goal.masks([build(size) for size in sizes[len(met) : len(met) + ASCENDING]])
            met += goal.met(verdicts).tolist()
        search.narrow(sizes[: len(met)], met)
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


def completed(mask: Mask, order: NDArray[np.intp], confidence: float, *, budget: Budget | None = None) -> Task[Mask]:
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
    return build((yield from grown(build, len(rest), goal, budget=budget)))


class _Same(Goal):
    """The confidence is that of the whole image to two decimals."""

    def met(self, verdicts: Verdicts) -> NDArray[np.bool_]:
        near: NDArray[np.bool_] = verdicts.keeps & (np.abs(verdicts.confidence - self.confidence) < SAME_CONFIDENCE)
        return near


def labels(size: tuple[int, int], side: int) -> NDArray[np.intp]:
    """Return the number of each pixel's cell in a grid of `side` pixels: (H, W), row by row."""
    rows, columns = (np.arange(length) // side for length in size)
    found: NDArray[np.intp] = rows[:, None] * (columns[-1] + 1) + columns
    return found


def cell_prefixes(values: Values, side: int, allowed: Mask) -> tuple[Callable[[int], Mask], int]:
    """Rank the cells of the allowed pixels by their mean value; return the mask of the first n, and their number."""
    label = labels(values.shape, side)
    counts = np.bincount(label.ravel(), weights=allowed.ravel())
    means = np.bincount(label.ravel(), weights=(values * allowed).ravel()) / np.maximum(counts, 1)
    grid = means.reshape(-1, label[0, -1] + 1)
    order = ranking(grid, (counts > 0).reshape(grid.shape))
    return (lambda count: prefix(order, count, grid.shape).ravel()[label] & allowed), len(order)


def cells(mask: Mask, side: int, values: Values) -> list[Mask]:
    """Cut a mask along a grid of `side` pixels; return the pieces that have pixels, least responsible first."""
    label = labels(mask.shape, side)
    counts = np.bincount(label[mask], minlength=1)
    totals = np.bincount(label[mask], weights=values[mask], minlength=1)
    present = np.flatnonzero(counts)
    weakest = present[np.argsort(totals[present] / counts[present], kind="stable")]
    return [mask & (label == cell) for cell in weakest]


def shrunk(
    mask: Mask, values: Values, goal: Goal, *, side: int, budget: Budget | None = None
) -> Task[tuple[Mask, bool]]:
    """Remove blocks of cells, then single cells, until removing any single further cell would miss the goal.

    The second result is whether that is known: the budget may end earlier.
    """
    budget, minimal = budget or Budget(), False
    for blocks in COARSE:
        mask, minimal = yield from _without(mask, values, goal, side=side * blocks, budget=budget, prove=blocks == 1)
    return mask, minimal


def _without(
    mask: Mask, values: Values, goal: Goal, *, side: int, budget: Budget, prove: bool
) -> Task[tuple[Mask, bool]]:
    """Remove pieces of `side` pixels until none can be removed.

    A round evaluates the removal of each single piece that might be spared, then how many of those that can be, least
    needed first, can go together. What could not be removed is tried again (`prove`) once nothing else is left to try.
    """
    doubtful, proof = cells(mask, side, values), True
    while doubtful:
        if not budget.take(len(doubtful), each=goal.rows, whole=True):
            return mask, False
        verdicts = yield goal.masks([mask & ~piece for piece in doubtful])
        met, drops = goal.met(verdicts), -verdicts.confidence[:: goal.rows]
        loose = [doubtful[place] for place in np.argsort(drops, kind="stable") if met[place]]
        if not loose and proof:
            return mask, True
        without = mask & ~np.logical_or.accumulate([np.zeros_like(mask), *loose])  # the first n pieces gone
        counts = sorted({round(count) for count in np.geomspace(2, len(loose), TOGETHER)}) if len(loose) > 1 else []
        counts = counts[: budget.take(len(counts), each=goal.rows)]
        together = min(1, len(loose))
        for count in reversed(counts):  # fewer than the most that can go do not matter
            if goal.met((yield goal.masks([without[count]])))[0]:
                together = count
                break
        mask = without[together]
        doubtful, proof = loose[together:], False
        if not doubtful and prove:
            doubtful, proof = cells(mask, side, values), True
    return mask, True


def padded(mask: Mask, margin: int, allowed: Mask) -> Mask:
    """Return a set with a margin of allowed pixels around it."""
    wide: Mask = (binary_dilation(mask, PIXEL, iterations=margin) if margin else mask) & allowed
    return wide


def neighbours(mask: Mask) -> tuple[Mask, Mask]:
    """Return a set without its outermost pixels, and with one more pixel all around."""
    return binary_erosion(mask, PIXEL), binary_dilation(mask, PIXEL)


def settled(mask: Mask, goal: Goal, allowed: Mask, budget: Budget | None = None) -> Task[Mask]:
    """Return a set with the first margin with which it achieves the goal and keeps the target to a pixel.

    With one pixel less or more all around it, the target must still be kept. If no margin does, it is the first one
    that achieves the goal, and if none does that either, no margin.
    """
    budget, enough = budget or Budget(), mask
    for margin in MARGINS:
        wide = padded(mask, margin, allowed)
        if not budget.take(2 + goal.rows, whole=True):
            break
        verdicts = yield np.concatenate([goal.masks([wide]), np.stack(neighbours(wide))])
        if goal.met(verdicts[: goal.rows])[0]:
            if verdicts.keeps[goal.rows :].all():
                return wide
            enough = wide if enough is mask else enough
    return enough
