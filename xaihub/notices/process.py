"""What code changes in the process around it: an observer records the settings, and restores and names what differs."""

from __future__ import annotations

import builtins
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache, partial
from operator import eq
from typing import Any, NamedTuple

from xaihub.notices.leaving import LEFT

GRACE = 0.2  # seconds in which a thread that was asked to stop may end
_SHOWN = 60  # characters of both values of a setting
# Functions that torch itself replaces when a part of it is imported.
_WRAPPED_LATE = {"manual_seed": "torch._dynamo"}
_copies: dict[Any, dict[str, Any]] = {}


DRAWING = threading.RLock()  # held by the thread that draws from the generators of the process


class Setting(NamedTuple):
    """One setting of the process.

    Attributes:
        name: What it is, in words.
        read: Returns its value, or None if there is nothing to read.
        write: Restores a value.
        same: Whether an earlier and a later value agree.
        by_imports: Whether libraries change it when they are imported, as many are in a plugin's first call.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]
    same: Callable[[Any, Any], bool] = eq
    by_imports: bool = False


class Observer:
    """The settings of the process, and on request its threads and child processes, and the functions of torch."""

    def __init__(self, settings: Collection[Setting], *, left: bool = False, functions: bool = False) -> None:
        """Record the settings; `left`: also what runs beside; `functions`: also what every network is computed with."""
        self._settings = [(setting, setting.read()) for setting in settings]
        self._functions = [(owner, _functions_of(owner)) for owner in _namespaces()] if functions else []
        self._threads = set(threading.enumerate()) if left else None
        self._children = _children() if left else set()
        self._late = {name for name, module in _WRAPPED_LATE.items() if module not in sys.modules}
        self._imported = len(sys.modules)

    def restore(self, *, imports: bool = True) -> list[str]:
        """Restore what differs, and return it in words; with `imports` except for what importing libraries changes.

        Variables that a library sets for itself then also stay as they are.
        """
        return self.changes(imports=imports, undo=True)

    def changes(self, *, imports: bool = True, undo: bool = False) -> list[str]:
        """Return what differs, as `restore` does, and leave it as it is unless `undo`."""
        found = []
        imported = imports and len(sys.modules) > self._imported
        for setting, old in self._settings:
            now = setting.read()
            if old is None or setting.same(old, now):
                continue
            if undo and not (imported and setting is ENVIRONMENT):
                setting.write(old)
            if not (imported and setting.by_imports):
                found.append(setting.name + _difference(old, now))
        for owner, functions in self._functions:
            found += self._functions_changed(owner, functions, undo)
        if self._threads is not None:
            threads, children = left_over(self._threads), _children() - self._children
            found += [f"the threads ({thread.name!r} still runs)" for thread in threads]
            found += [f"the processes ({child.name!r} still runs)" for child in children]
            LEFT.update([*threads, *children] if undo else [])
        return found

    def _functions_changed(self, owner: Any, functions: dict[str, Any], undo: bool) -> list[str]:
        """Return what was replaced; what was added since, by lazy imports, does not count."""
        now = vars(owner)
        with suppress(Exception):  # some values cannot be compared
            if now == functions:
                return []
        replaced = [name for name, value in functions.items() if now.get(name) is not value and callable(value)]
        replaced = [name for name in replaced if not (name in self._late and _WRAPPED_LATE[name] in sys.modules)]
        for name in replaced if undo else ():
            setattr(owner, name, functions[name])
        return [f"the function {owner.__name__}.{name}" for name in replaced]


def left_over(known: set[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that run in addition to the known ones, and do not end within a moment."""
    started = [thread for thread in threading.enumerate() if thread not in known]
    for thread in started:
        thread.join(GRACE / len(started))
    # The monitor of tqdm's progress bars is one per process, and runs until the process ends.
    return [one for one in started if one.is_alive() and type(one).__module__ != "tqdm._monitor"]


