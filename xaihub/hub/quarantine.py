"""Notes about plugins on disk: which is loaded or run, which ended or hung a process and is skipped, and load times."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from xaihub.files import user_folder
from xaihub.params import Parametrised

SLOW_SECONDS = 0.5  # a load time worth a note
PATIENCE = 2.0  # seconds after which the user is told who is loading; a Ctrl-C after them puts it into quarantine
LIMIT = 30.0  # seconds after which a plugin is stopped and put into quarantine
_numbers = count()


def state_folder() -> Path:
    """Return the folder for state that belongs to this user and this environment."""
    return user_folder("state") / "plugins" / _safe(sys.prefix)


def _safe(text: str) -> str:
    """Return the end of a text as a file name; records hold the full text, so that two can be told apart."""
    return re.sub(r"[^\w.-]+", "_", text)[-80:].lstrip(".") or "_"


class Notes:
    """The notes of one environment; where the folder cannot be written or locked, nothing is noted.

    Every file belongs to one plugin or one process and is renamed into place, so parallel processes do not disturb
    each other. A note of a load is locked as long as its process lives.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Use `folder`, or the user's own."""
        with suppress(RuntimeError):  # the user has no home
            folder = folder or state_folder()
        self._folder = folder or Path(os.devnull)

    @contextmanager
    def loading(self, plugin: dict[str, str], step: str) -> Iterator[None]:
        """Note that this process runs a plugin's code, for as long as it does."""
        with self._noted("loading", {**plugin, "step": step}):
            yield

    @contextmanager
    def running(self, method: Parametrised) -> Iterator[None]:
        """Note that this process runs a method of a third party; if the process ends there, the next command tells."""
        origin = method.origin
        if origin.builtin or not origin.plugin:
            yield
        else:
            known = {"plugin": origin.plugin, "label": origin.label}
            with self._noted("running", {**known, "step": f"running {method.noun} {method.name!r}"}):
                yield

    @contextmanager
    def _noted(self, kind: str, record: dict[str, str]) -> Iterator[None]:
        file = self._folder / kind / f"{os.getpid()}-{next(_numbers)}"
        handle = _create_locked(file, record)
        try:
            yield
        finally:
            if handle is not None:
                with suppress(OSError):
                    file.unlink()  # first, because an unlocked note means that its process has ended
                os.close(handle)

    def settle(self) -> bool:
        """Put the plugins into quarantine whose process has ended while it ran their code; return whether any was."""
        ended = self._ended("loading")
        for note in ended:
            self.hold(note, f"a process ended while {note['step']}")
        return bool(ended)

    def ended(self) -> list[str]:
        """Return, once, which methods ran when a process ended; it may also have been ended from outside."""
        return [f"plugin {note['label']}: a process ended while {note['step']}" for note in self._ended("running")]

    def _ended(self, kind: str) -> list[dict[str, str]]:
        """Remove and return the notes of processes that have ended."""
        found = []
        for file in _files(self._folder / kind):
            note = _read(file)
            if not _is_locked(file):
                found += [note] if "step" in note else []
                with suppress(OSError):
                    file.unlink()
        return found

    def hold(self, plugin: dict[str, str], reason: str) -> str:
        """Put a plugin into quarantine: later processes skip this version of it. Return the reason with the time."""
        reason = f"{reason} ({time.strftime('%Y-%m-%d %H:%M')})"
        _write(self._folder / "held" / _safe(plugin["plugin"]), {**plugin, "reason": reason})
        return reason

    def held(self, plugin: dict[str, str]) -> str:
        """Return why a plugin is in quarantine, or seems to hang in another process; otherwise an empty string."""
        found = _read(self._folder / "held" / _safe(plugin["plugin"]))
        if found and _is_about(found, plugin):
            return found.get("reason", "")
        for file in _files(self._folder / "loading"):
            seconds = time.time() - _written(file)
            note = _read(file) if seconds > LIMIT else {}
            if note and _is_about(note, plugin):
                return f"another process has been {note['step']} for {seconds:.0f} s"
        return ""

    def release(self, name: str) -> bool:
        """Take a plugin out of quarantine; return whether it was there."""
        file = self._folder / "held" / _safe(name)
        known = _read(file).get("plugin") == name
        if known:
            with suppress(OSError):
                file.unlink()
        return known

    def remember(self, plugin: dict[str, str], seconds: float, problem: str) -> None:
        """Keep a plugin's load time and its problem for listings; a file is written only if they have changed."""
        old, old_problem = self.recalled(plugin)
        alike = old is not None and max(old, seconds) < 2 * min(old, seconds) + 0.05
        if not alike or problem != old_problem:
            record = {**plugin, "seconds": f"{seconds:.4f}", "problem": problem}
            _write(self._folder / "loaded" / _safe(plugin["plugin"]), record)

    def recalled(self, plugin: dict[str, str]) -> tuple[float | None, str]:
        """Return the load time in seconds and the problem of a plugin's last load, or None and an empty string."""
        found = _read(self._folder / "loaded" / _safe(plugin["plugin"]))
        if not _is_about(found, plugin):
            return None, ""
        try:
            return float(found.get("seconds", "")), found.get("problem", "")
        except ValueError:
            return None, ""


def _is_about(record: dict[str, str], plugin: dict[str, str]) -> bool:
    return all(record.get(key) == value for key, value in plugin.items())


def _files(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder) if not name.startswith(".")]  # noqa: PTH208 - faster
    except OSError:
        return []


def _read(file: Path) -> dict[str, str]:
    """Return a record, or an empty one if the file is missing or damaged."""
    try:
        found: Any = json.loads(file.read_bytes()[:65536])
    except (OSError, ValueError, RecursionError):
        return {}
    texts = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return found if texts and found.get("plugin") else {}


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return time.time()


def _write(file: Path, record: dict[str, str]) -> None:
    temporary = file.with_name(f".{os.getpid()}-{next(_numbers)}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(file)


def _create_locked(file: Path, record: dict[str, str]) -> int | None:
    """Create a file that is locked from its first moment, and return its handle; None if that is impossible."""
    handle, hidden = None, file.with_name(f".{file.name}")
    try:
        import fcntl

        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(handle, json.dumps(record).encode())
        hidden.rename(file)
    except (OSError, ImportError):  # ImportError: not a POSIX system
        if handle is not None:
            os.close(handle)
        return None
    return handle


def _is_locked(file: Path) -> bool:
    """Whether the process that created the file still runs, or has removed it."""
    try:
        import fcntl

        handle = os.open(file, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(handle).st_nlink == 0
        finally:
            os.close(handle)
    except (OSError, ImportError):
        return True
