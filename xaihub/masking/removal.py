"""Removal: what hidden pixels become, and how the model is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from xaihub.errors import ParameterError, PluginError
from xaihub.models.model import Model
from xaihub.params import Meta

__all__ = ["BaselineName", "Fill", "Inpaint", "Removal", "baseline_image", "make_removal"]

BLUR_SIGMA = 10.0  # pixels at 224; wide enough to erase objects, as in Fong and Vedaldi 2017 (Sec. 3)

_NAMES = ("blur", "mean", "zero", "black", "white", "grey", "noise", "inpaint")

BaselineName = Annotated[
    str,
    Meta(
        description="What hidden pixels become: blur, mean (of the image), zero (the data's mean), black, white,"
        " grey, noise, inpaint, constant:V with V in [0, 1], image:PATH, or one of 'xaihub list baselines'."
    ),
]


class Removal(ABC):
    """One way to ask a model about a partly hidden input.

    A fill value is the common way; a subclass may instead pass the mask on to the network itself.
    """

    @abstractmethod
    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        """Return the (n, K) logits of the (C, H, W) image under each of (n, 1, H, W) masks; 1 keeps a pixel."""


class Fill(Removal):
    """Hidden pixels take the value of a baseline image: `mask * image + (1 - mask) * baseline`."""

    def __init__(self, baseline: Tensor) -> None:
        """Store the (C, H, W) baseline, in the model's units."""
        self.baseline = baseline

    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        """Return the (n, K) logits."""
        # In the order that convolutions want, (n, H, W, C). With the mask repeated for each channel all three are
        # contiguous, which is worth twice the speed of a broadcast.
        weights = masks.to(image).permute(0, 2, 3, 1).expand(-1, -1, -1, len(image)).contiguous()
        hidden, shown = (part.to(image).permute(1, 2, 0).contiguous() for part in (self.baseline, image))
        return model(torch.lerp(hidden, shown, weights).permute(0, 3, 1, 2))


class Inpaint(Removal):
    """Hidden pixels are filled smoothly from the visible ones around them, anew for every mask.

    Pull-push interpolation (Gortler et al. 1996, "The Lumigraph", Sec. 3.4.2): visible pixels are averaged down a
    pyramid until no hole is left, then carried up into the holes. Where nothing at all is visible, everything
    becomes 0, the mean of the data that the model was trained on.
    """

    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        """Return the (n, K) logits."""
        weights = masks.to(image)
        return model(_pull_push(image * weights, weights))


def _pull_push(sums: Tensor, weights: Tensor) -> Tensor:
    """Fill (n, C, H, W) `sums` of visible pixels, image times (n, 1, H, W) weights, from below where weights lack."""
    if max(sums.shape[-2:]) <= 1:
        return sums / weights.clamp(min=1e-12)  # 0 where nothing is visible
    coarse = _pull_push(
        avg_pool2d(sums, 2, ceil_mode=True, count_include_pad=False),
        avg_pool2d(weights, 2, ceil_mode=True, count_include_pad=False),
    )
    carried = interpolate(coarse, size=sums.shape[-2:], mode="bilinear", align_corners=False)
    # Where some weight is visible the local mean counts by that weight, the rest comes from below.
    return sums + (1 - weights) * carried


def baseline_image(name: str, model: Model, image: Tensor) -> Tensor:
    """Return the (C, H, W) baseline called `name` (see `BaselineName`), in the model's units.

    Noise is uniform in [0, 1] and comes from torch's global generator, so the seed of `explain` fixes it.

    Raises:
        ParameterError: No baseline has that name, or it is no image ("inpaint", and those of plugins).
        InputError: The image of "image:PATH" cannot be read.
    """
    kind, _, value = name.partition(":")
    pixels = model.preprocessing.denormalise(image)
    if kind == "image" and value:
        from xaihub.images import load_image

        return model.prepare(load_image(value).rgb)[0].to(image)
    if kind == "constant" and value:
        return model.preprocessing.normalise(torch.full_like(pixels, _unit(value, name)))
    if value or kind == "inpaint" or kind in model.baselines:
        raise ParameterError(f"baseline {name!r} cannot be used here", hint="see the parameter's description")
    if kind == "zero":
        return torch.zeros_like(image)
    if kind in ("black", "grey", "white"):
        level = {"black": 0.0, "grey": 0.5, "white": 1.0}[kind]
        return model.preprocessing.normalise(torch.full_like(pixels, level))
    if kind == "mean":
        return image.mean((1, 2), keepdim=True).expand_as(image).clone()
    if kind == "noise":
        return model.preprocessing.normalise(torch.rand(pixels.shape).to(image))
    if kind == "blur":
        from torchvision.transforms.functional import gaussian_blur

        sigma = BLUR_SIGMA * image.shape[-1] / 224
        side = min(int(3 * sigma) * 2 + 1, 2 * min(image.shape[-2:]) - 1)  # reflection needs less than the image
        blurred: Tensor = gaussian_blur(image, [side, side], [sigma, sigma])
        return blurred
    raise ParameterError(
        f"no baseline is named {name!r}",
        hint=", ".join([*_NAMES, *model.baselines, "constant:V or image:PATH"]),
    )


def make_removal(name: str, model: Model, image: Tensor) -> Removal:
    """Return the removal called `name` (see `BaselineName`) for one (C, H, W) image.

    Raises:
        ParameterError: No baseline has that name.
        ExplainerRefused: A plugin's way to hide pixels does not apply to this model.
    """
    if name == "inpaint":
        return Inpaint()
    if name in model.baselines:
        found = model.baselines[name]()(model, image)
        if not isinstance(found, Removal):
            raise PluginError(f"baseline {name!r} returned a {type(found).__name__}, not a xaihub.masking.Removal")
        return found
    return Fill(baseline_image(name, model, image))


def _unit(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ParameterError(f"baseline {name!r} needs a number between 0 and 1")
    return value
