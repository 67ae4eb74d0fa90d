"""Where an image or a mask is read: a file, or a range of bytes in one, such as a member of a tar archive.

A place is a text: the path of a file, or "bytes:OFFSET:SIZE:PATH".
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path, PurePath
from typing import IO

from xaihub.errors import InputError
from xaihub.images import SourceImage, load_image

_RANGE = "bytes:"


def part_of(path: str, offset: int, size: int) -> str:
    """Return the place of `size` bytes at `offset` of a file."""
    return f"{_RANGE}{offset}:{size}:{path}"


def load(where: str, source: str = "", *, page: int | None = None) -> SourceImage:
    """Read the image at a place; `source` is the name that it has in the run, `page` as for `load_image`.

    Raises:
        InputError: It cannot be read, or is not an image.
    """
    if not where.startswith(_RANGE):
        return load_image(where, page=page)
    try:
        with _opened(where) as stream:
            image = load_image(stream.read(), page=page)
    except OSError as error:
        raise InputError(f"cannot read {source!r}: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(f"{source!r}: {error.message}", hint=error.hint) from error
    return replace(image, source=source, name=PurePath(source).stem)


def checksum(where: str) -> str:
    """Return the sha256 of what is at a place, or "" if it cannot be read."""
    try:
        if where == "-":
            return load_image(where).sha256
        with _opened(where) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
    except (OSError, ValueError, InputError):
        return ""


def _opened(where: str) -> IO[bytes]:
    if where.startswith(_RANGE):
        offset, size, path = where.removeprefix(_RANGE).split(":", 2)
        with Path(path).open("rb") as file:
            file.seek(int(offset))
            return io.BytesIO(file.read(int(size)))
    if not Path(where).is_file():  # a pipe would block, and a device never ends
        raise OSError(f"{where} is not a regular file")
    return Path(where).open("rb")
