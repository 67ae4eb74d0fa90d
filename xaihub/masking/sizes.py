"""Search for the smallest of nested sets that passes a test, such as the shortest sufficient prefix of a ranking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

FIRST_SIZES = 16  # in the first round, spread over all sizes
NEXT_SIZES = 4  # in each later round, between the last size that failed and the first that passed
SMALLEST = 1 / 256  # of the total, where the first round begins


class SizeSearch:
    """Finds a small passing size in few rounds of many sizes each, which fill batches; the caller runs the tests.

    Passing need not be monotone in size, so a smaller passing size between two tested sizes can be missed.

    Attributes:
        smallest: The smallest size that passed so far; at first `total`, which is taken to pass.
        sizes: Sizes to test next, ascending; empty once the search is over.

    Example::

        search = SizeSearch(total)
        while search.sizes:
            search.narrow(search.sizes, [passes(size) for size in search.sizes])
        search.smallest
    """

    def __init__(self, total: int, *, resolution: float = 1, empty: bool = False) -> None:
        """Prepare the first round.

        Args:
            total: Size of the whole.
            resolution: The search ends when the sizes that failed and passed are at most this far apart; at least 1.
            empty: Test the empty set too, rather than take it to fail.
        """
        self.smallest = total
        self._resolution = max(1.0, resolution)
        self._failing = -1 if empty else 0
        first = np.geomspace(max(resolution, total * SMALLEST, 1), max(total, 1), FIRST_SIZES + 1)[:-1]
        self.sizes = self._open([0, *first.round()])

    def narrow(self, sizes: Sequence[int], passed: Iterable[bool]) -> None:
        """Take the results for ascending `sizes` (all of `self.sizes` or some) and choose the next ones."""
        results = list(passed)
        hit = results.index(True) if True in results else len(results)
        self.smallest = sizes[hit] if hit < len(results) else self.smallest
        self._failing = sizes[hit - 1] if hit else self._failing
        settled = self.smallest - self._failing <= self._resolution
        between = np.linspace(max(self._failing, 0), self.smallest, NEXT_SIZES + 2).round()
        self.sizes = [] if settled else self._open(between)

    def _open(self, sizes: Iterable[float]) -> list[int]:
        return sorted({int(size) for size in sizes if self._failing < size < self.smallest})
