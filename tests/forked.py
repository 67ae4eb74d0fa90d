"""Programs in processes that are forked from the tests': they end or are killed alone, and import nothing again."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest


@contextmanager
def started(program: Callable[[], object], *, output: Path) -> Iterator[BaseProcess]:
    """Run a program in another process, which writes what it prints to a file, and kill it at the end if it still runs.

    Its exit code is that of `sys.exit`, or minus the number of the signal that ended it.
    """
    process = multiprocessing.get_context("fork").Process(target=_main, args=(program, str(output)))
    with warnings.catch_warnings():  # of threads, which do nothing here
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def pytest_passes(*arguments: str | Path, folder: Path, path: tuple[Path, ...] = ()) -> str:
    """Run `pytest ARGUMENTS` in a folder; fails where it fails, and returns what it printed."""

    def program() -> int:
        os.chdir(folder)
        sys.path[:0] = found = [*map(str, [folder, *path])]
        os.environ["PYTHONPATH"] = os.pathsep.join([*found, os.environ.get("PYTHONPATH", "")])
        return int(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *map(str, arguments)]))

    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "output"
        with started(program, output=output) as process:
            process.join()
        printed = output.read_text(encoding="utf-8")
        assert process.exitcode == 0, printed
        return printed


def _main(program: Callable[[], object], output: str) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    for number in (1, 2):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    sys.exit(program())
