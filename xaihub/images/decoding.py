"""The one place that decodes images: whatever a decoder raises becomes an `InputError`, and memory is bounded."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

from xaihub.errors import InputError
from xaihub.images.colour import opaque_rgb, tiff_tag
from xaihub.notices import caught

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

BUDGET = 0.88e9  # bytes for decoding (110 million pixels); with torch and a model, a process stays below 2 GB
PIXEL = 4  # bytes per pixel of a Pillow image, of which there are two at a time
MOST_RLE = 2**24  # pixels of a run-length encoded BMP file, which Pillow expands in Python
MOST_SCANS = 64  # per JPEG: each may touch all pixels, and encoders write about ten
MOST_RATIO = 1000  # of the sides

BITS, ROWS_PER_STRIP, TILE_WIDTH, TILE_HEIGHT, SAMPLES = 258, 278, 322, 323, 277  # TIFF tags
ORIENTATION = 274  # EXIF tag
METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Without a handler, Python prints Pillow's messages about damaged files to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def decode(file: IO[bytes], *, shown: str, page: int | None = None) -> tuple[Image.Image, tuple[str, ...]]:
    """Return one page or frame of an image file as upright, opaque RGB, and notes on what was lost.

    Args:
        file: A seekable binary file.
        shown: Its name in messages.
        page: The number of the page, from 1; by default the first.

    Raises:
        InputError: It is not an image, damaged, too large or too thin, its mode has no RGB colours, or it has no such
            page.
    """
    with _boundary(shown):
        rgb, notes, method = _decoded(file, page)
        return rgb if method is None else rgb.transpose(method), notes


def upright_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Return a Pillow image as upright, opaque RGB, and notes on what was lost; the image itself is unchanged.

    Raises:
        InputError: It is damaged, too large or too thin, or its mode has no RGB colours.
    """
    with _boundary(""):
        rgb, notes, method = _converted(image)
        return rgb if method is None else rgb.transpose(method), notes


def check_size(size: tuple[int, int], decoder: float = PIXEL) -> None:
    """Refuse an image that would need too much memory.

    Args:
        size: (width, height).
        decoder: Bytes per pixel that decoding needs in addition to the decoded image.

    Raises:
        InputError: It has too many pixels, or none, or one side is many times as long as the other.
    """
    width, height = size
    if not width or not height:
        raise InputError("the image has no pixels")
    if width * height * (PIXEL + max(decoder, PIXEL)) > BUDGET:
        raise InputError(f"the image has too many pixels to be safe: {width} x {height}", hint="scale it down first")
    if max(size) > MOST_RATIO * min(size):
        raise InputError(
            f"the image is too thin: {width} x {height} pixels",
            hint=f"crop it; one side can be up to {MOST_RATIO} times as long as the other",
        )


def _decoded(file: IO[bytes], page: int | None) -> tuple[Image.Image, tuple[str, ...], Image.Transpose | None]:
    # The decoded image is freed on return, before its copy is turned.
    with Image.open(file, formats=FORMATS) as image:
        # The further images of a JPEG file are previews and depth maps of a phone.
        pages = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
        if page is not None and not 1 <= page <= pages:
            raise InputError(f"there is no page {page}", hint="it has one page" if pages == 1 else f"give 1 to {pages}")
        image.seek((page or 1) - 1)
        scans = _scans(file) if image.format in ("JPEG", "MPO") else 1
        if scans > MOST_SCANS:
            raise InputError(f"the image has more than {MOST_SCANS} scans", hint="save it again")
        rgb, notes, method = _converted(image, scans)
        read = f"page {page or 1} of {pages} was read" + ("" if page else "; --page N reads another")
        return rgb, (*notes, *[read] * (pages > 1)), method


def _converted(image: Image.Image, scans: int = 1) -> tuple[Image.Image, tuple[str, ...], Image.Transpose | None]:
    """Return an image in RGB, notes, and how it must be turned."""
    tile = getattr(image, "tile", None)
    layout = str(tile[0][3]) if tile and image.format == "PNG" else ""
    check_size(image.size, _decoder_bytes(image, tile, layout, scans))
    bits = 16 if layout.endswith(";16B") else int(layout[2]) if layout in ("L;2", "L;4") else 8
    image.load()
    rgb, notes = opaque_rgb(image, bits)
    try:
        orientation = image.getexif().get(ORIENTATION)
        return rgb, notes, METHODS.get(orientation)  # type: ignore[arg-type]
    except Exception:  # damaged metadata raise many types, and the pixels are intact
        return rgb, notes, None


def _decoder_bytes(image: Image.Image, tile: Any, layout: str, scans: int) -> float:
    """Return the bytes per pixel that decoding may need in addition to the decoded image."""
    bands = len(image.getbands())
    if image.format == "WEBP":  # two canvases, the frame, and a copy of it
        return 4 * PIXEL
    if not tile:  # decoded already
        return 0
    if image.format in ("JPEG", "MPO") and scans > 1:  # all coefficients are held until the last scan
        return 2 * bands
    if image.format == "PNG" and bands > 1 and layout.endswith(";16B"):  # time rather than memory
        return 2 * bands
    if image.format == "BMP" and tile[0][0] == "bmp_rle":
        return BUDGET / MOST_RLE
    if image.format == "TIFF":  # one strip or tile, which may be larger than the image
        bits, samples = tiff_tag(image, BITS) or 1, tiff_tag(image, SAMPLES) or 1
        width, height = tiff_tag(image, TILE_WIDTH) or image.width, tiff_tag(image, TILE_HEIGHT)
        height = height or min(tiff_tag(image, ROWS_PER_STRIP) or image.height, image.height)
        return float(max(bits * samples / 8, PIXEL) * width * height / (image.width * image.height))
    return 0


def _scans(file: IO[bytes]) -> int:
    """Count the scans of the first image in a JPEG file."""
    before, count, last = file.tell(), 0, b""
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] != 0xDA:  # segments before the first scan
        file.seek(int.from_bytes(head[2:], "big") - 2, io.SEEK_CUR)
    file.seek(-len(head), io.SEEK_CUR)
    while part := last + file.read(2**20):
        end = part.find(b"\xff\xd9")
        count += part.count(b"\xff\xda", 0, end if end >= 0 else len(part))
        last = part[-1:] if end < 0 and len(part) > 1 else b""
        if end >= 0 or len(part) == 1:
            break
    file.seek(before)
    return count


@contextmanager
def _boundary(shown: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an `InputError` that names the image."""
    what = shown or "the image"
    try:
        with caught():
            yield
    except InputError as error:
        raise InputError(f"{shown}: {error.message}" if shown else error.message, hint=error.hint) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{what} is not an image", hint=f"known formats: {', '.join(FORMATS)}, .npy, .npz") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{what} has too many pixels to be safe", hint="scale it down first") from error
    except MemoryError as error:
        raise InputError(f"{what} needs more memory than there is", hint="scale it down first") from error
    except Exception as error:
        raise InputError(f"{what} is damaged or truncated: {str(error) or type(error).__name__}") from error
