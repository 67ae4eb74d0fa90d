"""Observing a plugin's code: what it changes in the process, and what it prints to stdout."""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import StringIO
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from xaihub.models.process import wrapped_late

GRACE = 0.2  # seconds in which a thread that was asked to stop may end


def _folder() -> Path | None:
    with suppress(OSError):  # it may have been deleted
        return Path.cwd()
    return None


_FACTS: dict[str, Callable[[], Any]] = {
    "torch's number of threads": torch.get_num_threads,
    "torch's grad mode": torch.is_grad_enabled,
    "torch's inference mode": torch.is_inference_mode_enabled,
    "torch's default dtype": torch.get_default_dtype,
    "torch's default device": lambda: torch.get_default_device().type,
    "torch's deterministic mode": torch.are_deterministic_algorithms_enabled,
    "torch's precision of matrix products": torch.get_float32_matmul_precision,
    "torch's anomaly mode": torch.is_anomaly_enabled,
    "torch's autocast": lambda: torch.is_autocast_enabled("cpu"),
    "cudnn.benchmark": lambda: torch.backends.cudnn.benchmark,
    "cudnn.deterministic": lambda: torch.backends.cudnn.deterministic,
    "NumPy's handling of errors": np.geterr,
    "the working directory": _folder,
    "the recursion limit": sys.getrecursionlimit,
    "the environment variables": lambda: dict(os.environ),
    "the warning filters": lambda: list(warnings.filters),
    "the handler of Ctrl-C": lambda: signal.getsignal(signal.SIGINT),
    "sys.stdout": lambda: id(sys.stdout),
    "sys.stderr": lambda: id(sys.stderr),
    "sys.excepthook": lambda: id(sys.excepthook),
}
# Libraries set these when they are imported, as many are in a plugin's first call.
_BY_IMPORTS = ("the environment variables", "the warning filters")
_RANDOM: dict[str, Callable[[], Any]] = {
    "Python's random state": random.getstate,
    "NumPy's random state": lambda: repr(np.random.get_state()),  # noqa: NPY002 - the state that plugins may change
    "torch's random state": lambda: torch.get_rng_state().numpy().tobytes(),
}


# Namespaces of functions that every network is computed with.
_NAMESPACES: tuple[Any, ...] = (torch, functional, torch.Tensor, nn.Module)


@dataclass
class Observation:
    """What observed code did.

    Attributes:
        changes: What it changed in the process and did not restore.
        printed: What it wrote to stdout, from Python or by file descriptor.
        runs: How often code was observed.
    """

    changes: list[str] = field(default_factory=list)
    printed: str = ""
    runs: int = 0


@contextmanager
def observed(into: Observation, *, draws: bool = True) -> Iterator[None]:
    """Observe the code inside; unless `draws` is false, it must not change the random state."""
    facts = {**_FACTS, **(_RANDOM if not draws else {})}
    into.runs += 1
    with _silenced(into):
        before = {name: read() for name, read in facts.items()}
        functions = [dict(vars(space)) for space in _NAMESPACES]
        threads, children, modules = set(threading.enumerate()), set(active_children()), set(sys.modules)
        try:
            yield
        finally:
            for name, read in facts.items():
                excused = name in _BY_IMPORTS and len(sys.modules) > len(modules)
                if (now := read()) != before[name] and not excused:
                    into.changes.append(name + _difference(before[name], now))
            into.changes += [
                f"the function {name!r} of torch" for name in _replaced(functions) if not wrapped_late(name, modules)
            ]
            into.changes += [f"the threads ({thread.name!r} still runs)" for thread in _left(threads)]
            into.changes += [
                f"the processes ({child.name!r} still runs)" for child in set(active_children()) - children
            ]


def _difference(before: Any, now: Any) -> str:
    """Return the values in brackets, if they are short; of a table, the names that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
        return f" ({', '.join(sorted(names)[:3])})"
    text = f" (from {before!r} to {now!r})"
    return text if len(text) < 100 else ""


def _replaced(before: list[dict[str, Any]]) -> list[str]:
    """Return the functions that are no longer what they were; what was added since, by lazy imports, does not count."""
    pairs = [(old, vars(space)) for old, space in zip(before, _NAMESPACES, strict=True)]
    return [name for old, now in pairs for name, value in old.items() if now.get(name) is not value and callable(value)]


def _left(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return new threads that do not end shortly."""
    new = [thread for thread in threading.enumerate() if thread not in before]
    for thread in new:
        thread.join(GRACE)
    return [thread for thread in new if thread.is_alive()]


@contextmanager
def _silenced(into: Observation) -> Iterator[None]:
    """Catch what is written to stdout."""
    written = StringIO()
    with tempfile.TemporaryFile() as file:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            with redirect_stdout(written):
                yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            file.seek(0)
            into.printed += written.getvalue() + file.read().decode(errors="replace")
