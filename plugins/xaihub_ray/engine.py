"""Actors of a Ray cluster, one per GPU or per CPU."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from xaihub import Engine, Lost, Start
from xaihub.errors import EngineError

LOOK = 5.0  # seconds after which the cluster is looked at again, for nodes that came or went


class RayEngine(Engine):
    """One actor per GPU of the cluster, or per CPU if it has none or the device is "cpu"; at most `jobs`.

    Ray places the actors. There are as many as the cluster has room for: a node that is added is used, and the task of
    one that is lost goes to another actor.
    """

    def threads(self, own: int) -> int:  # noqa: ARG002 - the size of this machine says nothing about the others
        """Return 1, as each actor reserves one CPU."""
        return 1

    def run(self, start: Start, tasks: Iterable[bytes]) -> Generator[tuple[bytes, bytes | Lost]]:
        """Yield each task with its answer; see `xaihub.Engine.run`."""
        started = not ray.is_initialized()
        if started:
            self._connect()
        crew = _Crew(self, start)
        try:
            yield from crew.work(iter(tasks))
        finally:
            crew.dismiss()
            if started:
                ray.shutdown()

    def _connect(self) -> None:
        os.environ.setdefault(
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
        )  # as later versions of Ray do, without a warning
        try:
            ray.init(address=self.address or "local", log_to_driver=False, include_dashboard=False)
        except Exception as error:  # Ray raises just that where a node does not start in time
            reason = str(error).strip().partition("\n")[0]
            raise EngineError(f"cannot use Ray at {self.address or 'this machine'!r}: {reason}") from error


class _Crew:
    """The actors: starting, free, or with one task each."""

    def __init__(self, engine: RayEngine, start: Start) -> None:
        self._start, self._jobs, self._attempts = start, engine.jobs, engine.attempts
        gpus = engine.device == "auto" or engine.device.startswith("cuda")
        self._kind = "GPU" if gpus and ray.cluster_resources().get("GPU", 0) >= 1 else "CPU"
        resources = {"num_gpus": 1} if self._kind == "GPU" else {}
        # Ray restarts nothing by itself: the task of a lost actor is given to one that is known to work.
        self._actor = ray.remote(num_cpus=1, max_restarts=0, **resources)(_Actor)
        self._starting: dict[Any, Any] = {}  # actors, by the reference that is ready when they are
        self._busy: dict[Any, tuple[Any, bytes, int]] = {}  # actor, task and attempt, by the reference to the answer
        self._free: list[Any] = []

    def work(self, tasks: Iterator[bytes]) -> Iterator[tuple[bytes, bytes | Lost]]:
        again: list[tuple[bytes, int]] = []
        more = True
        while True:
            while self._free and (again or more):
                task, attempt = again.pop() if again else (next(tasks, b""), 1)
                if not task:
                    more = False
                    break
                actor = self._free.pop()
                self._busy[actor.do.remote(task)] = actor, task, attempt
            if not (self._busy or again or more):
                return
            self._hire()
            for reference in ray.wait([*self._busy, *self._starting], timeout=LOOK)[0]:
                if reference in self._starting:
                    self._welcome(reference)
                    continue
                actor, task, attempt = self._busy.pop(reference)
                try:
                    yield task, ray.get(reference)
                    self._free.append(actor)
                except (RayActorError, RayTaskError) as error:
                    if attempt < self._attempts:
                        again.append((task, attempt + 1))
                    else:
                        yield task, Lost(f"ended the worker process ({type(error).__name__})")

    def _hire(self) -> None:
        """Start as many actors as there is room for, now that nodes may have come or gone."""
        room = math.floor(ray.cluster_resources().get(self._kind, 0))
        wanted = max(1, min(room, self._jobs or room))
        for _ in range(wanted - len(self._busy) - len(self._free) - len(self._starting)):
            actor = self._actor.remote()
            self._starting[actor.start.remote(self._start)] = actor

    def _welcome(self, reference: Any) -> None:
        actor = self._starting.pop(reference)
        try:
            ray.get(reference)
            self._free.append(actor)
        except RayTaskError as error:
            raise EngineError(f"a worker cannot start: {error.cause}") from error
        except RayActorError:
            pass  # its node went away; another actor is started in its place

    def dismiss(self) -> None:
        for actor in [*self._free, *self._starting.values(), *(actor for actor, _, _ in self._busy.values())]:
            ray.kill(actor)


class _Actor:
    """A worker in a process of Ray."""

    def start(self, start: Start) -> None:
        """Start the worker; an error here says why, one in a constructor only that the actor died."""
        self._do = start()

    def do(self, task: bytes) -> bytes:
        """Return the answer to a task."""
        return self._do(task)
