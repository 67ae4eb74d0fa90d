"""Preprocessing: from an image to a model's input, and from the input's geometry back to the image's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from xaihub.errors import ModelError
from xaihub.models.cards import LARGEST_SIDE
from xaihub.models.scaling import economical

if TYPE_CHECKING:
    from PIL.Image import Image

BLOCK = 2**22  # pixels of a map that are computed at a time
LARGEST = 2**26  # values of an input
THIN = 16  # times a side that the other may have before the preprocessing is tried
FEW = 0.2  # of the image: less is worth a note


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

    def visible(self) -> float:
        """Return the fraction of the image's area that the model receives."""
        left, top, right, bottom = self.box()
        width, height = self.original
        across, down = min(right, width) - max(left, 0), min(bottom, height) - max(top, 0)
        return max(across, 0) * max(down, 0) / (width * height)

    def notes(self) -> tuple[str, ...]:
        """Return a note if the model receives only a small part of the image."""
        visible, (width, height) = self.visible(), self.original
        if visible >= FEW:
            return ()
        shown = f"{100 * visible:.2g} % of the image"
        return (f"the model's crop shows only {shown} ({width} x {height} pixels); crop the image first",)

    def to_original(self, heatmap: Tensor) -> Tensor:
        """Undo crop and scaling of an (h, w) map bilinearly: (H, W) of the original image.

        Pixels outside the crop are NaN.
        """
        width, height = self.original
        x = self._coordinates(width, self.scaled[0], self.offset[0], self.crop[0])
        y = self._coordinates(height, self.scaled[1], self.offset[1], self.crop[1])
        maps, result = heatmap[None, None].float(), torch.empty(height, width)
        for rows, into in zip(y.split(max(1, BLOCK // width)), result.split(max(1, BLOCK // width)), strict=True):
            grid = torch.stack(torch.meshgrid(rows, x, indexing="ij")[::-1], dim=-1)  # (h, W, 2) as x, y in [-1, 1]
            into[:] = grid_sample(maps, grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0, 0]
            into[~((rows.abs() <= 1).unsqueeze(1) & (x.abs() <= 1).unsqueeze(0))] = float("nan")
        return result

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

    def __post_init__(self) -> None:
        """Refuse an input that no image should be scaled to.

        Raises:
            ModelError: The input has no values, or too many.
        """
        if min(self.size) < 1 or self.size[0] * self.size[1] * self.size[2] > LARGEST:
            raise ModelError(f"an input of {' x '.join(map(str, self.size))} values is not supported")

    @classmethod
    def standard(
        cls,
        *,
        input_size: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bicubic",
        crop_pct: float = 1.0,
        crop_mode: str = "center",
    ) -> Preprocessing:
        """Return timm's preprocessing for evaluation, which is also what a card's `input` describes.

        The shorter side is scaled to that of (channels, height, width) `input_size` divided by `crop_pct`, and the
        centre is cropped; `crop_mode` "squash" scales both sides, and "border" pads.

        Raises:
            ModelError: The settings contradict each other.
        """
        from timm.data import create_transform

        channels, *sides = input_size
        if len(mean) != channels or len(std) != channels:
            raise ModelError(f"there are {len(mean)} means and {len(std)} standard deviations for {channels} channels")
        if max(sides) / min(crop_pct, 1) > LARGEST_SIDE:
            raise ModelError(
                f"images would be scaled to more than {LARGEST_SIDE} pixels", hint="reduce the size, or raise crop_pct"
            )
        settings: dict[str, Any] = {
            "input_size": tuple(input_size), "mean": tuple(mean), "std": tuple(std), "interpolation": interpolation,
            "crop_pct": crop_pct, "crop_mode": crop_mode,
        }  # fmt: skip
        steps = create_transform(**settings, is_training=False).transforms
        last = ("ToTensor", "MaybeToTensor", "PILToTensor", "MaybePILToTensor", "Normalize")
        return cls(
            spatial=[step for step in steps if type(step).__name__ not in last],
            size=settings["input_size"],
            mean=settings["mean"],
            std=settings["std"],
            description=dict(sorted(settings.items())),
        )

    def __call__(self, image: Image) -> tuple[Tensor, Geometry]:
        """Return the (C, H, W) float32 input of an RGB image, and its geometry.

        Raises:
            ModelError: The model takes neither one channel nor three.
        """
        if self.size[0] not in (1, 3):
            raise ModelError(
                f"the model takes inputs with {self.size[0]} channels, and an image has 3 (or 1, in grey)",
                hint="explain (B, C, H, W) tensors with Explainer.explain",
            )
        original = scaled = image.size
        image = economical(image)
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

    def check(self, image: Image) -> None:
        """Refuse an image that is too thin to be scaled; only thin ones are tried.

        Raises:
            InputError: The preprocessing cannot be applied to it.
        """
        if max(image.size) > THIN * min(image.size):
            self(image)

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
