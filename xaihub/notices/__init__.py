"""Python warnings of one thread, collected for the record."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

_heard: ContextVar[dict[str, None] | None] = ContextVar("heard", default=None)
_ignored: ContextVar[tuple[str, ...]] = ContextVar("ignored", default=())

# `warnings.catch_warnings` changes the filters of the whole process. Overlapping uses by several threads would restore
# each other's, so the first thread installs one collector for all, and the last removes it.
_guard = threading.Lock()
_stack = ExitStack()
_users = 0


@contextmanager
def caught() -> Iterator[list[str]]:
    """Collect the messages of this thread's Python warnings, each once; the list is complete on leaving."""
    heard: list[str] = []
    token = _heard.set({})
    _enter()
    try:
        yield heard
    finally:
        _leave()
        heard.extend(_heard.get() or ())
        _heard.reset(token)


@contextmanager
def without_warnings(pattern: str) -> Iterator[None]:
    """Do not collect warnings of this thread whose message starts with a regular expression."""
    token = _ignored.set((*_ignored.get(), pattern))
    try:
        yield
    finally:
        _ignored.reset(token)


def _enter() -> None:
    global _users
    with _guard:
        if _users == 0:
            _stack.enter_context(warnings.catch_warnings())
            show = warnings.showwarning
            # Every time: Python itself remembers for the whole process what it has shown once.
            warnings.simplefilter("always")

            def hear(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
                heard = _heard.get()
                if heard is None:  # a thread that explains nothing
                    show(message, category, *where, **more)
                elif issubclass(category, (UserWarning, RuntimeWarning)) and not any(
                    re.match(pattern, str(message)) for pattern in _ignored.get()
                ):
                    heard[str(message)] = None

            warnings.showwarning = hear
        _users += 1


def _leave() -> None:
    global _users
    with _guard:
        _users -= 1
        if _users == 0:
            _stack.close()
