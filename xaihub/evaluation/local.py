"""Worker processes on this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from queue import SimpleQueue
from threading import Event

from xaihub.errors import EngineError
from xaihub.evaluation.engine import SERVER, Engine, Lost, Start
from xaihub.evaluation.isolation import STARTING, raise_error, unpacked
from xaihub.hub.worker import Lost as WorkerLost
from xaihub.hub.worker import Worker, spawned


class LocalEngine(Engine):
    """Worker processes on this machine, which receive tasks over pipes.

    Each worker has its own thread here, which waits for it.
    """

    def run(self, start: Start, tasks: Iterable[bytes]) -> Generator[tuple[bytes, bytes | Lost]]:
        """Yield each task with its answer; see `Engine.run`."""
        count = self.jobs or os.cpu_count() or 1
        idle: SimpleQueue[Worker] = SimpleQueue()
        left, todo = iter(tasks), set[Future[tuple[bytes, bytes | Lost]]]()
        workers = [Worker(partial(spawned, SERVER)) for _ in range(count)]
        ended = Event()

        def compute(task: bytes) -> tuple[bytes, bytes | Lost]:
            worker = idle.get()
            try:
                return task, _tried(worker, start, task, self.attempts, ended)
            finally:
                idle.put(worker)

        def end() -> None:
            ended.set()
            for worker in workers:
                worker.close()

        with ExitStack() as stack:
            stack.callback(end)  # again, as a thread may just have started one
            pool = stack.enter_context(ThreadPoolExecutor(count))
            stack.callback(end)  # before the pool waits for its threads
            for worker in workers:
                idle.put(worker)
            while True:
                for task in left:
                    todo.add(pool.submit(compute, task))
                    if len(todo) > count:  # one more than there are workers waits here, so that none is ever idle
                        break
                if not todo:
                    return
                done, todo = wait(todo, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()


def _tried(worker: Worker, start: Start, task: bytes, attempts: int, ended: Event) -> bytes | Lost:
    lost = Lost("was stopped")
    while attempts and not ended.is_set():
        if worker.stopped:
            _begin(worker, start)
        try:
            return worker.ask(task, timeout=math.inf)
        except WorkerLost as error:
            lost, attempts = Lost(str(error)), attempts - 1
    return lost


def _begin(worker: Worker, start: Start) -> None:
    """Start a worker; an error here is not the task's."""
    try:
        answer, _ = unpacked(worker.ask(start.settings, timeout=STARTING))
    except WorkerLost as lost:
        raise EngineError(f"a worker {lost} while it started") from lost
    raise_error(answer)
