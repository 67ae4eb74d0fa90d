"""Removal operators: how masked pixels are replaced before the model is run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from xaihub.errors import ParameterError, PluginError
from xaihub.models.model import Model
from xaihub.params import Meta
from xaihub.randomness import current_generator

BLUR_SIGMA = 10.0  # pixels at 224; wide enough to erase objects, as in Fong and Vedaldi 2017 (Sec. 3)

_GREYS = {"black": 0.0, "grey": 0.5, "white": 1.0}
_NAMES = ("blur", "mean", "zero", "black", "white", "grey", "noise", "inpaint")

BaselineName = Annotated[
    str,
    Meta(
        examples=["white", "blur"],
        description="Fill for masked pixels: blur, mean (of the image), zero (the data's mean), black, white,"
        " grey, noise, inpaint, constant:V with V in [0, 1], image:PATH, or a name from 'xaihub list baselines'.",
    ),
]


class Removal(ABC):
    """One way to run a model on a partly masked input.

    Most subclasses fill masked pixels; others pass the mask to the network itself.
    """

    @abstractmethod
    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        """Return the (n, K) logits of the (C, H, W) image under each of (n, 1, H, W) masks; 1 keeps a pixel."""


class Fill(Removal):
    """Masked pixels take the value of a baseline image: `mask * image + (1 - mask) * baseline`."""

    def __init__(self, baseline: Tensor) -> None:
        """Store the (C, H, W) baseline, in the model's units."""
        self.baseline = baseline

    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        """Return the (n, K) logits."""
        # Channels-last, as convolutions need it. Repeating the mask for each channel makes all three contiguous, which
        # is twice as fast as broadcasting.
        weights = masks.to(image).permute(0, 2, 3, 1).expand(-1, -1, -1, len(image)).contiguous()
        hidden, shown = (part.to(image).permute(1, 2, 0).contiguous() for part in (self.baseline, image))
        return model(torch.lerp(hidden, shown, weights).permute(0, 3, 1, 2))


class Inpaint(Removal):
    """Masked pixels are interpolated smoothly from the visible pixels around them, for each mask separately.

    Pull-push interpolation (Gortler et al. 1996, "The Lumigraph", Sec. 3.4.2): visible pixels are averaged down a
    pyramid until no hole is left, then interpolated back into the holes. If no pixel is visible, the whole input is 0,
    the mean of the training data.
    """

    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        """Return the (n, K) logits."""
        weights = masks.to(image)
        return model(_pull_push(image * weights, weights))


def _pull_push(sums: Tensor, weights: Tensor) -> Tensor:
    """Fill holes of (n, C, H, W) `sums`, image times (n, 1, H, W) weights, from coarser levels of the pyramid."""
    if max(sums.shape[-2:]) <= 1:
        return sums / weights.clamp(min=1e-12)  # 0 where nothing is visible
    coarse = _pull_push(
        avg_pool2d(sums, 2, ceil_mode=True, count_include_pad=False),
        avg_pool2d(weights, 2, ceil_mode=True, count_include_pad=False),
    )
    carried = interpolate(coarse, size=sums.shape[-2:], mode="bilinear", align_corners=False)
    # A partly visible pixel keeps the local mean in proportion to its weight; the rest comes from the coarser level.
    return sums + (1 - weights) * carried


def baseline_image(name: str, model: Model, image: Tensor) -> Tensor:
    """Return the (C, H, W) baseline called `name` (see `BaselineName`), in the model's units.

    Noise is uniform in [0, 1] and comes from `xaihub.current_generator()`, which the seed of `explain` sets.

    Raises:
        ParameterError: No baseline has that name, or it is not an image ("inpaint" and those of plugins).
        InputError: The image of "image:PATH" cannot be read.
    """
    kind, _, value = name.partition(":")
    pixels = model.preprocessing.denormalise(image)
    if kind == "image" and value:
        from xaihub.images import load_image

        return model.prepare(load_image(value))[0].to(image)
    if kind == "constant" and value:
        return model.preprocessing.normalise(torch.full_like(pixels, _unit(value, name)))
    if value or kind == "inpaint" or kind in model.baselines:
        raise ParameterError(f"baseline {name!r} cannot be used here", hint="use an image, such as blur or mean")
    if kind == "zero":
        return torch.zeros_like(image)
    if kind in _GREYS:
        return model.preprocessing.normalise(torch.full_like(pixels, _GREYS[kind]))
    if kind == "mean":
        return image.mean((1, 2), keepdim=True).expand_as(image).clone()
    if kind == "noise":
        return model.preprocessing.normalise(torch.rand(pixels.shape, generator=current_generator()).to(image))
    if kind == "blur":
        from torchvision.transforms.functional import gaussian_blur

        sigma = BLUR_SIGMA * image.shape[-1] / 224
        side = min(int(3 * sigma) * 2 + 1, 2 * min(image.shape[-2:]) - 1)  # reflection must be smaller than the image
        blurred: Tensor = gaussian_blur(image, [side, side], [sigma, sigma])
        return blurred
    raise ParameterError(
        f"no baseline is named {name!r}",
        hint=", ".join([*_NAMES, *model.baselines, "constant:V or image:PATH"]),
    )


def make_removal(name: str, model: Model, image: Tensor) -> Removal:
    """Return the removal operator called `name` (see `BaselineName`) for one (C, H, W) image.

    Raises:
        ParameterError: No baseline has that name.
        ExplainerRefused: A plugin's removal operator is not valid for this model.
    """
    if name == "inpaint":
        return Inpaint()
    if name in model.baselines:
        found = model.baselines[name]()(model, image)
        if not isinstance(found, Removal):
            raise PluginError(f"baseline {name!r} returned {type(found).__name__}, not a xaihub.masking.Removal")
        return found
    return Fill(baseline_image(name, model, image))


def _unit(text: str, name: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) <= 1:
            return value
    raise ParameterError(f"baseline {name!r} needs a number between 0 and 1")