def of_thread() -> tuple[Setting, ...]:
    """Return the settings that each thread has for itself."""
    return _of_loaded("torch", _torch_of_thread) + _of_loaded("numpy", _numpy_of_thread)


def of_process() -> tuple[Setting, ...]:
    """Return the settings of the whole process that results depend on, or the output of commands."""
    return (*_PROCESS, *_of_loaded("torch", _torch_of_process))


def of_python() -> tuple[Setting, ...]:
    """Return the other settings of the whole process, which all code depends on."""
    return _PYTHON


def of_imports() -> tuple[Setting, ...]:
    """Return those, and the mask for new files: reading it changes it for a moment, which other threads may notice."""
    return (*_PYTHON, Setting("the file mode mask", _umask, os.umask))


def of_random() -> tuple[Setting, ...]:
    """Return the states of the global generators of random numbers."""
    return (_PYTHONS_RANDOM, *_of_loaded("numpy", _numpys_random), *_of_loaded("torch", _torchs_random))


def _of_loaded(library: str, settings: Callable[[Any], tuple[Setting, ...]]) -> tuple[Setting, ...]:
    """Return the settings of a library, unless it is not imported, or not completely."""
    module = sys.modules.get(library)
    # A module without a specification was put there by a program, as a stand-in.
    spec = getattr(module, "__spec__", None)
    return settings(module) if spec is not None and not getattr(spec, "_initializing", False) else ()


def _difference(old: Any, now: Any) -> str:
    """Return the values in brackets, if they are short; of a table, the names that differ."""
    if isinstance(old, dict) and isinstance(now, dict):
        names = [name for name in old.keys() | now.keys() if old.get(name) != now.get(name)]
        return f" ({', '.join(sorted(map(str, names))[:3])})"
    shown = isinstance(old, (str, int, float, bool))
    text = f" (from {old!r} to {now!r})" if shown else ""
    return text if len(text) < _SHOWN + len(" (from  to )") else ""


def _namespaces() -> tuple[Any, ...]:
    """Return the owners of the functions that every network is computed with."""
    torch: Any = sys.modules["torch"]
    return torch, torch.nn.functional, torch.Tensor, torch.nn.Module


def _functions_of(owner: Any) -> dict[str, Any]:
    """Return a copy of a namespace, or the last one if it is equal: comparing is faster than copying."""
    with suppress(Exception):  # some values cannot be compared
        if vars(owner) == _copies.get(owner):
            return _copies[owner]
    _copies[owner] = dict(vars(owner))
    return _copies[owner]


def _children() -> set[Any]:
    library = sys.modules.get("multiprocessing")
    return set() if library is None else set(library.active_children())


def _flag(name: str, owner: Any, attribute: str) -> Setting:
    return Setting(name, lambda: getattr(owner, attribute), partial(setattr, owner, attribute))


# Of Python.


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - as a string
    except OSError:  # it was deleted
        return None


def _enter_folder(folder: str) -> None:
    with suppress(OSError):
        os.chdir(folder)


def _set_environment(old: dict[str, str]) -> None:
    for name in os.environ.keys() - old.keys():
        del os.environ[name]
    os.environ.update(old)


def _restore_path(old: list[str]) -> None:
    sys.path[:] = [*old, *(entry for entry in sys.path if entry not in old)]


def _handlers() -> dict[int, Any]:
    numbers = (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM"))
    return {number: signal.getsignal(number) for number in numbers if number is not None}


def _set_handlers(old: dict[int, Any]) -> None:
    for number, handler in old.items():
        if handler is not None:  # one that was not set from Python
            with suppress(ValueError):  # not the main thread
                signal.signal(number, handler)


def _umask() -> int:
    old = os.umask(0o077)
    os.umask(old)
    return old


def _errors_from_warnings() -> list[Any]:
    return [item for item in warnings.filters if item[0] == "error"]


def _set_errors_from_warnings(old: list[Any]) -> None:
    kept = [item for item in warnings.filters if item[0] != "error" or item in old]
    with suppress(TypeError, AttributeError):
        warnings.filters[:] = kept  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]


