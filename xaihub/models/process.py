"""The process around a plugin's code: its settings are restored, and whatever the code raises becomes one error."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from xaihub.errors import PluginError, XaihubError
from xaihub.params import Parametrised

GRACE = 0.2  # seconds in which a thread that was asked to stop may end


class _Setting(NamedTuple):
    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _folder() -> str | None:
    with suppress(OSError):  # it may have been deleted
        return str(Path.cwd())
    return None


def _enter(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _device() -> Any:
    return getattr(getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None), "device_context", None)


def _use_device(mode: Any) -> None:
    torch.set_default_device(None if mode is None else mode.device)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _be_deterministic(modes: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(modes[0], warn_only=modes[1])


def _flag(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _autocast(device: str) -> _Setting:
    def write(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(device, value[0])
        torch.set_autocast_dtype(device, value[1])

    return _Setting(
        f"autocast on {device}", lambda: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)), write
    )


# Of each thread.
_OWN = (
    _Setting("number of threads", torch.get_num_threads, torch.set_num_threads),
    _Setting("grad mode", torch.is_grad_enabled, torch._C._set_grad_enabled),
    _Setting("default device", _device, _use_device),
    *map(_autocast, ("cpu", "cuda")),
    _Setting("handling of NumPy's errors", np.geterr, lambda found: np.seterr(**found)),
)
# Of the whole process.
_SHARED = (
    _Setting("default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting("deterministic mode", _deterministic, _be_deterministic),
    _Setting("precision of matrix products", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _Setting("anomaly mode", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    _Setting("use of mkldnn", torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    _Setting("cudnn.benchmark", *_flag(torch.backends.cudnn, "benchmark")),
    _Setting("cudnn.deterministic", *_flag(torch.backends.cudnn, "deterministic")),
    _Setting("cudnn.enabled", *_flag(torch.backends.cudnn, "enabled")),
    _Setting("working directory", _folder, _enter),
    _Setting("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    _Setting("standard output", *_flag(sys, "stdout")),
    _Setting("standard error", *_flag(sys, "stderr")),
)


def _numpy() -> tuple[Any, ...]:
    kind, numbers, *rest = np.random.get_state()  # noqa: NPY002 - other libraries use this generator
    return kind, np.asarray(numbers).tobytes(), *rest


def _set_numpy(state: tuple[Any, ...]) -> None:
    kind, numbers, *rest = state
    np.random.set_state((kind, np.frombuffer(numbers, dtype=np.uint32), *rest))  # noqa: NPY002


# Read and written as bytes, which can be compared; where others are not running, they are restored by `seeded`.
_RANDOM = (
    _Setting("random state of Python", random.getstate, random.setstate),
    _Setting("random state of NumPy", _numpy, _set_numpy),
    _Setting(
        "random state of torch",
        lambda: torch.get_rng_state().numpy().tobytes(),
        lambda state: torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8)),
    ),
)
# torch wraps these itself when a part of it is imported, as happens in a first call.
WRAPPED_LATE = {"manual_seed": "torch._dynamo"}
# What every network is computed with: a plugin that replaces one of these functions replaces it for all others.
_NAMESPACES: tuple[Any, ...] = (torch, functional, torch.Tensor, nn.Module)


class ProcessState:
    """The settings of the process, and for code of third parties also its threads and torch's functions."""

    def __init__(self, *, foreign: bool, parallel: bool) -> None:
        """Record them; of `parallel` code the random states, which nothing else restores then.

        What belongs to the whole process is watched from the main thread only: in any other thread, a change may come
        from the user's other threads.
        """
        alone = threading.current_thread() is threading.main_thread()
        settings = (*_OWN, *(_SHARED if alone else ()), *(_RANDOM if alone and foreign and parallel else ()))
        self._settings = [(setting, setting.read()) for setting in settings]
        self._functions = [(owner, dict(vars(owner))) for owner in _NAMESPACES] if foreign else []
        self._threads = set(threading.enumerate()) if foreign and alone else None
        self._modules = set(sys.modules)

    def restore(self) -> list[str]:
        """Restore what can be restored; return what had been changed, in words."""
        found = []
        for setting, value in self._settings:
            if setting.read() != value:
                setting.write(value)
                if setting in _RANDOM and len(sys.modules) > len(self._modules):
                    continue  # some libraries draw a number when they are imported, as many are in a first call
                found.append(f"changed the {setting.name} of the process")
        for owner, functions in self._functions:
            now = vars(owner)
            replaced = [name for name, value in functions.items() if now.get(name) is not value]
            for name in [name for name in replaced if not wrapped_late(name, self._modules)]:
                setattr(owner, name, functions[name])
                found.append(f"replaced {owner.__name__}.{name}")
        threads = [] if self._threads is None else left_over(self._threads)
        return found + [f"left the thread {thread.name!r} running" for thread in threads]


def wrapped_late(name: str, known: Collection[str]) -> bool:
    """Return whether torch itself has replaced a function since the `known` modules were imported."""
    module = WRAPPED_LATE.get(name)
    return module in sys.modules and module not in known


def left_over(known: set[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that run in addition to the known ones, and do not end within a moment."""
    started = [thread for thread in threading.enumerate() if thread not in known]
    for thread in started:
        thread.join(GRACE / len(started))
    # The monitor of tqdm's progress bars is one per process, and runs until the process ends.
    return [one for one in started if one.is_alive() and type(one).__module__ != "tqdm._monitor"]


@contextmanager
def fenced(by: Parametrised) -> Iterator[None]:
    """Let whatever plugin code inside raises cost only what is inside: it becomes one error that names the plugin.

    Only Ctrl-C of the user passes; a KeyboardInterrupt that the code itself raises does not. With XAIHUB_DEBUG set,
    everything passes.

    Raises:
        XaihubError: What the code raised, or a `PluginError` in place of any other exception.
    """
    pressed: list[bool] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        pressed.append(True)
        signal.default_int_handler(number, frame)

    # Signals reach the main thread only; the handler of somebody else is left alone.
    alone = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    ours = alone and handler is signal.default_int_handler
    theirs = alone and handler not in (signal.default_int_handler, signal.SIG_IGN)  # ignored: in the background
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except XaihubError:
        raise
    except BaseException as error:
        if (isinstance(error, KeyboardInterrupt) and (pressed or theirs)) or os.environ.get("XAIHUB_DEBUG"):
            raise
        raise failure(error, by) from error
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if pressed and not isinstance(sys.exception(), KeyboardInterrupt):  # swallowed, or turned into something else
            raise KeyboardInterrupt


def marked(error: BaseException, by: Parametrised) -> None:
    """Note on an exception whose code raised it, unless code that it called has been noted before."""
    with suppress(Exception):  # some exceptions take no attributes
        if "culprit" not in vars(error):
            error.culprit = by  # type: ignore[attr-defined]


def failure(error: BaseException, by: Parametrised) -> PluginError:
    """Return the error that names the plugin in place of what its code raised, which may not even have a text."""
    try:
        by = vars(error).get("culprit", by)
        text = f": {error}"[:300]
    except BaseException:  # `__str__` is the plugin's code as well
        text = ""
    return PluginError(f"{by.described}: {type(error).__name__}{text}", hint="XAIHUB_DEBUG=1 shows the traceback")
