"""Attempts of foreign code to end or to replace the process: the caller would take an exit status of 0 for success."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn
from weakref import WeakSet

LEFT: WeakSet[Any] = WeakSet()  # threads and processes that foreign code has left
# Every other function that replaces the process calls one of the last two.
_REAL: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in ("_exit", "execv", "execve")}
_MODULES = (os, sys.modules[os.name])  # the built-in module of the platform has the same functions
_lock = threading.Lock()
_users = 0
_process = 0


@contextmanager
def refused() -> Iterator[None]:
    """Raise `SystemExit` in whatever thread of this process calls `os._exit` or `os.exec...`, while inside.

    Processes that are forked inside may end as always. An exit in native code cannot be refused.
    """
    global _users
    _arm()
    try:
        yield
    finally:
        with _lock:
            _users = max(0, _users - 1)  # a forked process may leave what its parent entered
            if not _users:
                _replace(_REAL)


def _arm() -> None:
    global _users, _process
    with _lock:
        if _process != os.getpid():
            _users, _process = 0, os.getpid()
        if not _users:
            _replace({name: _refusing(name) for name in _REAL})
        _users += 1


def leave(status: int) -> None:
    """End the processes that foreign code has left, and this one if Python would wait for threads; else return.

    From then on exits are refused: functions that foreign code has registered with `atexit` may not change the status.
    """
    _arm()
    threads = [one for one in LEFT if isinstance(one, threading.Thread)]
    for process in set(LEFT).difference(threads):
        process.kill()
    if any(thread.is_alive() and not thread.daemon for thread in threads):
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed, or replaced by something else
                stream.flush()
        really_exit(status)


def really_exit(status: int) -> NoReturn:
    """End the process at once, also while foreign code runs in another thread."""
    _REAL["_exit"](status)
    raise AssertionError


def _replace(functions: dict[str, Callable[..., Any]]) -> None:
    for module in _MODULES:
        for name, function in functions.items():
            setattr(module, name, function)


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(*arguments: Any) -> Any:
        # Code may have kept this function: `from os import _exit`.
        if not _users or os.getpid() != _process:
            return _REAL[name](*arguments)
        raise SystemExit(f"os.{name}({', '.join(map(repr, arguments[:1]))}) ends the program")

    return refuse
