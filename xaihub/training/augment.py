"""Random crops and flips, fixed by (seed, epoch, image), in the model's own units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xaihub.models.preprocessing import Preprocessing
from xaihub.training.draws import number

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Augmentation"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A random resized crop and, where the mirror image is of the same class, a random flip.

    Objectives that hide parts of an image get the crop, so that what they hide is hidden from what is seen.

    Attributes:
        preprocessing: The model's; gives the size, the interpolation and the normalisation.
        seed: Of the run.
        min_crop: The smallest share of the area that is kept.
        flip: Mirror half of the images.
    """

    preprocessing: Preprocessing
    seed: int
    min_crop: float
    flip: bool

    def __call__(self, image: Image, epoch: int, index: int) -> Tensor:
        """Return the (C, H, W) input of an RGB image, drawn for this epoch."""
        from PIL import Image as PILImage
        from torchvision.transforms import RandomResizedCrop
        from torchvision.transforms.functional import InterpolationMode, resized_crop

        channels, height, width = self.preprocessing.size
        with torch.random.fork_rng(devices=[]):
            # Only the generator of the CPU: `torch.manual_seed` would touch every device.
            torch.default_generator.manual_seed(number("augmentation", self.seed, epoch, index))
            ratio = [3 / 4 * width / height, 4 / 3 * width / height]
            box = RandomResizedCrop.get_params(image, scale=[self.min_crop, 1.0], ratio=ratio)
            mirrored = self.flip and bool(torch.rand(()) < 0.5)
        name = str(self.preprocessing.description.get("interpolation", "bilinear"))
        known = {mode.value for mode in InterpolationMode}
        mode = InterpolationMode(name if name in known else "bilinear")
        image = resized_crop(image, *box, size=[height, width], interpolation=mode, antialias=True)
        if mirrored:
            image = image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
        if channels == 1:
            image = image.convert("L")
        pixels = torch.from_numpy(np.array(image)).reshape(height, width, channels)
        return self.preprocessing.normalise(pixels.permute(2, 0, 1).float().div(255))
