"""A worker process for code of plugins: an exit, a crash or an endless loop there costs one answer.

Parent and worker exchange bytes over a pipe; neither runs anything that the other sends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from xaihub.notices.leaving import really_exit

# Windows can neither fork nor pass the number of a pipe; there, everything runs in the program itself.
SUPPORTED = os.name == "posix" and bool(sys.executable)
IDLE = 120.0  # seconds after which a worker without requests ends


class Lost(Exception):
    """The worker did not answer; the message says what happened, as the end of "it ..."."""


class Child(NamedTuple):
    """A child process with its end of the pipe.

    Attributes:
        pid: Its id, which is also that of the group of all that it starts.
        wait: Waits for its end for some seconds, and returns its exit status or None.
        pipe: The parent's end of the pipe.
    """

    pid: int
    wait: Callable[[float], int | None]
    pipe: Connection


class Worker:
    """One worker process, started when it is first needed and again after it was lost."""

    def __init__(self, start: Callable[[], Child]) -> None:
        """Start nothing yet; `start` starts a process that runs `serve`."""
        self._start = start
        self._child: Child | None = None

    def __enter__(self) -> Worker:
        """Return the worker."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.close()

    @property
    def stopped(self) -> bool:
        """Whether the next request starts a process."""
        if self._child is not None and self._child.wait(0) is not None:
            self.close()  # it was idle for too long
        return self._child is None

    def ask(self, request: bytes, *, timeout: float) -> bytes:
        """Send a request and return the answer.

        Raises:
            Lost: There is no answer after `timeout` seconds, or the process ended.
        """
        if self._child is None:
            self._child = self._start()
        pipe, end = self._child.pipe, time.monotonic() + timeout
        try:
            pipe.send_bytes(request)
            while not pipe.poll(min(0.25, max(0.0, end - time.monotonic()))):
                if self._child.wait(0) is not None and not pipe.poll(0):
                    raise EOFError  # a child of the worker may keep the pipe open
                if time.monotonic() > end:
                    self.close()
                    raise Lost(f"did not finish within {timeout:g} s")
            return pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise Lost(self._how_it_ended()) from error

    def _how_it_ended(self) -> str:
        code = None if self._child is None else self._child.wait(5)
        self.close()
        if code is None:
            return "closed the connection to the program"
        if code < 0:
            with suppress(ValueError):
                return f"crashed the process ({signal.Signals(-code).name})"
        return f"ended the process with exit status {code}"

    def close(self) -> None:
        """End the process, and all that it started."""
        child, self._child = self._child, None
        if child is not None:
            # The group first, which it does not lead in its first moment. When it has ended, its id may be another's.
            for kill in (os.killpg, *([os.kill] if child.wait(0) is None else [])):
                with suppress(ProcessLookupError, PermissionError):
                    kill(child.pid, signal.SIGKILL)
            child.wait(60)
            child.pipe.close()


def spawned(module: str) -> Child:
    """Start a new interpreter that runs `module` with the arguments that `connected` reads.

    Not by `multiprocessing`, which would import the user's script again.
    """
    near, far = Pipe()
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-m", module, str(far.fileno()), str(os.getpid())]
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command, pass_fds=[far.fileno()], env=environ, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True
    )
    far.close()

    def wait(seconds: float) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return process.returncode

    return Child(process.pid, wait, near)


def forked(answer: Callable[[bytes], bytes]) -> Child:
    """Start a copy of this process, with the modules and plugins that it has loaded, in milliseconds."""
    near, far = Pipe()
    parent = os.getpid()

    def run() -> None:
        near.close()
        os.setsid()
        serve(far, answer, parent=parent)

    for stream in (sys.stdout, sys.stderr):  # else the child inherits, and writes again, what is buffered
        with suppress(OSError, ValueError):
            stream.flush()
    process: Any = get_context("fork").Process(target=run, daemon=True)
    process.start()
    far.close()

    def wait(seconds: float) -> int | None:
        process.join(seconds)
        code: int | None = process.exitcode
        return code

    return Child(process.pid, wait, near)


def connected() -> tuple[Connection, int]:
    """Return the pipe to the process that called `spawned`, and the id of that process."""
    return Connection(int(sys.argv[1])), int(sys.argv[2])


def serve(pipe: Connection, answer: Callable[[bytes], bytes], *, parent: int) -> None:
    """Answer requests until the parent closes the pipe, ends, or asks nothing for a while; never returns.

    What plugins print goes to stderr, because stdout belongs to the results.
    """
    own = os.getpid()
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with suppress(EOFError, OSError):
        while pipe.poll(IDLE):
            found = answer(pipe.recv_bytes())
            if os.getpid() != own:  # a plugin forked, and both processes came back
                really_exit(1)
            pipe.send_bytes(found)
    really_exit(0)


def _end_with(parent: int) -> None:
    """End this process, whatever it does, when its parent has ended."""
    while os.getppid() == parent:
        time.sleep(1)
    really_exit(1)
