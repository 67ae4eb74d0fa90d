"""Random partitions of an image into boxes, and the mutants that show some of the parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

__all__ = ["SUBSETS", "Box", "Chance", "Cuts", "Distribution", "Mask", "mutants", "painted", "split"]

Mask = NDArray[np.bool_]
Distribution = Literal["uniform", "beta"]

# Which of four parts are shown: the 14 subsets that are neither empty nor everything, in the order of their bits.
SUBSETS: NDArray[np.bool_] = np.array([[bool(code >> part & 1) for part in range(4)] for code in range(1, 15)])


# Steps of the rows and columns of a search's first two splits, from one search to the next: powers of the inverse
# plastic number, which spread points over a square best of all such sequences (Roberts 2018), and two square roots.
STEPS = np.array([0.7548776662466927, 0.5698402909980532, 2**0.5 - 1, 3**0.5 - 1])


class Chance(Protocol):
    """What a search draws: numpy's own generator, or `Cuts`."""

    def integers(self, low: int, high: int, /) -> int | np.int64:
        """Return a whole number from [low, high)."""

    def beta(self, a: float, b: float, /) -> float:
        """Return a number in [0, 1]."""

    def permutation(self, count: int, /) -> NDArray[np.int64]:
        """Return the numbers below `count` in any order."""


class Cuts:
    """The random numbers of one of many searches: its first cuts follow a lattice, the others are independent.

    The points `shift + number * step` modulo 1 fill the square more evenly than independent ones (a Kronecker
    sequence), so fewer searches give a settled map. A seed is a random shift.
    """

    def __init__(self, seed: int, number: int) -> None:
        """Prepare search `number` of a seed."""
        shift = np.random.default_rng(seed).random(len(STEPS))
        self._even = list((shift + number * STEPS) % 1)
        self._rng = np.random.default_rng([seed, number])

    def integers(self, low: int, high: int, /) -> int:
        """Return a whole number from [low, high), all alike."""
        return low + int(self._next() * (high - low))

    def beta(self, a: float, b: float, /) -> float:
        """Return a number that is beta distributed."""
        return float(betaincinv(a, b, self._next()))

    def permutation(self, count: int, /) -> NDArray[np.int64]:
        """Return the numbers below `count` in random order."""
        return self._rng.permutation(count)

    def _next(self) -> float:
        return float(self._even.pop(0) if self._even else self._rng.random())


class Box(NamedTuple):
    """A rectangle of pixels, [top, bottom) x [left, right), and how many splits led to it."""

    top: int
    left: int
    bottom: int
    right: int
    depth: int = 0

    @property
    def area(self) -> int:
        """Number of pixels."""
        return (self.bottom - self.top) * (self.right - self.left)

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Index of the pixels in an (H, W) array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def split(box: Box, rng: Chance, distribution: Distribution = "uniform") -> tuple[Box, Box, Box, Box]:
    """Cut a box at one random interior point into four; its sides must be at least 2 pixels long.

    `uniform` takes every interior point alike, `beta` (2, 2) prefers those near the middle.
    """
    row = box.top + _cut(box.bottom - box.top, rng, distribution)
    column = box.left + _cut(box.right - box.left, rng, distribution)
    deeper = box.depth + 1
    return (
        Box(box.top, box.left, row, column, deeper),
        Box(box.top, column, row, box.right, deeper),
        Box(row, box.left, box.bottom, column, deeper),
        Box(row, column, box.bottom, box.right, deeper),
    )


def _cut(length: int, rng: Chance, distribution: Distribution) -> int:
    if distribution == "uniform":
        return int(rng.integers(1, length))
    return 1 + min(int(rng.beta(2, 2) * (length - 1)), length - 2)


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
