"""Images and their encoded files, for the tests."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from xaihub import load_image

# Smooth, so that lossy formats stay close to it; no symmetry, so that each orientation shows.
ACROSS, DOWN = np.meshgrid(np.linspace(0, 250, 48), np.linspace(0, 120, 32))
PIXELS = np.stack([ACROSS, DOWN, np.full((32, 48), 60.0)], axis=-1).astype(np.uint8)
PHOTO = Image.fromarray(PIXELS)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """EXIF data of (tag, type, count, value) entries, as they are."""
    head, body, rest = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)), b"", b""
    for tag, kind, count, value in entries:
        place = struct.pack("<I", 8 + 2 + 12 * len(entries) + 4 + len(rest))
        body += struct.pack("<HHI", tag, kind, count) + (place if len(value) > 4 else value.ljust(4, b"\0"))
        rest += value if len(value) > 4 else b""
    return head + body + bytes(4) + rest


def pixels(source: Any) -> np.ndarray[Any, Any]:
    image = load_image(source)
    assert image.rgb.mode == "RGB"
    return np.asarray(image.rgb)


def png(width: int, bits: int, colour: int, row: bytes, transparent: bytes) -> bytes:
    """A PNG file of one row, with a transparent grey or colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
    parts = ((b"IHDR", head), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
