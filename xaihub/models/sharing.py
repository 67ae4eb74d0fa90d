"""Networks that several threads use: one lock per network, and hooks that compiled networks do not skip."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

# By the id of a module. Two models may share a network, or a part of it; a lock lives as long as a model that uses it.
_LOCKS: WeakValueDictionary[int, Any] = WeakValueDictionary()
_GUARD = threading.Lock()

_stance = ExitStack()
_eager_users = 0


def locks_of(network: nn.Module) -> list[Any]:
    """Return the reentrant locks of the network's modules, in a fixed order; usually a single one."""
    parts = [id(part) for part in network.modules()]
    with _GUARD:
        found = {id(lock): lock for part in parts if (lock := _LOCKS.get(part)) is not None}
        if not found:
            found = {0: threading.RLock()}
        first = next(iter(found.values()))
        for part in parts:
            _LOCKS.setdefault(part, first)
    return [found[key] for key in sorted(found)]


@contextmanager
def locked(locks: Sequence[Any]) -> Iterator[None]:
    """Hold all locks."""
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield


@contextmanager
def eager(network: nn.Module) -> Iterator[None]:
    """Run parts that torch.compile compiled without compilation, because compiled code skips hooks.

    The setting belongs to the whole process, so it is kept until the last thread that needs it has left.
    """
    global _eager_users
    if not any(_is_compiled(part) for part in network.modules()):
        yield
        return
    with _GUARD:
        if _eager_users == 0:
            _stance.enter_context(torch.compiler.set_stance("force_eager"))
        _eager_users += 1
    try:
        yield
    finally:
        with _GUARD:
            _eager_users -= 1
            if _eager_users == 0:
                _stance.close()


def _is_compiled(part: nn.Module) -> bool:
    return not isinstance(part, torch.jit.ScriptModule) and (
        "_orig_mod" in part._modules  # torch.compile(part)
        or part.__dict__.get("_compiled_call_impl") is not None  # part.compile()
        or "forward" in part.__dict__  # part.forward = torch.compile(part.forward)
        or hasattr(type(part).forward, "_torchdynamo_orig_callable")  # decorated
    )
