"""Announces when another term of the loss begins, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set

MEASURED = 5  # steps whose mean duration is reported, when as many have been taken


class Phases:
    """Measures the steps of a run, and reports how much longer they take since a further term takes part."""

    def __init__(self, terms: Iterable[str], total: int, *, tell: Callable[[str], None]) -> None:
        """Take the terms that the loss has had so far, and the number of steps of the run."""
        self._terms, self._total, self._tell = list(terms), total, tell
        self._before: list[float] = []  # seconds of the latest steps
        self._new: list[str] = []
        self._after: list[float] = []

    def step(self, done: int, seconds: float, terms: Set[str]) -> list[str]:
        """Take note of a step, after which `done` steps are done; return all terms so far."""
        fresh = sorted(terms - {*self._terms})
        if self._terms and fresh and not self._new:
            self._new = fresh
        self._terms += fresh
        if not self._new:
            self._before = [*self._before[1 - MEASURED :], seconds]
            return self._terms
        self._after.append(seconds)
        if len(self._after) == MEASURED or done == self._total:
            self._report(done)
        return self._terms

    def _report(self, done: int) -> None:
        names = " and ".join(repr(name) for name in self._new)
        after = sum(self._after) / len(self._after)
        line = f"the penalty {names} has begun: {after:.2g} s per step"
        if self._before:
            line += f" instead of {sum(self._before) / len(self._before):.2g} s"
        minutes = after * (self._total - done) / 60
        self._tell(f"{line}, about {minutes:.1f} minutes for the remaining {self._total - done} steps")
        self._new, self._after = [], []
