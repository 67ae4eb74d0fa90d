"""The user's cache: what can be made again, such as compiled models and the batch sizes that were found fastest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from xaihub.errors import OutputError
from xaihub.files import user_folder, write_file

LIMIT = 2 * 2**30  # bytes; what was used longest ago is deleted first
HEADER = 4096  # bytes at most


@dataclass(frozen=True)
class Entry:
    """One file of the cache: what kind of thing it holds, of which model or other thing, its size and last use."""

    kind: str
    about: str
    size: int
    used: float
    file: Path


def cache_folder() -> Path | None:
    """Return the folder of the cache, or None if the user has no home."""
    with suppress(RuntimeError):
        return user_folder("cache")
    return None


def get(kind: str, key: str) -> bytes | None:
    """Return what `put` stored under a key; None if it is missing or damaged, in which case it is deleted."""
    file = _file(kind, key)
    if file is None:
        return None
    try:
        head, _, data = file.read_bytes().partition(b"\n")
        if json.loads(head)["sha256"] == sha256(data).hexdigest():
            os.utime(file)
            return data
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    with suppress(OSError):
        file.unlink()
    return None


def has(kind: str, key: str) -> bool:
    """Return whether something is stored under a key."""
    file = _file(kind, key)
    return file is not None and file.is_file()


def put(kind: str, key: str, data: bytes, *, about: str) -> None:
    """Store bytes under a key, and delete old entries beyond the size limit; nothing if the folder cannot be written.

    Args:
        kind: The kind of thing, a word.
        key: Whatever it depends on.
        data: The thing itself.
        about: What it is for, as shown to the user.
    """
    file = _file(kind, key)
    if file is None or len(data) > LIMIT:
        return
    head = json.dumps({"about": about, "sha256": sha256(data).hexdigest()}).encode()[:HEADER]
    with suppress(OutputError):
        write_file(file, head + b"\n" + data)
    clear(beyond=LIMIT)


def entries() -> list[Entry]:
    """Return everything in the cache, the most recently used first."""
    return sorted(_entries(), key=lambda entry: -entry.used)


def clear(kind: str = "", *, beyond: int = 0) -> list[Entry]:
    """Delete what was used longest ago until at most `beyond` bytes are left; return what was deleted.

    Args:
        kind: Only entries of this kind; empty for all.
        beyond: Bytes to keep.
    """
    total, deleted = 0, []
    for entry in entries():
        if kind and entry.kind != kind:
            continue
        total += entry.size
        if total > beyond:
            with suppress(OSError):
                entry.file.unlink()
                deleted.append(entry)
    return deleted


def _file(kind: str, key: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / kind / sha256(key.encode()).hexdigest()


def _entries() -> Iterator[Entry]:
    folder = cache_folder()
    for file in [] if folder is None else folder.glob("*/*"):
        if file.name.startswith("."):  # being written
            continue
        with suppress(OSError, ValueError):
            found = file.stat()
            with file.open("rb") as stream:
                head = json.loads(stream.readline(HEADER))
            about = str(head["about"]) if isinstance(head, dict) and "about" in head else "damaged"
            yield Entry(file.parent.name, about, found.st_size, found.st_mtime, file)
