"""A fence around foreign code: its errors are returned, its output goes to stderr, what it changes is restored."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from typing import Any

from xaihub.notices.leaving import refused
from xaihub.notices.process import (
    DRAWING,
    ENVIRONMENT,
    Observer,
    Setting,
    of_imports,
    of_process,
    of_random,
    of_thread,
)

_SHOWN = 300  # characters of an error's text
_LAST_INTERRUPT = 3  # Ctrl-C ends the process when foreign code has swallowed it twice
# Settings, random state and streams belong to the process, so foreign code of several threads is run in turn.
_turn = threading.RLock()


@dataclass
class Outcome:
    """What became of foreign code.

    Attributes:
        value: What it returned, or None.
        error: What it raised, or None; `TimeoutError` if it was stopped.
        changed: The settings of the process that it changed; they are restored.
        seconds: How long it ran.
        stopped: Whether it was stopped at the time limit.
    """

    value: Any = None
    error: BaseException | None = None
    changed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False


class Interrupted(KeyboardInterrupt):
    """The user pressed Ctrl-C while foreign code ran."""

    def __init__(self, seconds: float) -> None:
        """Store how long the code had run."""
        super().__init__()
        self.seconds = seconds


def run(
    action: Callable[[], Any],
    *,
    libraries: bool = False,
    patience: float | None = None,
    limit: float = 0.0,
    slow: Callable[[], None] | None = None,
) -> Outcome:
    """Call `action` behind the fence.

    Args:
        action: The foreign code.
        libraries: It may import large libraries: they set environment variables, which stay, and draw random numbers,
            which is no fault.
        patience: Seconds after which `slow` is called, or None to let the code run without being watched.
        limit: Seconds after which the code is stopped; only in the main thread, and not while it is in native code.
        slow: Called once, from another thread.

    Raises:
        Interrupted: The user pressed Ctrl-C; a `KeyboardInterrupt` that the code raises itself is an ordinary error.
    """
    outcome = Outcome()
    with _random_states() as random, _turn, stdout_to_stderr(), _Watch(patience, limit, slow) as watch:
        settings = (*of_process(), *of_imports(), *of_thread(), *random)
        before = Observer([setting for setting in settings if not (libraries and setting is ENVIRONMENT)])
        depth, started = sys.getrecursionlimit(), time.perf_counter()
        try:
            with refused():
                outcome.value = action()
        except BaseException as error:  # the fence: foreign code may raise anything
            outcome.error = error
        finally:
            if sys.getrecursionlimit() != depth:
                sys.setrecursionlimit(depth)  # here, because under a low limit no function could be called
                outcome.changed.append("the recursion limit")
            outcome.seconds = time.perf_counter() - started
            outcome.changed += before.restore(imports=libraries)
    if watch.interrupts:
        raise Interrupted(outcome.seconds)
    if watch.stopped:
        outcome.value, outcome.error, outcome.stopped = None, TimeoutError(f"stopped after {limit:g} s"), True
    return outcome


@contextmanager
def _random_states() -> Iterator[tuple[Setting, ...]]:
    """Yield the random states unless another thread may draw from them: a change could be its own."""
    alone = threading.current_thread() is threading.main_thread() and DRAWING.acquire(blocking=False)
    try:
        yield of_random() if alone else ()
    finally:
        if alone:
            DRAWING.release()


def attempt(action: Callable[[], Any]) -> Outcome:
    """Call code that is trusted to leave the process as it is; only what it raises is returned, except Ctrl-C."""
    outcome, started = Outcome(), time.perf_counter()
    try:
        with redirect_stdout(sys.stderr):
            outcome.value = action()
    except (Exception, SystemExit) as error:  # built-in code may fail in a damaged environment
        outcome.error = error
    outcome.seconds = time.perf_counter() - started
    return outcome


def described(error: BaseException) -> str:
    """Return the type and text of an error on one line, also if its text cannot be read."""
    try:
        text = " ".join(str(error).split())[:_SHOWN]
    except BaseException:  # an exception's __str__ is foreign code, too
        text = "(its text cannot be read)"
    return f"{type(error).__name__}: {text}".rstrip(": ")


@contextmanager
def stdout_to_stderr() -> Iterator[int | None]:
    """Send to stderr what is written to stdout, from Python or by file descriptor.

    Yields:
        A duplicate of the file descriptor of stdout, or None if it is closed.
    """
    streams = [stream for stream in (sys.stdout, sys.__stdout__) if stream is not None]
    kept = None
    _flush(streams)
    with suppress(OSError):  # one of the two is closed
        kept = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield kept
    finally:
        _flush(streams)
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def _flush(streams: list[Any]) -> None:
    """Empty the buffers of streams, and those of the C library if something has loaded it."""
    for stream in streams:
        with suppress(OSError, ValueError, AttributeError):  # closed, or replaced by something else
            stream.flush()
    library = sys.modules.get("ctypes")
    if library is not None and os.name == "posix":
        with suppress(OSError, AttributeError):
            library.CDLL(None).fflush(None)


class _Watch:
    """Tells Ctrl-C and the time limit from a `KeyboardInterrupt` that foreign code raises."""

    def __init__(self, patience: float | None, limit: float, slow: Callable[[], None] | None) -> None:
        self.interrupts = 0
        self.stopped = False
        self._patience, self._limit, self._slow = patience, limit, slow
        self._sent = False
        self._guard, self._done = threading.Lock(), threading.Event()
        self._main = threading.current_thread() is threading.main_thread()
        self._previous: Any = None

    def __enter__(self) -> _Watch:
        if self._main:
            self._previous = signal.signal(signal.SIGINT, self._hear)
        if self._patience is not None:
            threading.Thread(target=self._wait, name="xaihub-watch", daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        with self._guard:
            self._done.set()
        if self._main:
            signal.signal(signal.SIGINT, signal.SIG_DFL if self._previous is None else self._previous)

    def _hear(self, number: int, frame: Any) -> None:
        if self._sent:
            self._sent = False
            if not self._done.is_set():
                self.stopped = True
                raise KeyboardInterrupt
            return
        if self._previous is signal.SIG_IGN:
            return
        self.interrupts += 1
        if self.interrupts >= _LAST_INTERRUPT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        if callable(self._previous):
            self._previous(number, frame)
        raise KeyboardInterrupt

    def _wait(self) -> None:
        if self._done.wait(self._patience):
            return
        if self._slow is not None:
            self._slow()
        if self._done.wait(max(0.0, self._limit - (self._patience or 0.0))) or not self._main:
            return
        with self._guard:
            if not self._done.is_set() and hasattr(signal, "pthread_kill"):
                self._sent = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
