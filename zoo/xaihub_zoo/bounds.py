"""What a model card may set of an architecture: which keywords of its constructor, and how large it may become."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from xaihub import ModelError

MANY_CLASSES = 25_000  # ImageNet-21k has 21 843
SMALL = 2**29  # bytes that any network may allocate
CALLS = 20_000  # tensor operations that any constructor may make


def keywords(entrypoint: Callable[..., Any], *, factories: Iterable[Callable[..., Any]]) -> set[str]:
    """Return the keywords of the networks that are defined where an entry point is, without those of the factories.

    Factories take addresses, files and caches under their own keywords, and pass the rest on to the network.
    """
    found: set[str] = set()
    for kind in vars(sys.modules[entrypoint.__module__]).values():
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            own = {name for base in kind.__mro__[: -len(nn.Module.__mro__)] for name in _parameters(base)}
            found |= own if "num_classes" in own else set()
    factory = {name for function in factories for name in inspect.signature(function).parameters}
    return found - factory - {"self", "args", "kwargs", "device", "dtype"}


def _parameters(kind: type) -> Iterable[str]:
    return inspect.signature(kind.__init__).parameters if "__init__" in vars(kind) else ()  # type: ignore[misc]


def bounded(
    build: Callable[[], nn.Module], plain: Callable[[], nn.Module] | None, *, who: str, least: int = SMALL
) -> nn.Module:
    """Build a network that may be at most twice as large as the plain architecture, or a small one.

    Raises:
        ModelError: It would be larger; nothing beyond the bound is allocated.
    """
    try:
        with _Budget(least, CALLS):
            return build()
    except _Exceeded as error:
        if plain is None:
            raise ModelError(f"{who} describes a network that is too large to be built") from error
        refusal = ModelError(f"{who}: its options make the architecture more than twice as large as it is")
    with _Budget(math.inf, math.inf) as used:
        plain()
    if 2 * used.bytes <= least and 2 * used.calls <= CALLS:
        raise refusal
    try:
        with _Budget(max(2 * used.bytes, least), max(2 * used.calls, CALLS)):
            return build()
    except _Exceeded as error:
        raise refusal from error


class _Exceeded(Exception):
    """More was asked for than the budget allows."""


class _Budget(TorchDispatchMode):
    """Counts what tensors are created in this thread, and raises before one exceeds the budget."""

    def __init__(self, most_bytes: float, most_calls: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._most_bytes, self._most_calls = most_bytes, most_calls
        self.bytes = self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        size = args[0] if args else ()
        if isinstance(size, (list, tuple)) and all(isinstance(side, int) for side in size):  # a factory, as `empty`
            self.bytes += 4 * math.prod(size)
        self.calls += 1
        if self.bytes > self._most_bytes or self.calls > self._most_calls:
            raise _Exceeded
        return func(*args, **(kwargs or {}))
