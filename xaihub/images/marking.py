"""The mark on figures that xaihub draws, so that it does not take them for photos."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path

HEADER = 33  # bytes of a PNG's signature and first chunk
_TEXT = b"Software\0xaihub"
_CHUNK = len(_TEXT).to_bytes(4, "big") + b"tEXt" + _TEXT + zlib.crc32(b"tEXt" + _TEXT).to_bytes(4, "big")


def marked_png(save: Callable[[io.BytesIO], object]) -> bytes:
    """Return the PNG file that a function saves, with a text chunk right after its header that names xaihub."""
    buffer = io.BytesIO()
    save(buffer)
    png = buffer.getvalue()
    return png[:HEADER] + _CHUNK + png[HEADER:]


def is_marked(path: str | Path) -> bool:
    """Return whether a file begins like a PNG file with the mark."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib's is slower, for many files
            return file.read(HEADER + len(_CHUNK))[HEADER:] == _CHUNK
    except OSError:
        return False
