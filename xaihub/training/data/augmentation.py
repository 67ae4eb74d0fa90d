"""Random crops, flips and RandAugment, fixed by (seed, epoch, image), in the model's units."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from xaihub.errors import ParameterError
from xaihub.models.preprocessing import Preprocessing
from xaihub.training.seeds import seeded

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A random resized crop with an optional random flip, and timm's RandAugment.

    Objectives that mask parts of an image receive the result, so they mask what the model sees.

    Attributes:
        preprocessing: The model's; gives size, interpolation and normalisation.
        seed: The run's seed.
        min_crop: Minimum fraction of the image area that is kept.
        flip: Mirror half of the images.
        crop: Crop and flip; if not, images are resized as for prediction.
        randaugment: timm's description of RandAugment, or None.
    """

    preprocessing: Preprocessing
    seed: int
    min_crop: float
    flip: bool
    crop: bool = True
    randaugment: str | None = None

    @property
    def changes(self) -> bool:
        """Whether an image can differ between epochs."""
        return self.crop or self.randaugment is not None

    @cached_property
    def distort(self) -> Any:
        """The RandAugment of timm, for an RGB image.

        Raises:
            ParameterError: timm cannot read its description.
        """
        from timm.data.auto_augment import rand_augment_transform

        # As timm's own training does: shifts of at most 45 % of the side, and uncovered corners in the mean colour.
        settings = {
            "translate_const": int(0.45 * min(self.preprocessing.size[1:])),
            "img_mean": tuple(min(255, round(255 * mean)) for mean in np.resize(self.preprocessing.mean, 3).tolist()),
        }
        try:
            transform = rand_augment_transform(str(self.randaugment), settings)
        except (AssertionError, ValueError, KeyError) as error:  # timm raises no type of its own
            raise ParameterError(
                f"randaugment cannot be {self.randaugment!r}: timm cannot read it", hint="such as rand-m9-mstd0.5-inc1"
            ) from error
        for operation in transform.ops:
            if operation.name.startswith("Posterize"):
                operation.level_fn = partial(_one_bit_left, operation.level_fn)
        return transform

    def __call__(self, image: Image, epoch: int, index: int) -> Tensor:
        """Return the (C, H, W) input of an RGB image, as drawn for this epoch."""
        with seeded("augmentation", self.seed, epoch, index):
            if not self.crop:
                return self.preprocessing(self.distort(image))[0]
            image = self._cropped(image)
            if self.randaugment is not None:
                image = self.distort(image)
        channels, height, width = self.preprocessing.size
        if channels == 1:
            image = image.convert("L")
        pixels = torch.from_numpy(np.array(image)).reshape(height, width, channels)
        return self.preprocessing.normalise(pixels.permute(2, 0, 1).float().div(255))

    def _cropped(self, image: Image) -> Image:
        from PIL import Image as PILImage
        from torchvision.transforms import RandomResizedCrop
        from torchvision.transforms.functional import InterpolationMode, resized_crop

        _, height, width = self.preprocessing.size
        ratio = [3 / 4 * width / height, 4 / 3 * width / height]
        box = RandomResizedCrop.get_params(image, scale=[self.min_crop, 1.0], ratio=ratio)
        mirrored = self.flip and bool(torch.rand(()) < 0.5)
        name = str(self.preprocessing.description.get("interpolation", "bilinear"))
        known = {mode.value for mode in InterpolationMode}
        mode = InterpolationMode(name if name in known else "bilinear")
        image = resized_crop(image, *box, size=[height, width], interpolation=mode, antialias=True)
        return image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT) if mirrored else image


def _one_bit_left(level_fn: Any, level: float, hparams: Any) -> tuple[int]:
    """Return the bits that posterising keeps; timm asks for 0 at one end of the scale, which Pillow refuses."""
    return (max(1, level_fn(level, hparams)[0]),)
