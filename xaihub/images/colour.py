"""From any Pillow mode to opaque RGB, a strip of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xaihub.errors import InputError

STRIP = 2**21  # pixels that are converted at a time, so that intermediate arrays stay small
SAMPLE = 2**20  # about the number of pixels from which quantiles are estimated

# Ranges of values that files without a declared range use, narrowest first.
RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 65535.0))
OUTLIERS = 0.005  # fraction of pixels that may lie outside a range: hot pixels do not change it
OVERSHOOT = 0.1  # of the range: values that a resampling filter adds near edges do not change it either
SAMPLE_FORMAT, LOWEST, HIGHEST = 339, 340, 341  # TIFF tags: SampleFormat, SMinSampleValue, SMaxSampleValue
UNSIGNED = 1


def opaque_rgb(image: Image.Image, bits: int = 8) -> tuple[Image.Image, tuple[str, ...]]:
    """Return an image in RGB with its transparency composited over white, and notes on what was lost.

    16-bit grey values are scaled by their range. Those of float and 32-bit images are scaled by the range that the
    file declares; or else by the narrowest of 0 to 1, -1 to 1, 0 to 255 and 0 to 65535 that holds 99.5 % of them, of
    which values beyond it by up to a tenth count as held; or else by the range of 99.5 % of them. No single pixel
    decides; values outside the range are clipped.

    Args:
        image: A loaded image of any mode.
        bits: Bits per channel in the file, in which a PNG's transparent colour is given.

    Raises:
        InputError: It has pixels that are not finite, or a mode without a conversion to RGB.
    """
    grey = image.mode == "F" or image.mode.startswith("I")
    convert = _Greys(image) if grey else _Colours(image, bits)
    if image.width * image.height <= STRIP:
        result = convert(image)
    else:
        result = Image.new("RGB", image.size)
        for box in strips(image):
            result.paste(convert(image.crop(box)), box[:2])
    return result, tuple(convert.notes)


@dataclass(frozen=True)
class Range:
    """The values that are shown black and white."""

    low: float
    high: float

    def __str__(self) -> str:
        """Both ends."""
        return f"{self.low:g} to {self.high:g}"

    def scaled(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Return grey levels."""
        if values.dtype == np.uint16:
            table: NDArray[np.uint8] = self.scaled(np.arange(65536, dtype=np.float32))[values]
            return table
        level: NDArray[Any] = values.astype(np.float32 if values.dtype == np.float32 else np.float64)
        np.subtract(level, self.low, out=level)
        np.multiply(level, 255 / (self.high - self.low), out=level)
        grey: NDArray[np.uint8] = np.rint(np.clip(level, 0, 255, out=level), out=level).astype(np.uint8)
        return grey

    def outside(self, values: NDArray[Any], tolerance: float = 0.0) -> int:
        """Count the values that lie outside by more than `tolerance` times the width of the range."""
        reach = tolerance * (self.high - self.low)
        return int(np.count_nonzero((values < self.low - reach) | (values > self.high + reach)))


def strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Yield the boxes of an image's strips from top to bottom."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield (0, top, image.width, min(top + rows, image.height))


class _Colours:
    """Converts images of 8 bits per channel."""

    def __init__(self, image: Image.Image, bits: int) -> None:
        self.notes: list[str] = []
        self._key = image.info.get("transparency")
        # Pillow widens or narrows the pixels to 8 bits, but not the transparent colour.
        if image.mode == "L" and bits < 8 and isinstance(self._key, int):
            self._key = self._key * 255 // (2**bits - 1)
        elif image.mode == "RGB" and bits == 16 and isinstance(self._key, tuple):
            self._key = tuple(value >> 8 for value in self._key)
            self.notes.append("the transparent colour was compared in 8 of its 16 bits")

    def __call__(self, image: Image.Image) -> Image.Image:
        if self._key is not None and image.info.get("transparency") != self._key:
            image = image.copy()
            image.info["transparency"] = self._key
        if image.has_transparency_data:
            # Pillow converts "La" to "LA" only.
            image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        try:
            return image.convert("RGB")
        except ValueError as error:
            raise InputError(f"the image has the mode {image.mode!r}, which cannot be converted to RGB") from error


class _Greys:
    """Scales 16-bit, 32-bit and float greys, which Pillow would clip at 255."""

    def __init__(self, image: Image.Image) -> None:
        self.notes: list[str] = []
        self._unsigned = image.mode == "I" and tiff_tag(image, SAMPLE_FORMAT) == UNSIGNED
        key = image.info.get("transparency")
        self._key = key if isinstance(key, (int, float)) else None
        if image.mode.startswith("I;"):
            self._range = Range(0, 65535)
            return
        parts = [self._values(image.crop(box)) for box in strips(image)]
        self._range = self._chosen(image, parts)
        outside = sum(self._range.outside(part) for part in parts)
        if outside:
            pixels = f"{outside} of {image.width * image.height} pixels"
            self.notes.append(f"pixel values outside {self._range} were clipped ({pixels})")

    def __call__(self, image: Image.Image) -> Image.Image:
        values = self._values(image)
        grey = self._range.scaled(values)
        if self._key is not None:
            grey[values == self._key] = 255
        return Image.fromarray(grey).convert("RGB")

    def _values(self, image: Image.Image) -> NDArray[Any]:
        values = np.asarray(image)
        return values.view(np.uint32) if self._unsigned else values

    def _chosen(self, image: Image.Image, parts: list[NDArray[Any]]) -> Range:
        if not all(np.isfinite(part).all() for part in parts):
            raise InputError("the image has NaN or infinite pixels")
        low, high = tiff_tag(image, LOWEST), tiff_tag(image, HIGHEST)
        if isinstance(low, (int, float)) and isinstance(high, (int, float)) and -np.inf < low < high < np.inf:
            return Range(float(low), float(high))
        allowed = _allowed(image.width * image.height)
        for known in RANGES:
            if sum(Range(*known).outside(part, OVERSHOOT) for part in parts) <= allowed:
                return Range(*known)
        step = max(1, image.width * image.height // SAMPLE)
        some = np.sort(np.concatenate([part.reshape(-1)[::step] for part in parts]))
        skipped = _allowed(len(some)) // 2 if len(some) > 1 else 0
        found = Range(min(0.0, float(some[skipped])), max(0.0, float(some[-1 - skipped])))
        self.notes.append(f"the file declares no range of pixel values, so {found} was used")
        return found


def _allowed(pixels: int) -> int:
    """Return the number of pixels that may lie outside a range: none of a few, one of a hundred."""
    return max(int(pixels * OUTLIERS), 2 if pixels >= 100 else 0)


def tiff_tag(image: Image.Image, number: int) -> Any:
    """Return a TIFF tag, or None if it is missing or damaged."""
    try:
        value = image.tag_v2[number]  # type: ignore[attr-defined]
    except Exception:
        return None
    return value[0] if isinstance(value, tuple) and value else value
