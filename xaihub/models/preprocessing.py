"""Preprocessing: from an image to a model's input, and from the input's geometry back to the image's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The geometry of an input: the image is scaled as a whole, then cropped (or padded, with negative offsets).

    All sizes are (width, height) in pixels, offsets are (left, top) in pixels of the scaled image.
    """

    original: tuple[int, int]
    scaled: tuple[int, int]
    offset: tuple[int, int]
    crop: tuple[int, int]

    def box(self) -> tuple[float, float, float, float]:
        """Return (left, top, right, bottom) of the visible region, in pixels of the original image."""
        fx, fy = self.original[0] / self.scaled[0], self.original[1] / self.scaled[1]
        left, top = self.offset[0] * fx, self.offset[1] * fy
        return (left, top, left + self.crop[0] * fx, top + self.crop[1] * fy)

    def to_original(self, heatmap: Tensor) -> Tensor:
        """Undo crop and scaling of an (h, w) map bilinearly: (H, W) of the original image.

        Pixels outside the crop are NaN.
        """
        width, height = self.original
        x = self._coordinates(width, self.scaled[0], self.offset[0], self.crop[0])
        y = self._coordinates(height, self.scaled[1], self.offset[1], self.crop[1])
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)  # (H, W, 2) as x, y in [-1, 1]
        sampled = grid_sample(
            heatmap[None, None].float(), grid[None], mode="bilinear", padding_mode="border", align_corners=False
        )[0, 0]
        seen = (y.abs() <= 1).unsqueeze(1) & (x.abs() <= 1).unsqueeze(0)
        return sampled.masked_fill(~seen, float("nan"))

    @staticmethod
    def _coordinates(original: int, scaled: int, offset: int, crop: int) -> Tensor:
        centres = (torch.arange(original) + 0.5) * (scaled / original) - offset  # in pixels of the crop
        return centres / crop * 2 - 1


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """A model's own preprocessing.

    Attributes:
        spatial: Scaling and cropping steps in order, each from a PIL image to a PIL image.
        size: (channels, height, width) of the input.
        mean: Subtracted from each channel, in units of [0, 1].
        std: Divides each channel, in units of [0, 1].
        description: Its settings, for the record.
    """

    spatial: Sequence[Callable[[Image], Image]]
    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    description: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, image: Image) -> tuple[Tensor, Geometry]:
        """Return the (C, H, W) float32 input of an RGB image, and its geometry."""
        original = scaled = image.size
        for step in self.spatial:
            image = step(image)
            if "Crop" not in type(step).__name__:
                scaled = image.size
        offset = (_centre(scaled[0], image.size[0]), _centre(scaled[1], image.size[1]))
        if self.size[0] == 1:
            image = image.convert("L")
        pixels = torch.from_numpy(np.array(image)).reshape(image.size[1], image.size[0], self.size[0])
        inputs = self.normalise(pixels.permute(2, 0, 1).float().div(255))
        return inputs, Geometry(original=original, scaled=scaled, offset=offset, crop=image.size)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Map (..., C, H, W) pixels in [0, 1] to the model's units."""
        return (pixels - self._column(self.mean, pixels)) / self._column(self.std, pixels)

    def denormalise(self, inputs: Tensor) -> Tensor:
        """Map (..., C, H, W) inputs back to pixels in [0, 1]."""
        return inputs * self._column(self.std, inputs) + self._column(self.mean, inputs)

    @staticmethod
    def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)


def _centre(scaled: int, crop: int) -> int:
    # A centre crop rounds half to even; padding puts the smaller half first.
    return round((scaled - crop) / 2) if scaled >= crop else -((crop - scaled) // 2)
