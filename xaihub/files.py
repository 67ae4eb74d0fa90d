"""Atomic file writing: a file is written completely or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from xaihub.errors import OutputError

__all__ = ["temporary_file", "write_file"]


def write_file(path: str | Path, content: str | bytes | Callable[[Path], object]) -> Path:
    """Write a file under a temporary name, rename it, and return its path; `path` is never half-written.

    Args:
        path: The file; missing parent folders are created.
        content: UTF-8 text, bytes, or a function that fills the file it is given.

    Raises:
        OutputError: The folder or file cannot be written.
    """
    path = Path(path)
    with temporary_file(path) as temporary:
        mode = temporary.stat().st_mode
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        elif isinstance(content, str):
            # A file name that is not valid Unicode has lone surrogates; they become the escapes that JSON uses.
            temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
        else:
            content(temporary)
        temporary.chmod(mode)  # safetensors replaces the file with a private one
        temporary.replace(path)
    return path


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file next to `path`, and remove it on exit unless it was renamed.

    Raises:
        OutputError: The folder or file cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        temporary = Path(name)
        os.close(handle)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's own mode is private
        yield temporary
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
