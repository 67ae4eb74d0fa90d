"""Files: bounded reading of regular files, one boundary for what decoders raise, and atomic writing."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from xaihub.errors import OutputError, XaihubError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "check_file",
    "decoding",
    "inside",
    "locked",
    "read_file",
    "read_packed",
    "rooted",
    "temporary_file",
    "user_folder",
    "write_file",
]

TRUST_PATHS = "XAIHUB_TRUST_PATHS"


def rooted(path: str, prefix: str = "") -> str:
    """Return an absolute path after `prefix`, of which `path` may already have one; globs stay as they are."""
    return prefix + os.path.abspath(os.path.expanduser(path.removeprefix(prefix)))  # noqa: PTH100, PTH111 - as text


def check_file(path: str | os.PathLike[str], *, what: str, error: type[XaihubError], limit: int | None = None) -> int:
    """Return the size of a regular file, and refuse anything that could block or never end when it is read.

    Args:
        path: The file.
        what: The kind of file, for messages.
        error: The type of the error.
        limit: Maximum size in bytes.

    Raises:
        XaihubError: As `error`: it is missing, a folder, a pipe, a device, or too large.
    """
    shown = f"{what} {os.fspath(path)!r}"
    try:
        found = os.stat(path)  # noqa: PTH116 - pathlib's accepts no str
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except FileNotFoundError as problem:
        raise error(f"there is no {shown}") from problem
    except (OSError, ValueError) as problem:  # ValueError: a null byte in the name
        raise error(f"cannot read the {shown}: {getattr(problem, 'strerror', None) or problem}") from problem
    if not stat.S_ISREG(found.st_mode):
        raise error(f"cannot read the {shown}: it is not a regular file", hint="copy its content to a file")
    if limit is not None and found.st_size > limit:
        raise error(f"the {shown} is larger than {limit:,} bytes")
    return found.st_size


def read_file(path: str | os.PathLike[str], *, what: str, error: type[XaihubError], limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes; raises as `check_file`."""
    check_file(path, what=what, error=error, limit=limit)
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - as above
            return file.read(limit)
    except OSError as problem:
        raise error(f"cannot read the {what} {os.fspath(path)!r}: {problem.strerror}") from problem


def read_packed(
    path: str | os.PathLike[str], *, what: str, refusal: XaihubError, limit: int = 2**28
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file of at most `limit` bytes, and its metadata.

    Raises:
        XaihubError: As `check_file`, with the type of `refusal`; `refusal` itself if the file is damaged.
    """
    import json

    from safetensors.torch import load

    data = read_file(path, what=what, error=type(refusal), limit=limit)
    with decoding(refusal):
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return load(data), {str(name): str(text) for name, text in header.get("__metadata__", {}).items()}


@contextmanager
def decoding(refusal: XaihubError) -> Iterator[None]:
    """Raise `refusal` for whatever a decoder inside raises: on damaged data, parsers raise types they do not document.

    An error of the same type passes, because it is more precise.
    """
    try:
        yield
    except Exception as problem:
        if isinstance(problem, type(refusal)):
            raise
        raise refusal from problem


def inside(folder: str | Path, path: str, *, who: str, error: type[XaihubError]) -> Path:
    """Return the file that `path` names in a folder, for paths that are read from a file of somebody else.

    An empty folder stands for a path that comes from code, which is not checked.

    Raises:
        XaihubError: As `error`: it is outside the folder, also by way of a link, and XAIHUB_TRUST_PATHS is not set.
    """
    file = Path(folder) / path
    if str(folder) and os.environ.get(TRUST_PATHS) != "1":
        try:
            within = file.resolve().is_relative_to(Path(folder).resolve())
        except (OSError, ValueError, RuntimeError):  # a null byte in the name, a link to itself
            within = False
        if not within:
            raise error(f"{who}: the path {path!r} leads outside the folder of the file that names it",
                        hint=f"move the file there, or set {TRUST_PATHS}=1")  # fmt: skip
    return file


@contextmanager
def locked(folder: Path, *, busy: str) -> Iterator[None]:
    """Create a folder and keep other processes away from it; the lock is released when its process ends.

    Raises:
        OutputError: Another process holds the lock (with the message `busy`), or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    file = folder / ".lock"
    if file.is_symlink():  # opening the lock empties the file
        raise OutputError(f"cannot write {str(folder)!r}: {str(file)!r} is a link", hint="delete the link")
    lock = FileLock(file, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise OutputError(busy) from error
    except OSError as error:
        raise OutputError(f"cannot write {str(folder)!r}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


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
    import tempfile  # here, because the libraries behind it cost start-up milliseconds

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


def user_folder(kind: str) -> Path:
    """Return this user's folder for "state", "cache" or "config" of xaihub, which may not exist yet.

    XAIHUB_STATE, XAIHUB_CACHE and XAIHUB_CONFIG name others.

    Raises:
        RuntimeError: The user has no home.
    """
    own = os.environ.get(f"XAIHUB_{kind.upper()}")
    if own:
        return Path(own)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        return Path(base) / "xaihub" / ("Cache" if kind == "cache" else "")
    if sys.platform == "darwin":
        return Path.home() / "Library" / ("Caches" if kind == "cache" else "Application Support") / "xaihub"
    default = Path.home() / {"cache": ".cache", "config": ".config"}.get(kind, ".local/state")
    return Path(os.environ.get(f"XDG_{kind.upper()}_HOME") or default) / "xaihub"
