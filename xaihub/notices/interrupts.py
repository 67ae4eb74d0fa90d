"""Ctrl-C of the user: told from a `KeyboardInterrupt` that code raises itself, and noticed also where code swallows it.

Python itself swallows one that arrives in a destructor or in a callback of the garbage collector or of an import.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_times = 0


def _hear(number: int, frame: FrameType | None) -> None:
    global _times
    _times += 1
    signal.default_int_handler(number, frame)


class Presses:
    """Whether Ctrl-C has been pressed since this was made."""

    def __init__(self, *, counted: bool, unknown: bool) -> None:
        """Take whether presses are counted here; `unknown` are those that somebody else's handler receives."""
        self._before, self._unknown = _times if counted else math.inf, unknown

    def __bool__(self) -> bool:
        """Whether it was pressed."""
        return _times > self._before

    def raised(self, error: BaseException) -> bool:
        """Whether an exception is due to the user, as far as can be known."""
        return isinstance(error, KeyboardInterrupt) and (bool(self) or self._unknown)


@contextmanager
def heard() -> Iterator[Presses]:
    """Notice Ctrl-C inside; it reaches the main thread only.

    The handler of somebody else is left alone. Where Ctrl-C is ignored, as in the background, none is the user's.
    """
    handler = signal.getsignal(signal.SIGINT)
    alone = threading.current_thread() is threading.main_thread()
    unknown = alone and handler not in (_hear, signal.default_int_handler, signal.SIG_IGN)
    presses = Presses(counted=alone, unknown=unknown)
    if not alone or handler is not signal.default_int_handler:
        yield presses
        return
    try:
        signal.signal(signal.SIGINT, _hear)
        yield presses
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
