"""Random crops and flips, fixed by (seed, epoch, image), in the model's units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xaihub.models.preprocessing import Preprocessing
from xaihub.training.seeds import seed_of

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A random resized crop and an optional random flip.

    Objectives that mask parts of an image receive the crop, so they mask what the model sees.

    Attributes:
        preprocessing: The model's; gives size, interpolation and normalisation.
        seed: The run's seed.
        min_crop: Minimum fraction of the image area that is kept.
        flip: Mirror half of the images.
    """

    preprocessing: Preprocessing
    seed: int
    min_crop: float
    flip: bool

    def __call__(self, image: Image, epoch: int, index: int) -> Tensor:
        """Return the (C, H, W) input of an RGB image, as drawn for this epoch."""
        from PIL import Image as PILImage
        from torchvision.transforms import RandomResizedCrop
        from torchvision.transforms.functional import InterpolationMode, resized_crop

        channels, height, width = self.preprocessing.size
        with torch.random.fork_rng(devices=[]):
            # Only the CPU generator: `torch.manual_seed` would seed every device.
            torch.default_generator.manual_seed(seed_of("augmentation", self.seed, epoch, index))
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
