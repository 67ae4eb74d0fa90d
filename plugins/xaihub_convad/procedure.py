"""The whole way from one question to a map and sets of pixels, as one task that shares batches with others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np

from xaihub_convad.extraction import Goal, Room, Strategy, Values, adjusted, grown, prefix, ranking, shrunk, spotlight
from xaihub_convad.partition import SUBSETS, Cuts, Mask
from xaihub_convad.question import Question
from xaihub_convad.responsibility import Combine, Iteration, Responsibility, Search, search
from xaihub_convad.workqueue import Task, together

__all__ = ["FEWEST_ITERATIONS", "LEAST_BUDGET", "MUTANTS", "Procedure", "Result", "Set"]

R = TypeVar("R")
MUTANTS = len(SUBSETS)
FEWEST_ITERATIONS = 4  # before the map may count as settled
FIXED = 2  # the whole image and nothing of it
CHECKS = 4  # of the sets of one map at most: each alone, and where it matters the image without it
FOR_SETS = 0.25  # of a budget
LEAST_BUDGET = FIXED + MUTANTS + CHECKS + 2


@dataclass(frozen=True, kw_only=True)
class Set:
    """One set of pixels: its name, its (H, W) mask, whether it must be necessary, and whether no cell can be spared."""

    name: str
    mask: Mask
    necessary: bool = False
    minimal: bool = False


@dataclass(kw_only=True)
class Result:
    """What became of one question.

    Attributes:
        merged: The responsibility of each pixel.
        sets: Sets of pixels, the main one first.
        splits: Boxes that were split, each of them 14 rows.
        searched: Rows of the first map, those that started the question included.
        stopped: Why there are no more sets.
    """

    merged: Responsibility
    sets: list[Set] = field(default_factory=list)
    splits: int = 0
    searched: int = 0
    stopped: str | None = None


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """How a question is dealt with; the fields are parameters of the explainers.

    `wave` searches run side by side; it changes nothing but how many rows are asked at a time.
    """

    rules: Search
    strategy: Strategy
    confidence: float
    iterations: int
    agreement: float
    budget: int | None
    combine: Combine
    step: int
    shrink: bool
    cell: int
    radius: float
    alternatives: int
    wave: int = FEWEST_ITERATIONS

    def task(self, question: Question, seed: int) -> Task[Result]:
        """Return the task that answers the question."""
        count = self.alternatives if self.strategy == "multiple" else 1
        whole = math.inf if self.budget is None else (self.budget - FIXED) // count
        merged, splits = yield from self._searched(question, seed, None, whole)
        result = Result(merged=merged, splits=splits, searched=FIXED + splits * MUTANTS)
        room = Room(whole - splits * MUTANTS - CHECKS)
        yield from self._sets(question, result, room, seed, whole)
        return result

    def _searched(
        self, question: Question, seed: int, allowed: Mask | None, budget: float
    ) -> Task[tuple[Responsibility, int]]:
        """Merge searches in their order until they are done or the map has settled; count all splits."""
        iterations, refinements = self.iterations, self.rules.refinements
        if budget < math.inf:
            affordable = max(1, int(budget * (1 - FOR_SETS)) // MUTANTS)
            iterations = min(iterations, affordable)
            refinements = min(refinements, affordable // iterations)
        how = self.rules.within(question.confidence, refinements)

        def tasks() -> Iterator[Task[Iteration]]:
            for number in range(iterations):
                yield search(question.size, how, Cuts(seed, number), allowed=allowed, trivial=question.trivial)

        merged, splits, waiting = Responsibility(question.size, self.combine), 0, tasks()
        while wave := list(islice(waiting, self.wave)):
            found = yield from together(wave)
            splits += sum(done.refinements for done in found)
            for done in found:
                merged.add(done.values)
                if merged.count >= FEWEST_ITERATIONS and self.agreement < 1 and merged.agreement >= self.agreement:
                    return merged, splits
        return merged, splits

    def _sets(self, question: Question, result: Result, room: Room, seed: int, budget: float) -> Task[None]:
        """Add the masks by name, whether each must be necessary, and why there are no more."""
        values = result.merged.values
        goal = Goal(self.confidence * question.confidence)
        if self.strategy == "multiple":
            yield from self._disjoint(question, result, goal, room, seed, budget)
            return
        enough = yield from self._extract("mask", values, goal, room)
        if self.strategy in ("global", "spatial"):
            result.sets = [enough]
            return
        both = yield from self._extract("mask", values, Goal(goal.confidence, necessary=True), room)
        enough = Set(name="mask_sufficient", mask=enough.mask, minimal=enough.minimal)
        if self.strategy == "contrastive":
            result.sets = [both, enough]
            return
        whole = yield from adjusted(both.mask, ranking(values), question.confidence, step=self.step, room=room)
        both = Set(name="mask_contrastive", mask=both.mask, necessary=True, minimal=both.minimal)
        result.sets = [Set(name="mask", mask=whole), both, enough]

    def _extract(self, name: str, values: Values, goal: Goal, room: Room, allowed: Mask | None = None) -> Task[Set]:
        """Grow a set along the ranking, and shrink it if that is asked for."""
        within = allowed
        if self.strategy == "spatial":
            within = yield from spotlight(values, self.radius, goal, room)
        order = ranking(values, within)
        count = yield from grown(
            lambda size: prefix(order, size, values.shape), len(order), goal, step=self.step, room=room
        )
        mask, minimal = prefix(order, count, values.shape), False
        if self.shrink:
            mask, minimal = yield from shrunk(mask, values, goal, side=self.cell, room=room)
        return Set(name=name, mask=mask, necessary=goal.necessary, minimal=minimal)

    def _disjoint(
        self, question: Question, result: Result, goal: Goal, room: Room, seed: int, budget: float
    ) -> Task[None]:
        """Find sets one after the other, each searched for with those before it hidden."""
        allowed = np.ones(question.size, dtype=np.bool_)
        merged = result.merged
        while True:
            name = "mask" if not result.sets else f"mask_{len(result.sets) + 1}"
            one = yield from self._extract(name, merged.values, goal, room, allowed)
            result.sets.append(one)
            allowed = allowed & ~one.mask
            if len(result.sets) == self.alternatives:
                return
            if not one.mask.any():
                result.stopped = "no pixel is needed"
                return
            verdict = yield allowed[None]
            if not verdict.pass_at(goal.confidence)[0]:
                result.stopped = "the pixels that are left are not enough"
                return
            merged, splits = yield from self._searched(question, seed + len(result.sets), allowed, budget - 1)
            result.splits += splits
            room = Room(budget - 1 - splits * MUTANTS - CHECKS)