ENVIRONMENT = Setting("the environment variables", lambda: dict(os.environ), _set_environment, by_imports=True)
_PROCESS = (
    Setting("the working directory", _folder, _enter_folder),
    Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    _flag("sys.stdout", sys, "stdout"),
    _flag("sys.stderr", sys, "stderr"),
)
_PYTHON = (
    Setting(
        "built-in functions", lambda: dict(vars(builtins)), vars(builtins).update,
        same=lambda old, now: all(now.get(name) is value for name, value in old.items()),
    ),
    # What was added stays, at the end, because later imports may need it.
    Setting("the order of sys.path", lambda: [*sys.path], _restore_path, same=lambda old, now: now[: len(old)] == old),
    Setting("the handlers of signals", _handlers, _set_handlers),
    Setting("the warning filters", _errors_from_warnings, _set_errors_from_warnings, by_imports=True),
    _flag("sys.stdin", sys, "stdin"),
    _flag("sys.excepthook", sys, "excepthook"),
    _flag("threading.excepthook", threading, "excepthook"),
    ENVIRONMENT,
)  # fmt: skip
# Generators are read as bytes or tuples, which can be compared.
_PYTHONS_RANDOM = Setting("Python's random state", random.getstate, random.setstate, by_imports=True)


# Of libraries.


@cache
def _numpy_of_thread(numpy: Any) -> tuple[Setting, ...]:
    return (Setting("NumPy's handling of errors", numpy.geterr, lambda old: numpy.seterr(**old)),)


@cache
def _numpys_random(numpy: Any) -> tuple[Setting, ...]:
    def read() -> tuple[Any, ...]:
        kind, numbers, *rest = numpy.random.get_state()
        return kind, numpy.asarray(numbers).tobytes(), *rest

    def write(state: tuple[Any, ...]) -> None:
        kind, numbers, *rest = state
        numpy.random.set_state((kind, numpy.frombuffer(numbers, dtype=numpy.uint32), *rest))

    return (Setting("NumPy's random state", read, write, by_imports=True),)


@cache
def _torch_of_thread(torch: Any) -> tuple[Setting, ...]:
    def autocast(device: str) -> Setting:
        def write(value: tuple[bool, Any]) -> None:
            torch.set_autocast_enabled(device, value[0])
            torch.set_autocast_dtype(device, value[1])

        read = torch.is_autocast_enabled, torch.get_autocast_dtype
        return Setting(f"torch's autocast on {device}", lambda: tuple(one(device) for one in read), write)

    def device() -> Any:
        return getattr(getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None), "device_context", None) or torch.cpu

    def use_device(mode: Any) -> None:
        torch.set_default_device(None if mode is torch.cpu else mode.device)

    return (
        Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
        Setting("torch's grad mode", torch.is_grad_enabled, torch._C._set_grad_enabled),
        Setting("torch's default device", device, use_device),
        *map(autocast, ("cpu", "cuda")),
    )


@cache
def _torch_of_process(torch: Any) -> tuple[Setting, ...]:
    def deterministic() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    def be_deterministic(modes: tuple[bool, bool]) -> None:
        torch.use_deterministic_algorithms(modes[0], warn_only=modes[1])

    precision = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    cudnn = torch.backends.cudnn
    return (
        Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        Setting("torch's deterministic mode", deterministic, be_deterministic),
        Setting("torch's precision of matrix products", *precision),
        Setting("torch's anomaly mode", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
        Setting("torch's use of mkldnn", torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
        *(_flag(f"cudnn.{name}", cudnn, name) for name in ("benchmark", "deterministic", "enabled")),
    )


@cache
def _torchs_random(torch: Any) -> tuple[Setting, ...]:
    def write(state: bytes) -> None:
        torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))

    read: Callable[[], bytes] = lambda: torch.get_rng_state().numpy().tobytes()  # noqa: E731 - beside its inverse
    return (Setting("torch's random state", read, write, by_imports=True),)
