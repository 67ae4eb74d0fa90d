"""Arrays with any number of channels: files of NumPy, checks, and figures of chosen bands."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xaihub.errors import InputError
from xaihub.images.decoding import BUDGET, PIXEL, check_size

STRETCH = (2.0, 98.0)  # percentiles of a band that are drawn black and white
ORDER = "arrays are (height, width) or (height, width, channels); numpy.moveaxis(array, 0, -1) moves channels last"


def read_array(file: IO[bytes], shown: str) -> NDArray[Any]:
    """Return the array of a .npy file, or the only array of a .npz file. Pickled objects are never loaded.

    Raises:
        InputError: It is damaged, holds objects or too many values, or holds none or several arrays.
    """
    try:
        if zipfile.is_zipfile(file):
            file.seek(0)
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                if sum(member.file_size for member in members) > BUDGET:
                    raise InputError(f"{shown} holds too many values to be safe", hint="save a part of it")
                if len(members) != 1:
                    names = ", ".join(member.filename.removesuffix(".npy") for member in members[:6])
                    raise InputError(f"{shown} holds {len(members)} arrays: {names}", hint="save one of them as .npy")
                with archive.open(members[0]) as member:
                    return np.lib.format.read_array(member, allow_pickle=False)
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    except InputError:
        raise
    except (MemoryError, OverflowError) as error:
        raise InputError(f"{shown} needs more memory than there is") from error
    except Exception as error:  # damaged headers and archives raise many types
        reason = "it holds Python objects, which are not loaded" if "pickle" in str(error) else str(error)[:200]
        raise InputError(f"{shown} is not an array of numbers: {reason}") from error


def checked(array: Any, shown: str) -> NDArray[Any]:
    """Return an array as (H, W, C).

    Raises:
        InputError: It has another number of axes, no or too many values, a type that is not numeric, or values that are
            not finite.
    """
    values: NDArray[Any] = np.asarray(array)
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise InputError(f"{shown} has the shape {values.shape}", hint=ORDER)
    if values.dtype.kind not in "buif":
        raise InputError(f"{shown} holds values of the type {values.dtype}, not numbers")
    height, width, channels = values.shape if values.ndim == 3 else (*values.shape, 1)
    check_size((width, height), max(channels * values.dtype.itemsize, PIXEL))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{shown} holds NaN or infinite values", hint="fill them first")
    return values.reshape(height, width, channels)


def as_image(array: NDArray[Any]) -> Image.Image | None:
    """Return the Pillow image that an (H, W, C) array is, or None if no image has such channels or values.

    Images have 1, 3 or 4 channels; integers of 8 or 16 bits, or floats between 0 and 1.
    """
    kind = array.dtype
    if array.shape[2] not in (1, 3, 4):
        return None
    if kind.kind == "f":
        if array.min() < 0 or array.max() > 1:
            return None
        array = np.rint(array * 255).astype(np.uint8)
    elif kind == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif kind.kind == "b":
        array = array.astype(np.uint8) * 255
    elif kind != np.uint8:
        return None
    return Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)


def drawn(array: NDArray[Any], bands: Sequence[int] = ()) -> tuple[Image.Image, str]:
    """Return chosen bands of an (H, W, C) array as red, green and blue, or one as grey, and a note.

    Each band is drawn from its 2nd to its 98th percentile (our choice, as is usual for satellite images).

    Args:
        array: The values.
        bands: Numbers of one or three bands, from 1; by default the first three, or the first of fewer.

    Raises:
        InputError: A band is out of range.
    """
    count = array.shape[2]
    chosen = tuple(bands) or ((1, 2, 3) if count >= 3 else (1,))
    if len(chosen) not in (1, 3) or not all(1 <= band <= count for band in chosen):
        raise InputError(
            f"bands {', '.join(map(str, chosen))} cannot be drawn", hint=f"give one or three numbers from 1 to {count}"
        )
    levels = [Image.fromarray(_stretched(array[..., band - 1])) for band in chosen]
    image = Image.merge("RGB", levels * (3 // len(levels)))
    names = f"band{'s' if len(chosen) > 1 else ''} {', '.join(map(str, chosen))}"
    return image, f"the figure shows {names} of {count}, drawn from the 2nd to the 98th percentile"


def _stretched(band: NDArray[Any]) -> NDArray[np.uint8]:
    level = band.astype(np.float64)
    low, high = np.percentile(level, STRETCH)
    level = (level - low) / max(high - low, 1e-12)
    grey: NDArray[np.uint8] = np.rint(np.clip(level, 0, 1) * 255).astype(np.uint8)
    return grey
