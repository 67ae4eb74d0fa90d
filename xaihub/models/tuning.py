"""The fastest batch size and number of threads, found with passes that are made anyway."""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch

from xaihub.models import cache

OFF = "XAIHUB_TUNING"  # 0: nothing is measured, and no other backend than eager is chosen
REPEATS = 2  # measured passes per candidate, of which the faster counts; one more before them prepares the shape
BETTER = 0.97  # of the time per row; smaller gains are noise


@dataclass(frozen=True)
class Choice:
    """Rows per forward pass, threads, and the images per second (of CPU time, on one thread) measured with them."""

    rows: int
    threads: int
    images_per_second: float = 0.0


_known: list[dict[str, Any]] = []  # the choices of runs, by key, innermost last


@contextmanager
def choices_of_run(choices: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Use the choices of an earlier part of a run; yield a table, as JSON types, to which new ones are added."""
    table = dict(choices)
    _known.append(table)
    try:
        yield table
    finally:
        _known[:] = [each for each in _known if each is not table]


def tuned() -> bool:
    """Whether settings that are left open are chosen by measuring."""
    return os.environ.get(OFF, "") != "0"


def machine() -> str:
    """Return what identifies this machine and its libraries for measured and compiled things."""
    return f"{platform.machine()} {_processor()} {os.cpu_count()} torch {torch.__version__}"


def _processor() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
        lines = [line for line in file if line.startswith(("model name", "flags", "CPU part", "Features"))]
        return "".join(sorted(set(lines)))
    return platform.processor()


class Tuning:
    """Climbs from a first guess to the batch size and number of threads with the most images per second.

    The candidates run real passes, so nothing is computed in vain; batch sizes change scores by rounding only.

    Attributes:
        choice: The best, once it is known; until then None.
        now: (rows, threads) of the next pass.
    """

    def __init__(self, key: str, *, about: str, first: int, sizes: range, threads: tuple[int, ...]) -> None:
        """Recall what an earlier process found, or begin.

        Args:
            key: What the speed depends on, apart from the machine.
            about: The model's name, for the list of the cache.
            first: Rows to begin with.
            sizes: The numbers of rows that may be tried.
            threads: The numbers of threads to try, the process's own first.
        """
        self._key, self._about, self._sizes = f"{machine()} {threads} {sizes.start} {key}", about, sizes
        first, threads = min(first, sizes[-1]), tuple(dict.fromkeys(threads))
        self._single = threads == (1,)
        single = not tuned() or len(sizes) == len(threads) == 1
        self.choice = Choice(first, threads[0]) if single else _recalled(self._key, sizes)
        self._turn = threading.Lock()
        self._search = self._climb(first, threads)
        self.now = (self.choice.rows, self.choice.threads) if self.choice else next(self._search)

    def note(self, rows: int, wall: float, spent: float | None = None) -> None:
        """Take the time of a pass with the settings `now`; one of another size, as the last one, says nothing.

        Args:
            rows: Of the pass.
            wall: Its seconds.
            spent: CPU seconds of this process meanwhile, which other processes do not disturb as much. They say nothing
                about more threads, which a busy machine makes wait for each other.
        """
        with self._turn:
            if self.choice is not None or rows != self.now[0]:
                return
            try:
                self.now = self._search.send((spent if spent and self._single else wall) / rows)
                return
            except StopIteration as end:
                choice: Choice = end.value
            self.choice, self.now = choice, (choice.rows, choice.threads)
            cache.put("batches", self._key, json.dumps(asdict(choice)).encode(), about=self._about)
            _note(self._key, choice)

    def limit(self, rows: int) -> None:
        """End the search, because more rows do not fit into memory."""
        self.now = (rows, self.now[1])
        self.choice = Choice(*self.now)

    def _climb(self, rows: int, threads: tuple[int, ...]) -> Generator[tuple[int, int], float, Choice]:
        found = {}
        for count in threads:  # a busy machine can make several threads slower than one
            found[count] = yield from _least(rows, count)
        fastest = min(found, key=lambda count: found[count])
        best, first = found[fastest], rows
        for grow in (True, False):
            size = rows
            while (size := 2 * size if grow else size // 2) in self._sizes:
                seconds = yield from _least(size, fastest)
                if seconds > BETTER * best:
                    break
                best, rows = seconds, size
            if rows != first:
                break
        return Choice(rows, fastest, 1 / best)


def _least(rows: int, threads: int) -> Generator[tuple[int, int], float, float]:
    times = []
    for _ in range(REPEATS + 1):
        times.append((yield rows, threads))  # noqa: PERF401 - yield
    return max(min(times[1:]), 1e-9)


def _note(key: str, choice: Choice) -> None:
    for table in _known:
        table[key] = asdict(choice)


def _recalled(key: str, sizes: range) -> Choice | None:
    for table in reversed(_known):
        if (choice := _read(table.get(key), sizes)) is not None:
            return choice
    with suppress(ValueError):
        if (choice := _read(json.loads(cache.get("batches", key) or b"null"), sizes)) is not None:
            _note(key, choice)
            return choice
    return None


def _read(stored: Any, sizes: range) -> Choice | None:
    with suppress(TypeError):
        choice = Choice(**stored)
        if choice.rows in sizes and choice.threads >= 1 and choice.images_per_second > 0:
            return choice
    return None
