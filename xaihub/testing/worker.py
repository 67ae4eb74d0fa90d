"""A child process that runs checks: when a plugin ends or blocks it, it is replaced, and the program goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

# Forking keeps torch, timm and the plugins that the program has loaded, so that a new worker starts in milliseconds.
# Windows cannot fork; there, checks run in the program itself.
AVAILABLE = hasattr(os, "fork")
PRELOADED = ("torch", "timm.models")


class WorkerLost(Exception):
    """The worker did not return a result; the message says what happened, as the end of "it ..."."""


class Worker:
    """Runs `work(task)` in a forked process, which is started when it is first needed and again after it was lost."""

    def __init__(self, work: Callable[[int], dict[str, Any]], *, seconds: float) -> None:
        """Run `work`, which takes the number of a task and returns JSON types, for at most `seconds` per task."""
        self._work = work
        self._seconds = seconds
        self._process: Any = None
        self._link: Connection | None = None

    def __enter__(self) -> Worker:
        """Return the worker."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, also if threads that a plugin left behind would keep it alive."""
        self._end()

    def __call__(self, task: int) -> dict[str, Any]:
        """Return the result of a task.

        Raises:
            WorkerLost: The process ended, or did not finish in time; it is replaced by the next call.
        """
        link = self._link or self._start()
        try:
            link.send(task)
            if not link.poll(self._seconds):
                self._end()
                raise WorkerLost(f"did not finish within {self._seconds:g} seconds")
            found: dict[str, Any] = json.loads(link.recv_bytes())  # not unpickled: it comes from the plugin's process
        except (EOFError, OSError, ValueError) as error:
            raise WorkerLost(_ending(self._end(patience=5))) from error
        return found

    def _start(self) -> Connection:
        for name in PRELOADED:
            import_module(name)
        context = multiprocessing.get_context("fork")
        for stream in (sys.stdout, sys.stderr):  # else the child inherits, and writes again, what is buffered
            with suppress(OSError, ValueError):
                stream.flush()
        self._link, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._work, far, self._link), daemon=True)
        self._process.start()
        far.close()
        return self._link

    def _end(self, *, patience: float = 0) -> int | None:
        """End the process, after waiting for `patience` seconds, and return its exit code if it ended by itself."""
        if self._process is None or self._link is None:
            return None
        self._process.join(patience)
        code: int | None = self._process.exitcode
        self._process.kill()
        self._process.join()
        self._link.close()
        self._process = self._link = None
        return code


def _ending(code: int | None) -> str:
    if code is None:
        return "closed the connection to the program"
    if code < 0:
        with suppress(ValueError):
            return f"crashed the process ({signal.Signals(-code).name})"
    return f"ended the process with exit status {code}"


def _serve(work: Callable[[int], dict[str, Any]], link: Connection, other: Connection) -> None:
    """Run tasks until the program closes the connection."""
    import torch

    other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the program ends its worker
    os.dup2(2, 1)  # what plugins print must not mix with results
    torch.set_num_threads(1)  # a pool of threads does not survive the fork; small networks gain nothing from it
    while True:
        try:
            task = link.recv()
        except (EOFError, OSError):
            return
        link.send_bytes(json.dumps(work(task)).encode())
