"""One queue for many searches: whatever they ask next goes into the same full batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from heapq import heappop, heappush
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from xaihub_convad.partition import Mask
from xaihub_convad.question import Question, Verdicts

__all__ = ["Task", "run", "run_together"]

R = TypeVar("R")
# A search: it yields (n, H, W) masks, is sent the verdicts on them, and returns its result.
Task: TypeAlias = Generator[Mask, Verdicts, R]


def run(question: Question, task: Task[R]) -> R:
    """Run one task to its end."""
    return next(run_together(question, [task]))


def run_together(question: Question, tasks: Iterable[Task[R]]) -> Generator[R, None, None]:
    """Run independent tasks in shared batches and yield their results in the order of the tasks.

    A task is taken up only when those before it have nothing to ask at the moment, so few are half done when the
    caller stops early. What a task is told does not depend on the batches.
    """
    return _Queue(question, tasks).results()


class _Queue(Generic[R]):
    def __init__(self, question: Question, tasks: Iterable[Task[R]]) -> None:
        self._question = question
        self._waiting = enumerate(tasks)
        self._running: dict[int, Task[R]] = {}
        self._ready: list[tuple[int, Mask]] = []  # a heap: the earliest task goes first
        self._sent: deque[tuple[int, int]] = deque()  # tasks and rows, in the order of the stream
        self._heard: dict[int, list[Verdicts]] = {}
        self._finished: dict[int, R] = {}

    def results(self) -> Generator[R, None, None]:
        following = 0
        while True:
            # A stream ends when all that is left depends on its last batch; then the next one begins.
            for verdicts in self._question.answers(self._stream()):
                self._share_out(verdicts)
                while following in self._finished:
                    yield self._finished.pop(following)
                    following += 1
            if not self._running:
                break
        yield from (self._finished[number] for number in sorted(self._finished))

    def _stream(self) -> Iterator[Tensor]:
        while True:
            if self._ready:
                number, masks = heappop(self._ready)
                self._sent.append((number, len(masks)))
                yield torch.from_numpy(masks)
                continue
            number, task = next(self._waiting, (-1, None))
            if task is None:
                return
            self._running[number] = task
            self._step(number, None)

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
        task = self._running[number]
        try:
            masks = next(task) if verdicts is None else task.send(verdicts)
        except StopIteration as end:
            self._finished[number] = end.value
            del self._running[number]
        else:
            heappush(self._ready, (number, masks))
