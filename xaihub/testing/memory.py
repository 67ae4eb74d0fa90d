"""Memory of observed code: the peak of tensors after every operation, and of everything else that Python allocates."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class _Storages(TorchDispatchMode):
    """Counts the bytes of the storages that operations return, while they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # Weights and inputs that an operation returns are counted once; that does not change growth.
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, Tensor) and (storage := item.untyped_storage())._cdata not in self._alive:
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self._bytes += storage.nbytes()
        if self._bytes > self.peak:  # only then the dead ones matter
            self._alive = {key: pair for key, pair in self._alive.items() if not pair[0].expired()}
            self._bytes = sum(size for _, size in self._alive.values())
            self.peak = max(self.peak, self._bytes)
        return result


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the peak of bytes allocated inside: tensors on any device, arrays and objects."""
    storages = _Storages()
    with _tracing():
        start, _ = tracemalloc.get_traced_memory()
        with storages:
            yield lambda: storages.peak + tracemalloc.get_traced_memory()[1] - start


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the bytes of arrays and objects, not tensors, allocated inside and still alive."""
    with _tracing():
        start, _ = tracemalloc.get_traced_memory()
        yield lambda: tracemalloc.get_traced_memory()[0] - start


@contextmanager
def _tracing() -> Iterator[None]:
    ours = not tracemalloc.is_tracing()
    if ours:
        tracemalloc.start()
    tracemalloc.reset_peak()
    try:
        yield
    finally:
        if ours:
            tracemalloc.stop()
