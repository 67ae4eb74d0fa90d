"""Decoded images, from files, standard input, bytes, Pillow images and arrays."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from xaihub.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_BYTES = 2**30  # of a file
MOST_PIPED = 2**28  # bytes of standard input, which are kept in memory

_STDIN: list[Any] = []  # the stream that was read, and its content


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """A decoded image.

    Attributes:
        rgb: The PIL image in RGB, upright.
        name: A short name for output files and labels.
        source: Its path, "-" for standard input, or "" for an image created in memory.
        sha256: The checksum of the file, or of the pixels of an image created in memory.
        notes: What was lost in decoding, for the record.
    """

    rgb: Image
    name: str
    source: str
    sha256: str
    notes: tuple[str, ...] = ()


def sample_photo() -> Path:
    """Return the path of the sample photo: the cat that scikit-image ships."""
    return Path(str(resources.files("skimage") / "data" / "chelsea.png"))


def load_image(source: Any) -> SourceImage:
    """Read one image as upright RGB: a path, "-" for standard input, bytes, a PIL image, or an (H, W[, C]) array.

    EXIF orientation is applied, transparency is composited over white, 16-bit, 32-bit and float greys are scaled by
    their range (see `xaihub.images.colour.opaque_rgb`), and an animation is reduced to its first frame.

    Raises:
        InputError: It is missing, empty, truncated, not an image or not a regular file, too large, too thin, or of an
            unusable shape.
    """
    from PIL import Image

    if isinstance(source, SourceImage):
        return source
    if isinstance(source, Image.Image):
        return _from_memory(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decoded(io.BytesIO(source), name="bytes", source="")
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        if path == "-":
            return _decoded(io.BytesIO(_standard_input()), name="stdin", source="-")
        with _opened(path) as file:
            return _decoded(file, name=Path(path).stem, source=path)
    return _from_memory(_from_array(source))


def _opened(path: str) -> IO[bytes]:
    """Open a regular file; anything else could block or never end."""
    try:
        kind = os.stat(path).st_mode  # noqa: PTH116 - before it is opened: opening a device may change it
        if stat.S_ISREG(kind):
            file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - pathlib's has no opener
            kind = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(kind):
                return file
            file.close()
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path!r}") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(f"cannot read {path!r}: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(kind):
        raise InputError(f"cannot read {path!r}: Is a directory")
    raise InputError(f"cannot read {path!r}: it is not a regular file", hint="use - to read standard input")


def _without_waiting(path: str, flags: int) -> int:
    # The file may have become a pipe after it was checked.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _standard_input() -> bytes:
    """Return the content of standard input, which can be read only once but may be needed by several models."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise InputError("standard input is closed")
    if not _STDIN or _STDIN[0] is not stream:
        try:
            _STDIN[:] = [stream, stream.read(MOST_PIPED + 1)]
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read standard input: {error}") from error
    return _STDIN[1]  # type: ignore[no-any-return]


def _decoded(file: IO[bytes], *, name: str, source: str) -> SourceImage:
    from xaihub.images.decoding import decode

    shown, most = repr(source or name), MOST_PIPED if source == "-" else MOST_BYTES
    try:
        size = file.seek(0, io.SEEK_END)
        if not size:
            raise InputError(f"{shown} is empty")
        if size > most:
            raise InputError(f"{shown} is larger than {most // 2**20} MiB", hint="scale the image down first")
        file.seek(0)
        rgb, notes = decode(file, shown=shown)
        file.seek(0)
        checksum = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"cannot read {shown}: {error.strerror or error}") from error
    return SourceImage(rgb=rgb, name=name, source=source, sha256=checksum, notes=notes)


def _from_memory(image: Image) -> SourceImage:
    from xaihub.images.colour import strips
    from xaihub.images.decoding import upright_rgb

    rgb, notes = upright_rgb(image)
    checksum = hashlib.sha256()
    for box in strips(rgb):
        checksum.update(rgb.crop(box).tobytes())
    return SourceImage(rgb=rgb, name="image", source="", sha256=checksum.hexdigest(), notes=notes)


def _from_array(array: Any) -> Image:
    import numpy as np
    from PIL import Image

    from xaihub.images.decoding import check_size

    if not hasattr(array, "__array__"):
        raise InputError(
            f"{type(array).__name__!r} is not an image", hint="pass a path, bytes, a PIL image or an array"
        )
    try:
        values = np.asarray(array)
    except Exception as error:  # such as a tensor on a GPU
        raise InputError(f"{type(array).__name__!r} cannot be read as an array: {error}") from error
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)) or 0 in values.shape:
        raise InputError(f"an array of shape {values.shape} is not an image", hint="pass (H, W) or (H, W, 3)")
    check_size((values.shape[1], values.shape[0]))
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise InputError("the values of a float image must lie between 0 and 1")
        values = np.rint(values * 255).astype(np.uint8)
    elif values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)
    elif values.dtype == bool:
        values = values.astype(np.uint8) * 255
    elif values.dtype != np.uint8:
        raise InputError(f"an image cannot have the type {values.dtype}", hint="use uint8, or floats between 0 and 1")
    return Image.fromarray(values.squeeze(2) if values.ndim == 3 and values.shape[2] == 1 else values)
