"""One queue for many searches: whatever they ask next goes into the same full batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from heapq import heappop, heappush
from typing import Generic, TypeAlias, TypeVar

import numpy as np

from xaihub_convad.partition import Mask
from xaihub_convad.question import Question, Verdicts, answers

__all__ = ["Task", "run", "run_together", "together"]

R = TypeVar("R")
# A search: it yields (n, H, W) masks, is sent the verdicts on them, and returns its result.
Task: TypeAlias = Generator[Mask, Verdicts, R]


def run(question: Question, task: Task[R]) -> R:
    """Run one task to its end."""
    return run_together([(question, task)])[0]


def run_together(tasks: Iterable[tuple[Question, Task[R]]]) -> list[R]:
    """Run independent tasks, each about its own question, in shared batches; return their results in their order.

    A task is taken up only when those before it have nothing to ask at the moment, so few are half done at a time.
    What a task is told does not depend on the batches.
    """
    return _Queue(list(tasks)).results()


def together(tasks: Iterable[Task[R]]) -> Task[list[R]]:
    """Make one task of several: it asks what all of them ask next, and returns their results in their order."""
    running = dict(enumerate(tasks))
    results: dict[int, R] = {}
    asked: dict[int, Mask] = {}
    heard: dict[int, Verdicts | None] = dict.fromkeys(running)
    while heard:
        for number, verdicts in heard.items():
            try:
                asked[number] = next(running[number]) if verdicts is None else running[number].send(verdicts)
            except StopIteration as end:
                results[number] = end.value
        heard = {}
        if asked:
            verdicts = yield np.concatenate(list(asked.values()))
            for number, masks in asked.items():
                heard[number], verdicts = verdicts[: len(masks)], verdicts[len(masks) :]
            asked = {}
    return [results[number] for number in sorted(results)]


class _Queue(Generic[R]):
    def __init__(self, tasks: list[tuple[Question, Task[R]]]) -> None:
        self._questions = [question for question, _ in tasks]
        self._tasks = [task for _, task in tasks]
        self._waiting = iter(range(len(tasks)))
        self._running: set[int] = set()
        self._ready: list[tuple[int, Mask]] = []  # a heap: the earliest task goes first
        self._sent: deque[tuple[int, int]] = deque()  # tasks and rows, in the order of the stream
        self._heard: dict[int, list[Verdicts]] = {}
        self._finished: dict[int, R] = {}

    def results(self) -> list[R]:
        done = sum(question.asked for question in self._questions)
        while len(self._finished) < len(self._tasks):
            # A stream ends when all that is left depends on its last batch; then the next one begins.
            for batch in answers(self._questions, self._stream(), done):
                for _, verdicts in batch:
                    done += len(verdicts)
                    self._share_out(verdicts)
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
            self._running.add(following)
            self._step(following, None)

    def _share_out(self, verdicts: Verdicts) -> None:
        while len(verdicts):
            number, rows = self._sent.popleft()
            part, verdicts = verdicts[:rows], verdicts[rows:]
            self._heard.setdefault(number, []).append(part)
            if len(part) < rows:
                self._sent.appendleft((number, rows - len(part)))
            else:
                self._step(number, Verdicts.joined(self._heard.pop(number)))

    def _step(self, number: int, verdicts: Verdicts | None) -> None:
        task = self._tasks[number]
        try:
            masks = next(task) if verdicts is None else task.send(verdicts)
        except StopIteration as end:
            self._finished[number] = end.value
            self._running.discard(number)
        else:
            heappush(self._ready, (number, masks))
