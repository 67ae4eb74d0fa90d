"""Random partitions of an image into boxes, and the mutants that show some of the parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Values = NDArray[np.float64]

# Which of four parts are visible: the 14 subsets that are neither empty nor everything, in the order of their bits.
SUBSETS: Mask = np.array([[bool(code >> part & 1) for part in range(4)] for code in range(1, 15)])

# Steps of the rows and columns of a search's first two splits, from one search to the next: powers of the inverse
# plastic number, the most even of all such sequences in a square (Roberts 2018), and two square roots.
STEPS = np.array([0.7548776662466927, 0.5698402909980532, 2**0.5 - 1, 3**0.5 - 1])


class Cuts:
    """The random numbers of one search: its first cuts follow a lattice over all searches, the rest are independent.

    The points `shift + number * step` modulo 1 cover the square more evenly than independent points (a Kronecker
    sequence), so fewer searches give a stable map. A seed is a random shift.
    """

    def __init__(self, seed: int, number: int) -> None:
        """Prepare search `number` of a seed."""
        shift = np.random.default_rng(seed).random(len(STEPS))
        self._even = list((shift + number * STEPS) % 1)
        self._rng = np.random.default_rng([seed, number])

    def integers(self, low: int, high: int, /) -> int:
        """Return a uniform integer from [low, high)."""
        number = self._even.pop(0) if self._even else self._rng.random()
        return low + int(number * (high - low))


class Box(NamedTuple):
    """A rectangle of pixels, [top, bottom) x [left, right)."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        """Number of pixels."""
        return (self.bottom - self.top) * (self.right - self.left)

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Index of the pixels in an (H, W) array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def split(box: Box, rng: Cuts | np.random.Generator) -> tuple[Box, Box, Box, Box]:
    """Cut a box, whose sides must be at least 2 pixels long, into four at a uniformly random interior point."""
    row, column = int(rng.integers(box.top + 1, box.bottom)), int(rng.integers(box.left + 1, box.right))
    return (
        Box(box.top, box.left, row, column),
        Box(box.top, column, row, box.right),
        Box(row, box.left, box.bottom, column),
        Box(row, column, box.bottom, box.right),
    )


def painted(size: tuple[int, int], boxes: Iterable[Box]) -> Mask:
    """Return the (H, W) mask that shows these boxes."""
    mask = np.zeros(size, dtype=np.bool_)
    for box in boxes:
        mask[box.pixels] = True
    return mask


def mutants(background: Mask, parts: tuple[Box, Box, Box, Box]) -> Mask:
    """Return the (14, H, W) masks that show a proper subset of the four parts, and the background (H, W)."""
    masks = np.repeat(background[None], len(SUBSETS), axis=0)
    for part, box in enumerate(parts):
        rows, columns = box.pixels
        masks[:, rows, columns] |= SUBSETS[:, part, None, None]
    return masks
