"""Announces when another term of the loss begins, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set

MEASURED = 5  # steps whose mean duration is reported, after a first one, in which an objective may calibrate


class Phases:
    """Measures the steps of a run, and reports how much longer they take since a further term takes part."""

    def __init__(self, terms: Iterable[str], total: int, *, tell: Callable[[str], None]) -> None:
        """Take the terms that the loss has had so far, and the number of steps of the run."""
        self._terms, self._total, self._tell = list(terms), total, tell
        self._seconds, self._steps = 0.0, 0  # before the new terms
        self._new: list[str] = []
        self._after: list[float] = []

    def measures(self, terms: Set[str]) -> bool:
        """Return whether the duration of a step with these terms will be reported, so that it has to be exact."""
        return bool(self._new or (self._terms and terms - {*self._terms}))

    def step(self, done: int, seconds: float, terms: Set[str]) -> list[str]:
        """Take note of a step, after which `done` steps are done; return all terms so far."""
        fresh = sorted(terms - {*self._terms})
        if self._terms and fresh and not self._new:
            self._new = fresh
        self._terms += fresh
        if not self._new:
            self._seconds, self._steps = self._seconds + seconds, self._steps + 1
            return self._terms
        self._after.append(seconds)
        if len(self._after) > MEASURED or done == self._total:
            self._report(done)
        return self._terms

    def _report(self, done: int) -> None:
        names = " and ".join(repr(name) for name in self._new)
        measured = self._after[1:] or self._after
        after = sum(measured) / len(measured)
        before = f" instead of {self._seconds / self._steps:.2g} s" if self._steps else ""
        left = self._total - done
        self._tell(
            f"the penalty {names} has begun: {after:.2g} s per step{before},"
            f" about {after * left / 60:.1f} minutes for the remaining {left} steps"
        )
        self._new, self._after, self._seconds, self._steps = [], [], 0.0, 0
