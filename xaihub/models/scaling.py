"""Scaling of images that are cropped afterwards, without holding the whole scaled image."""

from __future__ import annotations

import math
from typing import Any

from PIL import Image

from xaihub.errors import InputError

BLOCK = 2**24  # pixels of a scaled image that are held at a time
LARGEST = 2**27  # pixels of a scaled image that is needed as a whole
LONGEST = 2**22  # pixels: longest side of a scaled image
SUPPORT = 5  # pixels: no filter of Pillow's reaches further


def economical(image: Image.Image) -> Image.Image:
    """Return an image with the same pixels whose scaled versions are computed only as far as they are cropped.

    The crops are equal to those of the whole scaled image: unless the height shrinks, Pillow scales first rows, then
    columns, each by itself.
    """
    return _Economical(image)


class _Economical(Image.Image):
    def __init__(self, image: Image.Image) -> None:
        super().__init__()
        image.load()
        self._mode, self._size, self.im, self.info = image.mode, image.size, image.im, image.info

    def resize(self, size: Any, resample: int | None = None, *args: Any, **options: Any) -> Image.Image:
        width, height = map(int, size)
        if min(width, height) < 1 or max(width, height) > LONGEST:
            raise InputError(
                f"the image of {self.width} x {self.height} pixels is too thin or too large for the model, which "
                f"scales it to {width} x {height}",
                hint="crop or scale it first",
            )
        if width * height <= BLOCK or height < self.height or any(args) or options:
            return super().resize(size, resample, *args, **options)
        return _Scaled(self, (width, height), Image.Resampling.BICUBIC if resample is None else resample)


class _Scaled(Image.Image):
    """A scaled image that is computed when it is cropped, or as a whole when anything else is done with it."""

    def __init__(self, whole: Image.Image, size: tuple[int, int], resample: int) -> None:
        super().__init__()
        self._mode, self._size = whole.mode, size
        self._whole, self._resample = whole, resample

    def load(self) -> Any:  # every method of Pillow's calls it before it uses the pixels
        if self._im is None:
            if self.width * self.height > LARGEST:
                raise InputError(
                    f"the image of {self._whole.width} x {self._whole.height} pixels takes too much memory when it is "
                    f"scaled to {self.width} x {self.height}",
                    hint="crop or scale it first",
                )
            self.im = Image.Image.resize(self._whole, self.size, self._resample).im
        return super().load()

    def crop(self, box: Any = None) -> Image.Image:
        left, top, right, bottom = (0, 0, *self.size) if box is None else tuple(round(side) for side in box)
        if self._im is not None or not (0 <= left < right <= self.width and 0 <= top < bottom <= self.height):
            return super().crop(box)
        width, height, scale = right - left, self._whole.height, self._whole.height / self.height
        reach = SUPPORT * max(scale, 1)
        first, last = max(0, math.floor(top * scale - reach)), min(height, math.ceil(bottom * scale + reach))
        columns = Image.new(self.mode, (width, height))  # rows that the crop does not depend on stay black
        for start in range(first, last, rows := max(1, BLOCK // self.width)):
            end = min(start + rows, last)
            part = self._whole.crop((0, start, self._whole.width, end))
            part = part.resize((self.width, end - start), self._resample)
            columns.paste(part.crop((left, 0, right, end - start)), (0, start))
        result = Image.new(self.mode, (width, bottom - top))
        for start in range(0, width, across := max(1, BLOCK // self.height)):
            end = min(start + across, width)
            part = columns.crop((start, 0, end, height)).resize((end - start, self.height), self._resample)
            result.paste(part.crop((0, top, end - start, bottom)), (start, 0))
        return result
