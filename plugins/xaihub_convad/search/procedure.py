"""The whole procedure for one image: searches, their merged map, and sets of pixels cut from its ranking."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from xaihub_convad.search.evaluation import Evaluator
from xaihub_convad.search.extraction import (
    Budget,
    Goal,
    cell_prefixes,
    completed,
    disc,
    grown,
    ranking,
    settled,
    shrunk,
)
from xaihub_convad.search.partition import SUBSETS, Cuts, Mask, Values
from xaihub_convad.search.responsibility import Iteration, Responsibility, search
from xaihub_convad.search.scheduling import Task, combined
from xaihub_convad.search.settings import Settings

MUTANTS = len(SUBSETS)
FEWEST_ITERATIONS = 6  # before the map may count as stable
FIXED = 2  # the whole image, and the image with everything masked
CHECKS = 10  # maximum per map: each of three sets alone, eroded and dilated, and the complement of one
FOR_SETS = 0.25  # of a budget
LEAST_BUDGET = FIXED + MUTANTS + CHECKS + 2


@dataclass(frozen=True, kw_only=True)
class FoundSet:
    """A set of pixels: its (H, W) mask, its role, and whether no cell can be removed."""

    mask: Mask
    role: str = "sufficient"
    minimal: bool = False


@dataclass(kw_only=True)
class Result:
    """The result for one image."""

    merged: Responsibility  # the responsibility of each pixel
    sets: list[FoundSet] = field(default_factory=list)  # sets of pixels, the main one first
    splits: int = 0  # boxes that were split, at up to 14 rows each
    searched: int = 0  # rows of the first map and of the evaluations before it
    stopped: str | None = None  # why there are no more sets


@dataclass(frozen=True, kw_only=True)
class CausalSearch:
    """The procedure for one image.

    `wave`, the number of searches that run concurrently, changes only the cost; `seen` is called with preliminary maps.
    """

    settings: Settings
    evaluator: Evaluator
    seed: int
    wave: int = 1
    seen: Callable[[Values], None] = lambda _values: None

    def task(self) -> Task[Result]:
        """Return the procedure as a task, which shares batches with those of other images."""
        budget, count = self.settings.budget, self.settings.alternatives if self.settings.strategy == "multiple" else 1
        per_map = math.inf if budget is None else (budget - FIXED) // count
        merged, splits = yield from self._searched(self.seed, None, per_map)
        self.seen(merged.values)
        result = Result(merged=merged, splits=splits, searched=self.evaluator.rows)
        left = Budget(per_map - splits * MUTANTS - CHECKS)
        goal = Goal(self.settings.confidence * self.evaluator.confidence)
        if self.settings.strategy == "multiple":
            yield from self._disjoint(result, goal, left, per_map)
        else:
            result.sets = yield from self._sets(merged.values, goal, left)
        return result

    def _searched(self, seed: int, allowed: Mask | None, budget: float) -> Task[tuple[Responsibility, int]]:
        """Merge searches in order until they are done or the map is stable; count all splits."""
        iterations, refinements = self.settings.iterations, self.settings.refinements
        if budget < math.inf:
            affordable = max(1, int((budget - CHECKS) * (1 - FOR_SETS)) // MUTANTS)
            iterations = min(iterations, affordable)
            refinements = min(refinements, affordable // iterations)

        def tasks() -> Iterator[Task[Iteration]]:
            for number in range(iterations):
                yield search(
                    self.evaluator.size,
                    Cuts(seed, number),
                    refinements=refinements,
                    confidence=self.settings.confidence_filter * self.evaluator.confidence,
                    allowed=allowed,
                    trivial=self.evaluator.trivial,
                )

        merged, splits, waiting = Responsibility(self.evaluator.size), 0, tasks()
        agreement = self.settings.agreement
        while wave := list(islice(waiting, max(self.wave, FEWEST_ITERATIONS - merged.count))):
            if merged.count:
                self.seen(merged.values)
            found = yield from combined(wave)
            splits += sum(done.splits for done in found)
            for done in found:
                merged.add(done.values)
                if merged.count >= FEWEST_ITERATIONS and agreement < 1 and merged.agreement >= agreement:
                    return merged, splits
        return merged, splits

    def _sets(self, values: Values, goal: Goal, budget: Budget) -> Task[list[FoundSet]]:
        """Return the sets of the strategy, the main one first."""
        spare = Budget(self.settings.shrink, of=budget)
        sufficient = yield from self._extract(values, goal, budget, spare)
        if self.settings.strategy in ("global", "spatial"):
            return [sufficient]
        contrastive = yield from self._extract(values, Goal(goal.confidence, necessary=True), budget, spare)
        if self.settings.strategy == "contrastive":
            return [contrastive, sufficient]
        mask = yield from completed(contrastive.mask, ranking(values), self.evaluator.confidence, budget=budget)
        return [FoundSet(mask=mask, role="complete"), contrastive, sufficient]

    def _extract(
        self, values: Values, goal: Goal, budget: Budget, spare: Budget, allowed: Mask | None = None
    ) -> Task[FoundSet]:
        """Grow a set of cells along the ranking, shrink it with the rows to spare, and give it a margin."""
        settings = self.settings
        if settings.strategy == "spatial":
            allowed = yield from disc(values, settings.radius, goal, budget)
        allowed = np.ones(values.shape, dtype=np.bool_) if allowed is None else allowed
        build, total = cell_prefixes(values, settings.cell, allowed)
        count = yield from grown(build, total, goal, budget=budget)
        mask, minimal = yield from shrunk(build(count), values, goal, side=settings.cell, budget=spare)
        mask = yield from settled(mask, goal, allowed, budget)
        return FoundSet(mask=mask, role="contrastive" if goal.necessary else "sufficient", minimal=minimal)

    def _disjoint(self, result: Result, goal: Goal, left: Budget, per_map: float) -> Task[None]:
        """Find sets one after the other, with the pixels of earlier ones masked in each further search."""
        allowed = np.ones(self.evaluator.size, dtype=np.bool_)
        merged = result.merged
        while True:
            one = yield from self._extract(merged.values, goal, left, Budget(self.settings.shrink, of=left), allowed)
            result.sets.append(one)
            allowed = allowed & ~one.mask
            if len(result.sets) == self.settings.alternatives:
                return
            if not one.mask.any():
                result.stopped = "no pixel is needed"
                return
            verdict = yield allowed[None]
            if not verdict.pass_at(goal.confidence)[0]:
                result.stopped = "the remaining pixels are not sufficient"
                return
            merged, splits = yield from self._searched(self.seed + len(result.sets), allowed, per_map - 1)
            result.splits += splits
            left = Budget(per_map - 1 - splits * MUTANTS - CHECKS)
