"""Causal responsibility of pixels from random recursive partitions.

The search is that of ReX (Chockler, Kelly, Kroening; "Explanations for Occluded Images", arXiv 2103.03622); our choices
where its descriptions differ or are silent are listed in the plugin's README.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xaihub_convad.search.partition import Box, Cuts, Mask, Values, mutants, painted, split
from xaihub_convad.search.scheduling import Task

SMALLEST = 10  # pixels; smaller boxes are not split, as in ReX
NOTHING, EVERYTHING = 0, 15  # of four parts, as bits


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """The result of one search: its (H, W) map, how many boxes it split, and the boxes still visible at its end.

    The last split that is allowed leaves the boxes as they were.
    """

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
    """Search once: split the largest visible box, evaluate its mutants, go on with the smallest that passes.

    At most `refinements` boxes are split. Of the 14 mutants those are evaluated that can change the result. A mutant
    passes if it reaches `confidence`; pixels outside the (H, W) mask `allowed` are always masked, and `trivial` means
    that the target is kept with everything masked.
    """
    values = np.zeros(size)
    visible, refused = [Box(0, 0, *size)], list[Box]()  # a box of which no mutant passes stays visible, and whole
    splits = 0
    while splits < refinements and (able := [box for box in visible if _can_be_split(box)]):
        largest = max(able, key=lambda box: box.area)
        others = [box for box in visible if box is not largest]
        parts = split(largest, rng)
        masks = mutants(painted(size, others + refused), parts)
        if allowed is not None:
            masks &= allowed
        # Masking all four parts masks everything if nothing else is visible.
        outcome = {NOTHING: trivial and not others and not refused, EVERYTHING: True}
        splits += 1
        by_area = _by_area(parts) if splits < refinements else []
        while wanted := _wanted(outcome, by_area):
            verdicts = yield masks[[code - 1 for code in wanted]]
            outcome |= dict(zip(wanted, map(bool, verdicts.pass_at(confidence)), strict=True))
        for part, responsibility in zip(parts, responsibilities(outcome)[0], strict=True):
            values[part.pixels] += responsibility
        smallest = next((code for code in by_area if outcome[code]), None)
        if smallest is not None:
            visible = others + [part for number, part in enumerate(parts) if smallest >> number & 1]
        elif by_area:
            visible, refused = others, [*refused, largest]
    return Iteration(values=values, splits=splits, boxes=(*visible, *refused))


def _by_area(parts: tuple[Box, ...]) -> list[int]:
    """Return the proper subsets, as bits, in the order of their area."""
    codes = range(NOTHING + 1, EVERYTHING)
    return sorted(codes, key=lambda code: sum(box.area for number, box in enumerate(parts) if code >> number & 1))


def _wanted(outcome: Mapping[int, bool], by_area: Sequence[int]) -> list[int]:
    """Return the subsets to evaluate next, for the responsibilities and for the first of `by_area` that passes."""
    following = next((code for code in by_area if outcome.get(code, True)), EVERYTHING)
    return sorted(responsibilities(outcome)[1] | ({following} - outcome.keys()))


def responsibilities(outcome: Mapping[int, bool]) -> tuple[Values, set[int]]:
    """Return the responsibility of each of the four parts, (4,), and the subsets that must be evaluated first.

    It is 1 / (1 + k) for the smallest number k of other parts to be masked before masking this part changes the
    decision. `outcome` tells of subsets, as bits, whether the target is kept if they are visible; it contains all four
    parts, and no part.
    """
    found = np.zeros(4)
    for count in (4, 3, 2, 1):  # visible parts, this one among them
        wanted = set()
        for part in np.flatnonzero(found == 0).tolist():
            pairs = [
                (code, code & ~(1 << part)) for code in range(16) if code >> part & 1 and code.bit_count() == count
            ]
            if any(outcome.get(code, False) and not outcome.get(less, True) for code, less in pairs):
                found[part] = 1 / (1 + 4 - count)
            else:
                wanted |= {code for code, less in pairs if not outcome.get(less, False)}
                wanted |= {less for code, less in pairs if outcome.get(code, False)}
        if wanted := wanted - outcome.keys():
            return found, wanted
    return found, set()


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
