"""Causal responsibility of pixels from random recursive partitions.

The search is that of ReX (Chockler, Kelly, Kroening; "Explanations for Occluded Images", arXiv 2103.03622); our choices
where its descriptions differ or are silent are listed in the plugin's README.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xaihub_convad.search.partition import SUBSETS, Box, Cuts, Mask, Values, mutants, painted, split
from xaihub_convad.search.scheduling import Task

SMALLEST = 10  # pixels; smaller boxes are not split, as in ReX


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """The result of one search: its (H, W) map, how many boxes it split, and the boxes still visible at its end."""

    values: Values
    splits: int
    boxes: tuple[Box, ...]


def search(
    size: tuple[int, int],
    rng: Cuts | np.random.Generator,
    *,
    refinements: int,
    confidence: float = 0.0,
    allowed: Mask | None = None,
    trivial: bool = False,
) -> Task[Iteration]:
    """Search once: split the largest visible box, evaluate its 14 mutants, go on with the smallest that passes.

    At most `refinements` boxes are split. A mutant passes if it reaches `confidence`; pixels outside the (H, W) mask
    `allowed` are always masked, and `trivial` means that the target is kept with everything masked.
    """
    values = np.zeros(size)
    visible, refused = [Box(0, 0, *size)], list[Box]()  # a box of which no mutant passes stays visible, and whole
    splits = 0
    while splits < refinements and (able := [box for box in visible if _can_be_split(box)]):
        largest = max(able, key=lambda box: box.area)
        others = [box for box in visible if box is not largest]
        parts = split(largest, rng)
        masks = mutants(painted(size, others + refused), parts)
        verdicts = yield masks if allowed is None else masks & allowed
        passed = verdicts.pass_at(confidence)
        nothing = trivial and not others and not refused  # masking all four parts then masks everything
        for part, responsibility in zip(parts, responsibilities(passed, nothing=nothing), strict=True):
            values[part.pixels] += responsibility
        splits += 1
        if passed.any():
            shown = [[part for part, is_shown in zip(parts, row, strict=True) if is_shown] for row in SUBSETS[passed]]
            visible = others + min(shown, key=lambda boxes: sum(box.area for box in boxes))
        else:
            visible, refused = others, [*refused, largest]
    return Iteration(values=values, splits=splits, boxes=(*visible, *refused))


def responsibilities(passed: Mask, *, nothing: bool = False) -> Values:
    """Return the responsibility of each of the four parts, given which of the 14 mutants passed: (4,).

    It is 1 / (1 + k) for the smallest number k of other parts to be masked before masking this part changes the
    decision. All four parts together pass; no part at all passes only if `nothing`.
    """
    outcome = [nothing, *map(bool, passed), True]  # by the bits of the subset
    found = np.zeros(4)
    for code in range(1, 16):
        for part in range(4):
            if code >> part & 1 and outcome[code] and not outcome[code & ~(1 << part)]:
                found[part] = max(found[part], 1 / (1 + 4 - code.bit_count()))
    return found


def _can_be_split(box: Box) -> bool:
    return box.area >= SMALLEST and min(box.bottom - box.top, box.right - box.left) > 1


class Responsibility:
    """The mean of the maps of all searches, updated search by search (Welford's algorithm)."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.count = 0
        self.values: Values = np.zeros(size)
        self._squares = np.zeros(size)
        self._spread = 0.0  # sum over searches of their squared distance from their own mean

    def add(self, values: Values) -> None:
        """Add the map of one search."""
        self.count += 1
        change = values - self.values
        self.values = self.values + change / self.count
        self._squares += change * (values - self.values)
        self._spread += float(np.square(values - values.mean()).sum())

    @property
    def standard_error(self) -> Values:
        """(H, W) standard error of the map over searches; 0 for a single search."""
        if self.count < 2:
            return np.zeros_like(self.values)
        error: Values = np.sqrt(self._squares / (self.count - 1) / self.count)
        return error

    @property
    def agreement(self) -> float:
        """Expected correlation of this map with that of another seed; 0 for a single search or a constant map.

        Searches are measurements of one map, so this is their reliability, n / (n - 1) (1 - sum_i |v_i|^2 / |sum_i
        v_i|^2) with the mean over pixels subtracted from each v_i (Cronbach 1951). Searches of one seed complement each
        other, so two seeds tend to agree better.
        """
        total = self.count**2 * float(np.square(self.values - self.values.mean()).sum())
        if self.count < 2 or total == 0:
            return 0.0
        return max(0.0, self.count / (self.count - 1) * (1 - self._spread / total))
