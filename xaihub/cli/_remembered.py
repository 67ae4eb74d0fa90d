"""What plugins said the last time, for as long as nothing has changed from which they were loaded."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import xaihub
from xaihub.files import user_folder

VARIABLES = "XAIHUB_"


class Remembered:
    """A dictionary of texts that plugins gave, in the user's folder for state; where it cannot be written, none.

    It is recalled only if the installed distributions, their entry points, the environment variables of xaihub and
    every file that was imported to get it are as they were.
    """

    def __init__(self, name: str) -> None:
        """Take the name of the file."""
        self._name = name
        self._files: list[str] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note the files that are imported inside."""
        before = set(sys.modules)
        yield
        modules = [module for name, module in sys.modules.copy().items() if name not in before]
        files = (getattr(module, "__file__", None) for module in modules)
        self._files = [file for file in files if isinstance(file, str)]

    def keep(self, texts: dict[str, str]) -> None:
        """Keep what was given."""
        record = {"world": _world(), "files": _stamps(self._files), "texts": texts}
        if file := self._file():
            with suppress(OSError):
                os.makedirs(os.path.dirname(file), exist_ok=True)  # noqa: PTH103, PTH120 - pathlib costs start-up time
                temporary = f"{file}.{os.getpid()}"
                with open(temporary, "w", encoding="utf-8") as stream:  # noqa: PTH123
                    json.dump(record, stream)
                os.replace(temporary, file)  # noqa: PTH105

    def recall(self) -> dict[str, str] | None:
        """Return what was kept, or None if it may have changed."""
        try:
            with open(self._file(), encoding="utf-8") as stream:  # noqa: PTH123
                record: Any = json.load(stream)
            if record["world"] != _world() or record["files"] != _stamps(record["files"]):
                return None
            return {str(name): str(text) for name, text in record["texts"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def _file(self) -> str:
        with suppress(RuntimeError):  # the user has no home
            return os.fspath(user_folder("state") / f"{self._name}.json")
        return ""


def _world() -> list[Any]:
    """Return what decides which plugins are found: versions, settings and the metadata of distributions."""
    settings = sorted([name, value] for name, value in os.environ.items() if name.startswith(VARIABLES))
    return [xaihub.__version__, sys.version, settings, [[folder, _metadata(folder)] for folder in sys.path]]


def _metadata(folder: str) -> list[Any]:
    try:
        names = os.listdir(folder or ".")  # noqa: PTH208
    except OSError:  # it is missing, or an archive
        return [_stamp(folder)]
    found = sorted(name for name in names if name.endswith((".dist-info", ".egg-info")))
    return [[name, _stamp(os.path.join(folder, name, "entry_points.txt"))] for name in found]  # noqa: PTH118


def _stamps(files: Iterable[str]) -> dict[str, Any]:
    return {file: _stamp(file) for file in files}


def _stamp(file: str) -> list[int] | None:
    try:
        found = os.stat(file)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return [found.st_mtime_ns, found.st_size]
