"""Scheduling of many searches: the masks that they request next share the same full batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from heapq import heappop, heappush
from typing import Generic, TypeAlias, TypeVar

import numpy as np

from xaihub_convad.search.evaluation import Evaluator, Verdicts, evaluated
from xaihub_convad.search.partition import Mask

R = TypeVar("R")
# A search: it yields (n, H, W) masks, is sent the verdicts on them, and returns its result.
Task: TypeAlias = Generator[Mask, Verdicts, R]


def run_all(tasks: Iterable[tuple[Evaluator, Task[R]]]) -> list[R]:
    """Run independent tasks, each with its own evaluator, in shared batches; return their results in order.

    A task starts only when no earlier one has masks waiting, so few are unfinished at a time. The verdicts that a task
    receives do not depend on the batches.
    """
    return _Scheduler(list(tasks)).results()


def combined(tasks: Iterable[Task[R]]) -> Task[list[R]]:
    """Combine tasks into one, which requests what all of them request next and returns their results in order."""
    running = dict(enumerate(tasks))
    results: dict[int, R] = {}
    received: dict[int, Verdicts | None] = dict.fromkeys(running)
    while received:
        requested: dict[int, Mask] = {}
        for number, verdicts in received.items():
            try:
                requested[number] = _advance(running[number], verdicts)
            except StopIteration as end:
                results[number] = end.value
        received = {}
        if requested:
            verdicts = yield np.concatenate(list(requested.values()))
            for number, masks in requested.items():
                received[number], verdicts = verdicts[: len(masks)], verdicts[len(masks) :]
    return [results[number] for number in sorted(results)]


def _advance(task: Task[R], verdicts: Verdicts | None) -> Mask:
    return next(task) if verdicts is None else task.send(verdicts)


class _Scheduler(Generic[R]):
    def __init__(self, tasks: list[tuple[Evaluator, Task[R]]]) -> None:
        self._evaluators = [evaluator for evaluator, _ in tasks]
        self._tasks = [task for _, task in tasks]
        self._waiting = iter(range(len(tasks)))
        self._ready: list[tuple[int, Mask]] = []  # a heap: the earliest task goes first
        self._sent: deque[tuple[int, int]] = deque()  # tasks and rows, in the order of the stream
        self._received: dict[int, list[Verdicts]] = {}
        self._finished: dict[int, R] = {}

    def results(self) -> list[R]:
        done = sum(evaluator.rows for evaluator in self._evaluators)
        while len(self._finished) < len(self._tasks):
            # A stream ends when everything left depends on its last batch; then the next stream begins.
            for batch in evaluated(self._evaluators, self._stream(), done):
                for verdicts in batch:
                    done += len(verdicts)
                    self._distribute(verdicts)
        return [self._finished[number] for number in range(len(self._tasks))]

    def _stream(self) -> Iterator[tuple[int, Mask]]:
        while True:
            if self._ready:
                number, masks = heappop(self._ready)
                self._sent.append((number, len(masks)))
                yield number, masks
                continue
            following = next(self._waiting, None)
            if following is None:
                return
            self._step(following, None)

    def _distribute(self, verdicts: Verdicts) -> None:
        while len(verdicts):
            number, rows = self._sent.popleft()
            part, verdicts = verdicts[:rows], verdicts[rows:]
            self._received.setdefault(number, []).append(part)
            if len(part) < rows:
                self._sent.appendleft((number, rows - len(part)))
            else:
                self._step(number, Verdicts.joined(self._received.pop(number)))

    def _step(self, number: int, verdicts: Verdicts | None) -> None:
        try:
            masks = _advance(self._tasks[number], verdicts)
        except StopIteration as end:
            self._finished[number] = end.value
        else:
            heappush(self._ready, (number, masks))
