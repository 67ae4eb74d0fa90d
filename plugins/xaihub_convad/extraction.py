"""From a responsibility map to sets of pixels that keep the model's answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from xaihub_convad.partition import Mask
from xaihub_convad.question import Verdicts
from xaihub_convad.workqueue import Task

__all__ = [
    "Goal",
    "Room",
    "Strategy",
    "Values",
    "adjusted",
    "cells",
    "grown",
    "prefix",
    "ranking",
    "shrunk",
    "spotlight",
]

Strategy = Literal["global", "spatial", "contrastive", "complete", "multiple"]
Values = NDArray[np.float64]

FIRST_SIZES = 16  # nested masks of the first round, which looks at all sizes
NEXT_SIZES = 4  # of every later round, which looks between the last size that failed and the first that passed
SMALLEST_SHARE = 1 / 256  # of the image, where the first round begins
DISC_GROWTH = 1.2  # as in ReX
SAME_CONFIDENCE = 0.005  # equal to two decimals


class Room:
    """Rows that may still be asked about; whoever asks takes them first, and does with less if there are fewer."""

    def __init__(self, rows: float = math.inf) -> None:
        self._left = max(0.0, rows)

    def take(self, wanted: int, *, each: int = 1, whole: bool = False) -> int:
        """Take `wanted` questions of `each` rows, or as many as there is room for (`whole`: all of them or none)."""
        granted = wanted if wanted * each <= self._left else int(self._left // each)
        granted = 0 if whole and granted < wanted else granted
        self._left -= granted * each
        return granted


@dataclass(frozen=True)
class Goal:
    """What a set of pixels must do.

    Attributes:
        confidence: Alone, it keeps the target with at least this confidence.
        necessary: Without it, the target is lost.
    """

    confidence: float = 0.0
    necessary: bool = False

    @property
    def rows(self) -> int:
        """Rows that one set takes."""
        return 2 if self.necessary else 1

    def masks(self, sets: Sequence[Mask]) -> Mask:
        """Return what has to be asked about n sets: (n, H, W), or (2 n, H, W) with each set before its complement."""
        if not self.necessary:
            return np.stack(sets)
        return np.stack([mask for one in sets for mask in (one, ~one)])

    def met(self, verdicts: Verdicts) -> NDArray[np.bool_]:
        """Tell for each set whether it does it: (n,)."""
        passed = verdicts.pass_at(self.confidence)
        return passed[::2] & ~verdicts.keeps[1::2] if self.necessary else passed


def ranking(values: Values, allowed: Mask | None = None) -> NDArray[np.intp]:
    """Return the flat indices of the (allowed) pixels, most responsible first.

    Of equally responsible pixels, those in the more responsible neighbourhood come first, then the upper left ones.
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


def grown(build: Callable[[int], Mask], total: int, goal: Goal, *, step: int, room: Room | None = None) -> Task[int]:
    """Find a small size at which nested sets reach the goal; `total`, the size of everything, is taken to reach it.

    The first round asks about sizes from small to large, each further one between the neighbours of the first hit,
    until they are at most `step` apart or `room` ends. Confidence need not grow with the set, so a smaller hit
    between two sizes of the first round can be missed.
    """
    room = room or Room()
    first = np.geomspace(max(step, total * SMALLEST_SHARE, 1), total, FIRST_SIZES + 1)[:-1]
    low, high = 0, total
    sizes = np.unique(first.round().astype(int))
    while len(sizes := sizes[(sizes > low) & (sizes < high)]):
        granted = room.take(len(sizes), each=goal.rows)
        if not granted:
            break
        sizes = sizes[np.linspace(len(sizes) - 1, 0, granted)[::-1].round().astype(int)]  # the largest in any case
        verdicts = yield goal.masks([build(int(count)) for count in sizes])
        hits = np.flatnonzero(goal.met(verdicts))
        hit = int(hits[0]) if len(hits) else len(sizes)
        low = int(sizes[hit - 1]) if hit else low
        high = int(sizes[hit]) if hit < len(sizes) else high
        if high - low <= step:
            break
        sizes = np.unique(np.linspace(low, high, NEXT_SIZES + 2).round().astype(int))
    return high


