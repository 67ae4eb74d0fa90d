"""The preprocessing of an image processor, as steps on images."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from xaihub import ModelError, Preprocessing

_KNOWN = {"do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb", "do_reduce_labels"}
_SQUASHED = 384  # from this size on, ConvNeXt's processor scales without cropping


def preprocessing(processor: Any, sides: tuple[int, int], channels: int) -> Preprocessing:
    """Return the preprocessing of an image processor; the network itself expects (height, width) `sides`.

    An image is scaled by PIL, as the networks were trained; the values differ by rounding from a processor that scales
    tensors.

    Raises:
        ModelError: The processor does something else than scaling, cropping and normalising.
    """
    settings = processor.to_dict()
    other = [name for name, value in settings.items() if name.startswith("do_") and value and name not in _KNOWN]
    other += ["rescale_offset"] * bool(settings.get("rescale_offset"))
    if other:
        raise ModelError(
            f"the image processor {type(processor).__name__} sets {other[0]!r}, which is not supported",
            hint="load the network in Python and pass its preprocessing to xaihub.Model",
        )
    steps, sides = _steps(settings, sides)
    factor = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255.0
    mean, std = (0.0,) * channels, (1.0,) * channels
    if settings.get("do_normalize", True):
        mean, std = (_per_channel(settings[name], channels) for name in ("image_mean", "image_std"))
    return Preprocessing(
        spatial=steps,
        size=(channels, *sides),
        mean=tuple(value / factor for value in mean),
        std=tuple(value / factor for value in std),
        description={
            "image_processor": type(processor).__name__,
            "input_size": [channels, *sides],
            "steps": [str(step) for step in steps],
            "mean": [*mean],
            "std": [*std],
            "scale": factor,
        },
    )


def _steps(settings: dict[str, Any], sides: tuple[int, int]) -> tuple[list[Any], tuple[int, int]]:
    """Return the steps on images, and the sides of what they return."""
    method = settings.get("resample")
    mode = InterpolationMode(Image.Resampling(2 if method is None else method).name.lower())
    size, steps = dict(settings.get("size") or {}), list[Any]()
    crop = dict(settings.get("crop_size") or {}) if settings.get("do_center_crop") else {}
    if settings.get("do_resize", True):
        edge, fraction = size.get("shortest_edge"), settings.get("crop_pct")
        if edge is not None:
            sides = (edge, edge)
        elif {"height", "width"} <= size.keys():
            sides = (size["height"], size["width"])
        else:
            raise ModelError(f"the image processor scales to {size}, which is not supported")
        if edge is None or (fraction and edge >= _SQUASHED):
            steps.append(Resize(sides, interpolation=mode))
        else:
            steps.append(Resize(int(edge / fraction) if fraction else edge, interpolation=mode))
            crop = crop or {"height": edge, "width": edge}  # else images of a batch would differ in size
    if crop or not steps:
        sides = (crop["height"], crop["width"]) if crop else sides
        steps.append(CenterCrop(sides))
    return steps, sides


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    given = [float(value) for value in (values if isinstance(values, (list, tuple)) else [values])]
    return tuple(given) if len(given) == channels else (sum(given) / len(given),) * channels
