"""Worker processes on this machine."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Event

from xaihub.evaluation.engine import SERVER, Engine, Lost, Start
from xaihub.evaluation.worker import Broken, Worker


class LocalEngine(Engine):
    """Worker processes on this machine, which receive tasks over pipes.

    Each worker has its own thread here, which waits for it.
    """

    def run(self, start: Start, tasks: Iterable[bytes]) -> Generator[tuple[bytes, bytes | Lost]]:
        """Yield each task with its answer; see `Engine.run`."""
        count = self.jobs or os.cpu_count() or 1
        idle: SimpleQueue[Worker] = SimpleQueue()
        left, todo = iter(tasks), set[Future[tuple[bytes, bytes | Lost]]]()
        workers = [Worker(start.settings, server=SERVER) for _ in range(count)]
        ended = Event()

        def compute(task: bytes) -> tuple[bytes, bytes | Lost]:
            worker = idle.get()
            try:
                return task, _tried(worker, task, self.attempts, ended)
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


def _tried(worker: Worker, task: bytes, attempts: int, ended: Event) -> bytes | Lost:
    lost = Lost("was stopped")
    while attempts and not ended.is_set():
        if worker.stopped:
            worker.start()  # an error here is not the task's
        try:
            return worker.exchange(task)
        except Broken as error:
            lost, attempts = Lost(error.message), attempts - 1
    return lost
