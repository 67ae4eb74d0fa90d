"""Decoded images, from files, standard input, bytes, Pillow images and arrays."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from xaihub.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
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
        array: The (H, W, C) values of an image that was given as an array, or None.
        plain: Whether `rgb` shows all of them, so that a network for RGB or grey images can use it.
    """

    rgb: Image
    name: str
    source: str
    sha256: str
    notes: tuple[str, ...] = ()
    array: NDArray[Any] | None = None
    plain: bool = True

    def __repr__(self) -> str:
        """One line: the name, the size and the type of the values."""
        values = "RGB" if self.array is None else f"{self.array.shape} {self.array.dtype}"
        return f"<SourceImage {self.name!r}, {self.rgb.width}x{self.rgb.height}, {values}>"


def sample_photo() -> Path:
    """Return the path of the sample photo: the cat that scikit-image ships."""
    return Path(str(resources.files("skimage") / "data" / "chelsea.png"))


def load_image(source: Any, *, page: int | None = None) -> SourceImage:
    """Read one image as upright RGB: a path, "-" for standard input, bytes, a PIL image, or an (H, W[, C]) array.

    EXIF orientation is applied, transparency is composited over white, 16-bit, 32-bit and float greys are scaled by
    their range (see `xaihub.images.colour.opaque_rgb`). Arrays, also those of .npy and .npz files, keep their values;
    if they are no RGB or grey images, `rgb` shows three of their channels.

    Args:
        source: The image.
        page: The page of a file with several pages or frames, from 1; by default the first, and a note says so.

    Raises:
        InputError: It is missing, empty, truncated, not an image or not a regular file, too large, too thin, of an
            unusable shape, or has no such page.
    """
    from PIL import Image

    if isinstance(source, SourceImage):
        return source
    if isinstance(source, Image.Image):
        return _from_memory(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decoded(io.BytesIO(source), name="bytes", source="", page=page)
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        if path == "-":
            return _decoded(io.BytesIO(_standard_input()), name="stdin", source="-", page=page)
        with _opened(path) as file:
            return _decoded(file, name=Path(path).stem, source=path, page=page)
    return _from_array(_as_array(source))


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


def _decoded(file: IO[bytes], *, name: str, source: str, page: int | None) -> SourceImage:
    from xaihub.images.arrays import read_array
    from xaihub.images.decoding import decode
    from xaihub.images.finding import ARRAYS

    shown, most = repr(source or name), MOST_PIPED if source == "-" else MOST_BYTES
    try:
        size = file.seek(0, io.SEEK_END)
        if not size:
            raise InputError(f"{shown} is empty")
        if size > most:
            raise InputError(f"{shown} is larger than {most // 2**20} MiB", hint="scale the image down first")
        file.seek(0)
        if source.lower().endswith(ARRAYS):
            found = _from_array(read_array(file, shown), name=name, source=source, page=page)
        else:
            rgb, notes = decode(file, shown=shown, page=page)
            found = SourceImage(rgb=rgb, name=name, source=source, sha256="", notes=notes)
        file.seek(0)
        checksum = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"cannot read {shown}: {error.strerror or error}") from error
    return replace(found, sha256=checksum)


def _from_memory(image: Image) -> SourceImage:
    from xaihub.images.colour import strips
    from xaihub.images.decoding import upright_rgb

    rgb, notes = upright_rgb(image)
    checksum = hashlib.sha256()
    for box in strips(rgb):
        checksum.update(rgb.crop(box).tobytes())
    return SourceImage(rgb=rgb, name="image", source="", sha256=checksum.hexdigest(), notes=notes)


def _as_array(source: Any) -> Any:
    import numpy as np

    if not hasattr(source, "__array__"):
        raise InputError(
            f"{type(source).__name__!r} is not an image", hint="pass a path, bytes, a PIL image or an array"
        )
    try:
        return np.asarray(source)
    except Exception as error:  # such as a tensor on a GPU
        raise InputError(f"{type(source).__name__!r} cannot be read as an array: {error}") from error


def _from_array(array: Any, *, name: str = "", source: str = "", page: int | None = None) -> SourceImage:
    from xaihub.images.arrays import as_image, checked, drawn

    shown = repr(source) if source else "the array"
    values = checked(array, shown)
    if page not in (None, 1):
        raise InputError(f"{shown} is one array, so there is no page {page}")
    image = as_image(values)
    if image is None:
        rgb, _ = drawn(values)
        digest = hashlib.sha256(values.tobytes()).hexdigest()
        found = SourceImage(rgb=rgb, name="image", source="", sha256=digest, plain=False)
    else:
        found = _from_memory(image)
    return replace(found, array=values, name=name or found.name, source=source)
