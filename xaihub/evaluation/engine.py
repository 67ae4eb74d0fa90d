"""Engines: where the tasks of an evaluation are computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from importlib import import_module

from xaihub.errors import ParameterError
from xaihub.hub import Hub

LOCAL = "local"
SERVER = "xaihub.plugin_tools.evaluating"


class Lost(Exception):
    """A task ended every worker that tried it; the message says how."""


class Start:
    """Starts a worker, in whatever process it is called; it can be pickled.

    Calling it returns a function that turns a task into its answer. That function keeps the models that it has loaded,
    and is called for one task at a time.

    Attributes:
        settings: What the worker needs to know, as bytes.
    """

    def __init__(self, settings: bytes) -> None:
        """Start nothing yet."""
        self.settings = settings

    def __call__(self) -> Callable[[bytes], bytes]:
        """Start the worker in this process.

        Raises:
            XaihubError: A plugin is missing here.
        """
        started: Callable[[bytes], bytes] = import_module(SERVER).start(self.settings)
        return started


def make_engine(
    hub: Hub, name: str = LOCAL, *, jobs: int | None = None, address: str = "", device: str = "auto"
) -> Engine | None:
    """Return the engine called `name`; None for one job on this machine, which this process does itself.

    Raises:
        UnknownName: No engine has that name.
        MissingExtra: Its library is not installed.
        ParameterError: An address is given, and the engine works on this machine only.
    """
    if name == LOCAL and address:
        raise ParameterError("engine 'local' takes no address", hint="for workers elsewhere, use the engine 'ray'")
    if name == LOCAL and jobs in (None, 1):
        return None
    made: Engine = hub.get_engine(name, Engine, jobs=jobs, address=address, device=device)
    return made


class Engine(ABC):
    """Computes the tasks of an evaluation in worker processes, wherever they are; plugins derive their own.

    The process that evaluates calls `run` once, and alone writes the results. Tasks do not depend on each other.

    Attributes:
        jobs: Number of workers; None leaves it to the engine.
        address: Where the workers are, in the engine's own notation; "" for this machine.
        device: The device that the evaluation asked for: "auto", "cpu", "cuda", ...
        attempts: Number of workers that one task may end before it is given up.
    """

    attempts = 2

    def __init__(self, *, jobs: int | None = None, address: str = "", device: str = "auto") -> None:
        """Start nothing yet."""
        self.jobs, self.address, self.device = jobs, address, device

    def threads(self, own: int) -> int:
        """Return the number of threads of one worker, where this process uses `own`."""
        return max(1, own // (self.jobs or 1))

    @abstractmethod
    def run(self, start: Start, tasks: Iterable[bytes]) -> Generator[tuple[bytes, bytes | Lost]]:
        """Yield each task with its answer, in any order.

        Take a task only when a worker is free or about to be, because tasks may hold maps. A task whose worker ended
        is given to another one, up to `attempts` workers in all; then yield it with a `Lost`. When the generator is
        closed, end the workers.

        Args:
            start: Call it once in each worker.
            tasks: The tasks.

        Raises:
            XaihubError: No worker can be started.
        """
