"""Forward passes: their settings, and how many there were."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

# Masked images that were evaluated in this thread.
MASKED_ROWS: ContextVar[int] = ContextVar("masked_rows", default=0)


@dataclass(kw_only=True)
class Runtime:
    """Settings of forward passes that do not change their results.

    Attributes:
        batch_size: Rows per forward pass, or None to choose by device and memory.
        memory_budget: Memory limit of one forward pass in bytes, or None to choose by device.
        autocast: Run in mixed precision on a GPU.
        progress: Called as `progress(done, total)` while masks are evaluated.
        preview: Called with each preliminary explanation of a method that refines its map within a budget of seconds.
    """

    batch_size: int | None = None
    memory_budget: int | None = None
    autocast: bool = False
    progress: Callable[[int, int], None] | None = None
    preview: Callable[[Any], None] | None = None


@dataclass
class Counts:
    """The numbers of forward and backward passes through the network; each row of a batch is one pass."""

    forward_passes: int = 0
    backward_passes: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Return the sums."""
        return Counts(self.forward_passes + other.forward_passes, self.backward_passes + other.backward_passes)

    def __sub__(self, other: Counts) -> Counts:
        """Return the differences."""
        return Counts(self.forward_passes - other.forward_passes, self.backward_passes - other.backward_passes)
