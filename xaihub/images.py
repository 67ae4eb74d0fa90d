"""Image input: finding files and decoding images to upright RGB."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xaihub.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

_STDIN: list[Any] = []  # the stream that was read, and its content


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """A decoded image.

    Attributes:
        rgb: The PIL image in RGB, upright.
        name: A short name for output files and labels.
        source: Its path, "-" for standard input, or "" for an image created in memory.
        sha256: The checksum of the file, or of the pixels of an image created in memory.
    """

    rgb: Image
    name: str
    source: str
    sha256: str


def sample_photo() -> Path:
    """Return the path of the sample photo: the cat that scikit-image ships."""
    return Path(str(resources.files("skimage") / "data" / "chelsea.png"))


def find_images(paths: Sequence[str | Path]) -> list[str]:
    """Expand files, folders (with subfolders), globs and "-" (standard input) into one list without duplicates.

    Raises:
        InputError: A path does not exist, a folder cannot be read or holds no image, a glob matches nothing.
    """
    return list(dict.fromkeys(found for path in paths for found in _expand(str(path))))


def _expand(path: str) -> Iterator[str]:
    if path == "-" or os.path.isfile(path):  # noqa: PTH113 - pathlib's raises for a name that is too long
        yield path
    elif os.path.isdir(path):  # noqa: PTH112
        yield from _folder(Path(path))
    elif glob.has_magic(path):
        hits = sorted(hit for hit in glob.glob(path, recursive=True) if Path(hit).is_file())  # noqa: PTH207 - takes "**"
        if not hits:
            raise InputError(f"no file matches {path!r}")
        yield from hits
    else:
        raise InputError(f"there is no file or folder {path!r}")


def _folder(folder: Path) -> Iterator[str]:
    def unreadable(error: OSError) -> None:
        raise InputError(f"cannot read the folder {str(error.filename)!r}: {error.strerror}") from error

    # os.walk reports a folder that it cannot read; pathlib's rglob skips it silently.
    files = [Path(parent, name) for parent, _, names in os.walk(folder, onerror=unreadable) for name in names]
    hits = sorted(str(file) for file in files if file.suffix.lower() in SUFFIXES and file.is_file())
    if not hits:
        raise InputError(f"no image in the folder {str(folder)!r}", hint=f"known: {' '.join(sorted(SUFFIXES))}")
    yield from hits


def load_image(source: Any) -> SourceImage:
    """Read one image as upright RGB: a path, "-" for standard input, bytes, a PIL image, or an (H, W[, C]) array.

    EXIF orientation is applied, transparency is composited over white, 16-bit and float greys are scaled, not clipped,
    and an animation is reduced to its first frame.

    Raises:
        InputError: It is missing, empty, truncated, not an image, too large, or of an unusable shape.
    """
    from PIL import Image

    if isinstance(source, SourceImage):
        return source
    if isinstance(source, Image.Image):
        return _from_memory(source)
    if hasattr(source, "__array__") and not isinstance(source, (str, Path)):
        return _from_memory(_from_array(source))
    if isinstance(source, bytes):
        return _decode(source, name="bytes", source="")
    path = str(source)
    if path == "-":
        return _decode(_standard_input(), name="stdin", source="-")
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path!r}") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(f"cannot read {path!r}: {getattr(error, 'strerror', None) or error}") from error
    return _decode(data, name=Path(path).stem, source=path)


def _standard_input() -> bytes:
    """Return the content of standard input, which can be read only once but may be needed by several models."""
    stream = sys.stdin.buffer
    if not _STDIN or _STDIN[0] is not stream:
        _STDIN[:] = [stream, stream.read()]
    return _STDIN[1]  # type: ignore[no-any-return]


def _decode(data: bytes, *, name: str, source: str) -> SourceImage:
    from PIL import Image, UnidentifiedImageError

    shown = repr(source or name)
    if not data:
        raise InputError(f"{shown} is empty")
    try:
        with warnings.catch_warnings():
            # Pillow raises for a file that it cannot decode; its warnings are about large photos and odd metadata.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.seek(0)
                image.load()
                upright = _upright_rgb(image)
    except InputError as error:
        raise InputError(f"{shown}: {error.message}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{shown} is not an image", hint=f"known formats: {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{shown} has too many pixels to be safe", hint="scale it down first") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise InputError(f"{shown} is damaged or truncated: {error}") from error
    return SourceImage(rgb=upright, name=name, source=source, sha256=hashlib.sha256(data).hexdigest())


def _from_memory(image: Image) -> SourceImage:
    upright = _upright_rgb(image)
    return SourceImage(rgb=upright, name="image", source="", sha256=hashlib.sha256(upright.tobytes()).hexdigest())


def _from_array(array: Any) -> Image:
    import numpy as np
    from PIL import Image

    values = np.asarray(array)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)) or 0 in values.shape:
        raise InputError(f"an array of shape {values.shape} is not an image", hint="pass (H, W) or (H, W, 3)")
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


def _upright_rgb(image: Image) -> Image:
    import numpy as np
    from PIL import Image as PILImage
    from PIL import ImageOps

    if 0 in image.size:
        raise InputError("the image has no pixels")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _scaled_grey(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PILImage.alpha_composite(PILImage.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _scaled_grey(values: Any) -> Image:
    import numpy as np
    from PIL import Image as PILImage

    # Pillow's own conversion clips these modes at 255. 16-bit files have a known range; others are scaled by the range
    # of their values.
    if not np.isfinite(values).all():
        raise InputError("the image has NaN or infinite pixels")
    low, high = min(float(values.min()), 0.0), float(values.max())
    if values.dtype == np.uint16:
        high = 65535.0
    elif values.dtype.kind == "f" and high <= 1:
        high = 1.0
    elif high <= 255:
        high = 255.0
    else:
        high = max(high, 65535.0)
    return PILImage.fromarray(np.rint((values.astype(np.float64) - low) / (high - low) * 255).astype(np.uint8))