def spotlight(values: Values, radius: float, goal: Goal, room: Room | None = None) -> Task[Mask | None]:
    """Return the smallest disc around the most responsible pixel that reaches the goal, or None.

    Radii grow by a fifth from `radius`, as in ReX, but all of them are asked about at once; None as well without room.
    """
    height, width = values.shape
    row, column = divmod(int(ranking(values)[0]), width)
    distance = np.hypot(*np.ogrid[-row : height - row, -column : width - column])
    count = 1 + max(0, int(np.ceil(np.log(distance.max() / radius) / np.log(DISC_GROWTH))))
    discs = [distance <= radius * DISC_GROWTH**step for step in range(count)]
    if not (room or Room()).take(count, each=goal.rows, whole=True):
        return None
    hits = np.flatnonzero(goal.met((yield goal.masks(discs))))
    return discs[int(hits[0])] if len(hits) else None


def adjusted(
    mask: Mask, order: NDArray[np.intp], confidence: float, *, step: int, room: Room | None = None
) -> Task[Mask]:
    """Add the lowest ranked pixels, as few as are found to bring the confidence to the whole image's."""
    rest = order[::-1][~mask.ravel()[order[::-1]]]

    def build(count: int) -> Mask:
        return mask | prefix(rest, count, mask.shape)

    room = room or Room()
    if not room.take(1):
        return np.ones_like(mask)
    verdicts = yield mask[None]
    if abs(float(verdicts.confidence[0]) - confidence) < SAME_CONFIDENCE:
        return mask
    count = yield from grown(build, len(rest), _Same(confidence), step=step, room=room)
    return build(count)


class _Same(Goal):
    """The confidence is that of the whole image to two decimals."""

    def met(self, verdicts: Verdicts) -> NDArray[np.bool_]:
        near: NDArray[np.bool_] = verdicts.keeps & (np.abs(verdicts.confidence - self.confidence) < SAME_CONFIDENCE)
        return near


def cells(mask: Mask, side: int, values: Values) -> list[Mask]:
    """Cut a mask along a grid of `side` pixels; the pieces that have pixels, least responsible first."""
    height, width = mask.shape
    columns = -(-width // side)
    label = (np.arange(height) // side)[:, None] * columns + np.arange(width) // side
    counts = np.bincount(label[mask], minlength=1)
    totals = np.bincount(label[mask], weights=values[mask], minlength=1)
    present = np.flatnonzero(counts)
    weakest = present[np.argsort(totals[present] / counts[present], kind="stable")]
    return [mask & (label == cell) for cell in weakest]


def shrunk(mask: Mask, values: Values, goal: Goal, *, side: int, room: Room | None = None) -> Task[tuple[Mask, bool]]:
    """Remove cells until removing any single one more would miss the goal: minimal up to a cell.

    Every round asks about all single removals at once, then how many of the possible ones, weakest first, can go
    together. The last round is the proof that none can go; without room for it the second result is False.
    """
    room = room or Room()
    while True:
        pieces = cells(mask, side, values)
        if not pieces:
            return mask, True
        if not room.take(len(pieces), each=goal.rows, whole=True):
            return mask, False
        verdicts = yield goal.masks([mask & ~piece for piece in pieces])
        loose = [piece for piece, free in zip(pieces, goal.met(verdicts), strict=True) if free]
        if not loose:
            return mask, True
        without = mask & ~np.logical_or.accumulate(loose)  # (n, H, W): the weakest gone, the weakest two, ...
        counts = np.unique(np.geomspace(2, len(loose), 8).round().astype(int)) if len(loose) > 1 else np.array([], int)
        counts = counts[: room.take(len(counts), each=goal.rows)]
        together = 1
        if len(counts):
            verdicts = yield goal.masks([without[count - 1] for count in counts])
            together = max([1, *counts[goal.met(verdicts)].tolist()])
        mask = without[together - 1]
