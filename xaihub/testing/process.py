"""Observing a plugin's code: what it changes in the process, and what it prints to stdout."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import StringIO

from xaihub.notices.process import Observer, of_imports, of_process, of_random, of_thread


@dataclass
class Observation:
    """What observed code did.

    Attributes:
        changes: What it changed in the process and did not restore.
        printed: What it wrote to stdout, from Python or by file descriptor.
        runs: How often code was observed.
    """

    changes: list[str] = field(default_factory=list)
    printed: str = ""
    runs: int = 0


@contextmanager
def observed(into: Observation, *, draws: bool = True) -> Iterator[None]:
    """Observe the code inside; unless `draws` is false, it must not change the random state."""
    settings = (*of_thread(), *of_process(), *of_imports(), *(() if draws else of_random()))
    into.runs += 1
    with _silenced(into):
        before = Observer(settings, left=True, functions=True)
        try:
            yield
        finally:
            into.changes += before.changes()


@contextmanager
def _silenced(into: Observation) -> Iterator[None]:
    """Catch what is written to stdout."""
    written = StringIO()
    with tempfile.TemporaryFile() as file:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            with redirect_stdout(written):
                yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            file.seek(0)
            into.printed += written.getvalue() + file.read().decode(errors="replace")
