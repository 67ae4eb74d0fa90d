"""Peak memory of images that are small as files and large when they are decoded."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# The peak of this process: `ru_maxrss` would include what its parent used before.
PEAK = "next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))"
READ = f"""
import sys
import xaihub
from xaihub.errors import InputError
try:
    image = xaihub.load_image(sys.argv[1])
    print("read", image.rgb.size)
except InputError as error:
    print("refused", error)
print({PEAK})
"""


def png(width: int, height: int, bits: int, colour: int, channels: int) -> bytes:
    """A black PNG file."""
    press, row = zlib.compressobj(1), bytes(1 + width * channels * bits // 8)
    data = b"".join(press.compress(row) for _ in range(height)) + press.flush()
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def float_tiff(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.float32)).save(
        buffer, "TIFF", compression="tiff_adobe_deflate", tiffinfo={278: side}
    )
    return buffer.getvalue()


def saved(kind: str, side: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "outcome"),
    [
        (lambda: float_tiff(10_400), "read"),
        (lambda: float_tiff(12_500), "refused"),
        (lambda: png(10_400, 10_400, 16, 0, 1), "read"),
        (lambda: png(13_000, 13_000, 16, 0, 1), "refused"),
        (lambda: png(8_500, 8_500, 16, 6, 4), "read"),
        (lambda: png(13_000, 13_000, 16, 6, 4), "refused"),
        (lambda: png(100_000, 1_000, 8, 2, 3), "read"),
        (lambda: png(30_000, 2, 8, 2, 3), "refused"),
        (lambda: saved("JPEG", 9_300, progressive=True), "read"),
        (lambda: saved("JPEG", 12_000, progressive=True), "refused"),
        (lambda: saved("WEBP", 6_600, lossless=True, method=0), "read"),
        (lambda: saved("WEBP", 12_000, lossless=True, method=0), "refused"),
    ],
)
def test_reading_stays_far_below_two_gigabytes(make: Callable[[], bytes], outcome: str, tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(make())
    assert file.stat().st_size < 8e6
    done = subprocess.run([sys.executable, "-c", READ, str(file)], capture_output=True, text=True, check=True)
    line, peak = done.stdout.splitlines()
    assert line.startswith(outcome)
    assert int(peak) < 1.1e6  # kB; torch and a model take up to 0.9 GB more
