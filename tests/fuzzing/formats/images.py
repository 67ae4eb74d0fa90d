"""Image files: JPEG, PNG, WebP, BMP, TIFF and GIF, with changed fields in headers, chunks and metadata."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzzing.driver import Format
from xaihub import load_image

NUMBERS = (0, 1, 2, 3, 4, 5, 7, 8, 16, 24, 32, 33, 64, 127, 128, 255, 256, 1000, 2**15, 2**16 - 1, 2**24, 2**31 - 1,
           2**31, 2**32 - 1)  # fmt: skip
TIFF_TAGS = (254, 256, 257, 258, 259, 262, 266, 269, 273, 274, 277, 278, 279, 282, 284, 296, 317, 320, 322, 323, 324,
             325, 330, 338, 339, 340, 341, 347, 512, 513, 529, 530, 700, 33723, 34377, 34665, 34675, 34853, 40965,
             48129)  # fmt: skip


def _number(draw: random.Random, size: int, order: str = "<") -> bytes:
    value = draw.choice(NUMBERS) if draw.random() < 0.8 else draw.getrandbits(8 * size)
    return struct.pack(order + {1: "B", 2: "H", 4: "I"}[size], value % 256**size)


def _put(data: bytes, place: int, part: bytes) -> bytes:
    return data[:place] + part + data[place + len(part) :]


def _photo(mode: str, size: tuple[int, int] = (40, 28)) -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(values)
    if mode in ("F", "I"):
        return Image.fromarray(values[..., 0].astype({"F": np.float32, "I": np.int32}[mode]))
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    return image.convert(mode)


def _saved(kind: str, modes: dict[str, list[dict[str, Any]]]) -> Callable[[], list[bytes]]:
    @cache
    def seeds() -> list[bytes]:
        found = []
        for mode, several in modes.items():
            for options in several:
                buffer = io.BytesIO()
                _photo(mode).save(buffer, kind, **options)
                found.append(buffer.getvalue())
        return found

    return seeds


def exif(draw: random.Random) -> bytes:
    """Return EXIF data with an orientation and entries of any type, count and value."""
    entries = [struct.pack("<HHIHH", 0x112, 3, 1, draw.randrange(10), 0)]
    for _ in range(draw.randrange(1, 6)):
        tag = draw.choice((*TIFF_TAGS, 0x10E, 0x11A, 0x11B, 0x8825, 0x8769, 0x9286, 0xA005))
        entries.append(struct.pack("<HH", tag, draw.randrange(16)) + _number(draw, 4) + _number(draw, 4))
    draw.shuffle(entries)
    body = struct.pack("<H", len(entries)) + b"".join(entries) + _number(draw, 4)
    return b"II*\0\x08\0\0\0" + body + draw.randbytes(draw.randrange(40))


def change_png(data: bytes, draw: random.Random) -> bytes:
    """Change chunks; their checksums stay right."""
    chunks, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    for _ in range(draw.randrange(1, 4)):
        number = draw.randrange(len(chunks))
        kind, body = chunks[number]
        match draw.randrange(6):
            case 0:
                at = draw.choice((0, 4, 8, 9, 10, 11, 12))
                chunks[0] = (b"IHDR", _put(chunks[0][1], at, _number(draw, 4 if at < 8 else 1, ">"))[:13])
            case 1:
                new = draw.choice((b"tRNS", b"PLTE", b"gAMA", b"pHYs", b"sBIT", b"acTL", b"fcTL", b"iCCP", b"cHRM"))
                chunks.insert(draw.randrange(1, len(chunks)), (new, draw.randbytes(draw.choice((0, 1, 2, 6, 26, 768)))))
            case 2:
                chunks.insert(1, (b"eXIf", exif(draw)))
            case 3:
                text = zlib.compress(b"x" * draw.choice((1, 10**6, 10**7)))
                chunks.insert(1, draw.choice(((b"zTXt", b"k\0\0" + text), (b"iCCP", b"k\0\0" + text), (b"tEXt", b"a"))))
            case 4:
                chunks[number:number] = [chunks[number]] * draw.randrange(3)
            case _ if kind == b"IDAT":
                chunks[number] = (kind, zlib.compress(draw.randbytes(draw.choice((0, 10, 5000)))))
            case _:
                chunks[number] = (kind, body[: draw.randrange(len(body) + 1)])
    made = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return data[:8] + made


def change_tiff(data: bytes, draw: random.Random) -> bytes:
    """Change entries of the first directory, which moves to the end of the file."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack(order + "I", data[4:8])
    (count,) = struct.unpack(order + "H", data[start : start + 2])
    entries = [data[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    for _ in range(draw.randrange(1, 4)):
        number = draw.randrange(len(entries))
        match draw.randrange(5):
            case 0:
                entries[number] = _put(entries[number], 2, struct.pack(order + "H", draw.randrange(20)))
            case 1:
                entries[number] = _put(entries[number], 4, _number(draw, 4, order))
            case 2:
                tag = struct.pack(order + "HH", draw.choice(TIFF_TAGS), draw.randrange(1, 14))
                entries.insert(number, tag + _number(draw, 4, order) + _number(draw, 4, order))
            case 3:
                del entries[number]
                entries = entries or [bytes(12)]
            case _:
                entries[number] = _put(entries[number], 8, _number(draw, 4, order))
    entries.sort(key=lambda entry: struct.unpack(order + "H", entry[:2]))
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + draw.choice((bytes(4), data[4:8]))
    return _put(data, 4, struct.pack(order + "I", len(data))) + directory


def change_jpeg(data: bytes, draw: random.Random) -> bytes:
    """Change segments before the first scan, and repeat scans."""
    segments, place = [], 2
    while data[place + 1] != 0xDA:
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        segments.append(data[place : place + 2 + length])
        place += 2 + length
    scan = data[place:]
    for _ in range(draw.randrange(1, 4)):
        number = draw.randrange(len(segments))
        one = segments[number]
        match draw.randrange(6):
            case 0:
                frame = next(i for i, part in enumerate(segments) if part[1] in (0xC0, 0xC1, 0xC2))
                at = draw.randrange(4, len(segments[frame]))
                segments[frame] = _put(segments[frame], at, _number(draw, draw.choice((1, 2)), ">"))[: len(one) + 99]
            case 1:
                body = b"Exif\0\0" + exif(draw)
                segments.insert(0, b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body)
            case 2:
                body = draw.choice(
                    (b"MPF\0II*\0", b"ICC_PROFILE\0\1\2", b"Adobe\0d", b"JFIF\0", b"Photoshop 3.0\08BIM")
                )
                body += draw.randbytes(draw.randrange(60))
                kind = draw.choice((0xE0, 0xE1, 0xE2, 0xED, 0xEE))
                segments.insert(number, bytes((0xFF, kind)) + struct.pack(">H", len(body) + 2) + body)
            case 3:
                segments[number:number] = [one] * draw.randrange(1, 3)
            case 4:
                scan *= draw.choice((1, 2, 100))
            case _:
                segments[number] = one[:4] + draw.randbytes(len(one) - 4)
    return data[:2] + b"".join(segments) + scan


def change_webp(data: bytes, draw: random.Random) -> bytes:
    """Change the chunks of the container, or fields of the frame's header."""
    chunks, place = [], 12
    while place + 8 <= len(data):
        (length,) = struct.unpack("<I", data[place + 4 : place + 8])
        chunks.append((data[place : place + 4], data[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    for _ in range(draw.randrange(1, 4)):
        number = draw.randrange(len(chunks))
        kind, body = chunks[number]
        match draw.randrange(5):
            case 0:
                size = struct.pack("<I", draw.choice(NUMBERS) % 2**24)[:3] + struct.pack("<I", draw.choice((0, 9)))[:3]
                chunks.insert(0, (b"VP8X", bytes((draw.randrange(256), 0, 0, 0)) + size))
            case 1:
                chunks.append((draw.choice((b"EXIF", b"XMP ", b"ICCP")), exif(draw)))
            case 2:
                chunks.insert(number, (draw.choice((b"ANIM", b"ANMF", b"ALPH", b"VP8L", b"VP8 ")), draw.randbytes(30)))
            case 3:
                chunks[number] = (kind, _put(body, draw.randrange(min(len(body), 12)), _number(draw, 2))[: len(body)])
            case _:
                chunks[number] = (kind, body[: draw.randrange(len(body) + 1)])
    made = b"".join(k + struct.pack("<I", len(b)) + b + bytes(len(b) % 2) for k, b in chunks)
    return b"RIFF" + struct.pack("<I", len(made) + 4) + b"WEBP" + made


def change_bmp(data: bytes, draw: random.Random) -> bytes:
    """Change fields of the headers."""
    for _ in range(draw.randrange(1, 4)):
        place, size = draw.choice(((10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4), (46, 4)))
        data = _put(data, place, _number(draw, size))
    if draw.random() < 0.3:  # run-length encoded, with codes of any kind
        codes = b"".join(draw.choice((b"\0\0", b"\0\2\xff\xff", b"\xff\1", b"\0\3abc\0")) for _ in range(50))
        data = _put(_put(data[: int.from_bytes(data[10:14], "little") % 2000] + codes, 28, b"\x08\0"), 30, b"\1\0\0\0")
    return data


def change_gif(data: bytes, draw: random.Random) -> bytes:
    """Change the descriptors of the screen and of frames, and insert extensions."""
    for _ in range(draw.randrange(1, 4)):
        frame = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1) * (data[10] >> 7)) if b"," in data[13:] else 13
        match draw.randrange(3):
            case 0:
                data = _put(data, draw.choice((6, 8, 10, 11)), _number(draw, 2))
            case 1:
                data = _put(data, min(frame + draw.choice((1, 3, 5, 7, 9, 10)), len(data) - 2), _number(draw, 2))
            case _:
                new = bytes((0x21, draw.choice((0xF9, 0xFE, 0xFF, 1)), draw.randrange(16))) + draw.randbytes(12) + b"\0"
                data = data[:frame] + new + data[frame:]
    return data


def _of(name: str, modes: dict[str, list[dict[str, Any]]], change: Callable[[bytes, random.Random], bytes]) -> Format:
    return Format(name=name, seeds=_saved(name, modes), change=_tolerant(change), read=_read, file="photo.png")


def _tolerant(change: Callable[[bytes, random.Random], bytes]) -> Callable[[bytes, random.Random], bytes]:
    """A changed container may be one that cannot be taken apart again: then the file stays as it is."""

    def tried(data: bytes, draw: random.Random) -> bytes:
        try:
            return change(data, draw)
        except (ValueError, IndexError, struct.error):
            return data[:-1]

    return tried


def _read(file: Path) -> None:
    image = load_image(file)
    assert image.rgb.mode == "RGB"
    image.rgb.getpixel((0, 0))


FORMATS = (
    _of("JPEG", {"RGB": [{}, {"progressive": True}], "L": [{}], "CMYK": [{}]}, change_jpeg),
    _of("PNG", {m: [{}] for m in ("RGB", "RGBA", "P", "L", "LA", "1", "I;16")}, change_png),
    _of("WEBP", {"RGB": [{}, {"lossless": True}], "RGBA": [{}]}, change_webp),
    _of("BMP", {"RGB": [{}], "P": [{}], "L": [{}], "1": [{}]}, change_bmp),
    _of(
        "TIFF",
        {
            **{mode: [{}, {"compression": "tiff_lzw"}] for mode in ("RGB", "RGBA", "L", "F", "I", "I;16", "P")},
            "1": [{"compression": "group4"}],
            "CMYK": [{"compression": "tiff_adobe_deflate"}],
            "YCbCr": [{"compression": "jpeg"}],
        },
        change_tiff,
    ),
    _of("GIF", {"P": [{}, {"transparency": 3}], "RGB": [{}]}, change_gif),
)
