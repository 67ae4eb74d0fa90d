"""Preprocessing: from an image to a model's input, and from the input's geometry back to the image's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL.Image import fromarray
from torch import Tensor
from torch.nn.functional import grid_sample

from xaihub.errors import InputError, ModelError
from xaihub.images.arrays import ORDER, drawn
from xaihub.images.source import SourceImage
from xaihub.models.cards import LARGEST_SIDE
from xaihub.models.scaling import economical

if TYPE_CHECKING:
    from PIL.Image import Image

BLOCK = 2**22  # pixels of a map that are computed at a time
LARGEST = 2**26  # values of an input
THIN = 16  # times a side that the other may have before the preprocessing is tried
ALPHA = "the fourth channel of the array was read as transparency, because the model takes RGB or grey images"
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
        range: The values of an array that become 0 and 1, before the mean is subtracted; None for 0 and the largest
            value of the type of 8-bit and 16-bit integers, and for floats between 0 and 1.
        bands: The channels that figures show as red, green and blue, or as grey, from 1; by default the first.
    """

    spatial: Sequence[Callable[[Image], Image]]
    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    description: Mapping[str, Any] = field(default_factory=dict)
    range: tuple[float, float] | None = None
    bands: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an input that no image should be scaled to.

        Raises:
            ModelError: The input has no values, or too many; or other settings do not fit its channels.
        """
        if min(self.size) < 1 or self.size[0] * self.size[1] * self.size[2] > LARGEST:
            raise ModelError(f"an input of {' x '.join(map(str, self.size))} values is not supported")
        for name in ("mean", "std"):
            if (count := len(getattr(self, name))) not in (1, self.size[0]):
                raise ModelError(f"{name} has {count} values for {self.size[0]} channels", hint="give one per channel")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ModelError(f"the range {self.range[0]:g} to {self.range[1]:g} is empty", hint="give [LOW, HIGH]")

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
        range: tuple[float, float] | None = None,
        bands: Sequence[int] = (),
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
            description=dict(sorted(settings.items())) | ({} if range is None else {"range": list(range)}),
            range=range,
            bands=tuple(bands),
        )

    def __call__(self, image: Image | SourceImage) -> tuple[Tensor, Geometry]:
        """Return the (C, H, W) float32 input of an image, and its geometry.

        Raises:
            InputError: The image does not have the model's channels, or its values have no declared range.
        """
        if isinstance(image, SourceImage) and self._reads_array(image):
            bands = self._bands(image)
        else:
            rgb = image.rgb if isinstance(image, SourceImage) else image
            if self.size[0] not in (1, 3):
                raise InputError(
                    f"the model takes inputs with {self.size[0]} channels, and an image has 3 (or 1, in grey)",
                    hint=f"give an array of the shape (height, width, {self.size[0]}), such as a .npy file",
                )
            bands = [rgb]
        scaled, geometry = zip(*map(self._spatial, bands), strict=True)
        if len(scaled) == 1 and scaled[0].mode != "F":
            last = scaled[0].convert("L") if self.size[0] == 1 else scaled[0]
            pixels = torch.from_numpy(np.array(last)).reshape(last.size[1], last.size[0], self.size[0])
            return self.normalise(pixels.permute(2, 0, 1).float().div(255)), geometry[0]
        return self.normalise(torch.from_numpy(np.stack([np.asarray(band) for band in scaled]))), geometry[0]

    def shown(self, image: SourceImage) -> SourceImage:
        """Return an image as figures show it: with the chosen bands of an array that is not drawn as it is.

        Raises:
            InputError: There is no such band.
        """
        if image.array is None or not (self.bands or self._reads_array(image)):
            alpha = image.array is not None and image.array.shape[2] == 4
            return replace(image, notes=(*image.notes, *[ALPHA] * alpha))
        rgb, note = drawn(image.array, self.bands)
        return replace(image, rgb=rgb, notes=(*image.notes, *[note] * (image.array.shape[2] > 1)))

    def _reads_array(self, image: SourceImage) -> bool:
        other = self.range is not None or self.size[0] not in (1, 3) or not image.plain
        return image.array is not None and other

    def _spatial(self, image: Image) -> tuple[Image, Geometry]:
        original = scaled = image.size
        image = economical(image)
        for step in self.spatial:
            image = step(image)
            if "Crop" not in type(step).__name__:
                scaled = image.size
        offset = (_centre(scaled[0], image.size[0]), _centre(scaled[1], image.size[1]))
        return image, Geometry(original=original, scaled=scaled, offset=offset, crop=image.size)

    def _bands(self, image: SourceImage) -> list[Image]:
        """Return the channels of an array as images of floats in units of [0, 1]."""
        array, name = image.array, repr(image.source or image.name)
        if array is None or array.shape[2] != self.size[0]:
            count = 0 if array is None else array.shape[2]
            first = array is not None and array.shape[0] == self.size[0]
            raise InputError(
                f"{name} has {count} channel{'s' * (count != 1)}, but the model takes {self.size[0]}",
                hint=ORDER if first else "select or convert the channels first",
            )
        low, high = self.range or (0.0, float(np.iinfo(array.dtype).max) if array.dtype.kind in "iu" else 1.0)
        if self.range is None and (array.dtype.itemsize > 2 or array.dtype.kind != "u"):
            least, most = float(array.min()), float(array.max())
            if array.dtype.kind not in "bf" or least < 0 or most > 1:
                raise InputError(
                    f"{name} holds values from {least:g} to {most:g}, and the model declares no range",
                    hint="write input.range: [LOW, HIGH] in the card, or Preprocessing(range=(LOW, HIGH))",
                )
        unit = [(array[..., band].astype(np.float32) - low) / (high - low) for band in range(array.shape[2])]
        return [fromarray(np.ascontiguousarray(band, dtype=np.float32)) for band in unit]

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
