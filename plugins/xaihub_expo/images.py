"""Neighbourhoods of images: noise on pixels, and the opacity of the cells of a grid.

Notation: T(x, a) = b + up(a) (x - b) is an image x whose cell k has the opacity a_k; b is a baseline, such as the mean
colour.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xaihub import Model
from xaihub.masking import Features, baseline_image

__all__ = ["baselines", "cell_opacities", "line_opacities", "mask_opacities", "noisy", "shown"]


def noisy(inputs: Tensor, radius: float, std: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """Add uniform noise to (b, C, H, W) inputs, up to `radius` where pixels are in [0, 1]; nothing is clipped."""
    noise = (torch.rand(inputs.shape, generator=generator) * 2 - 1) * radius
    return inputs + (noise / torch.tensor(std).view(-1, 1, 1)).to(inputs)


def baselines(name: str, model: Model, inputs: Tensor) -> Tensor:
    """Return the baseline called `name` of each of (b, C, H, W) inputs, in the model's units."""
    return torch.stack([baseline_image(name, model, image) for image in inputs])


def shown(inputs: Tensor, hidden: Tensor, opacity: Tensor, cells: Features) -> Tensor:
    """Return T(x, a): (b, m, C, H, W) images of (b, C, H, W) inputs over baselines, for (b, m, K) opacities."""
    masks = cells.masks(opacity.flatten(0, 1).to(inputs)).unflatten(0, opacity.shape[:2])  # (b, m, 1, H, W)
    images: Tensor = hidden.unsqueeze(1) + masks * (inputs - hidden).unsqueeze(1)
    return images


def line_opacities(
    count: int, samples: int, cells: int, generator: torch.Generator, *, binary: bool = False
) -> tuple[Tensor, Tensor]:
    """Draw opacities U[0, 1] of one random cell an image, all others being opaque.

    Binary opacities are here to show why they must not be: a line fits two levels without residual.

    Returns:
        (b, m, K) opacities, (b, m) those of the chosen cells.
    """
    chosen = torch.randint(cells, (count,), generator=generator)
    levels = torch.rand(count, samples, generator=generator)
    levels = levels.round() if binary else levels
    axis = torch.nn.functional.one_hot(chosen, cells).unsqueeze(1)
    return 1 - axis * (1 - levels.unsqueeze(2)), levels


def mask_opacities(count: int, samples: int, cells: int, keep: float | None, generator: torch.Generator) -> Tensor:
    """Draw (b, m, K) masks that show each cell with probability `keep`, or each mask's cells with one of its own.

    The latter are drawn from U[0, 1], so that all numbers of cells from 0 to K are equally likely.
    """
    chance = torch.rand(count, samples, 1, generator=generator) if keep is None else keep
    return (torch.rand(count, samples, cells, generator=generator) < chance).float()


def cell_opacities(count: int, samples: int, cells: int, keep: float, generator: torch.Generator) -> Tensor:
    """Draw (b, m, K) opacities: a cell is opaque with probability `keep`, and otherwise its opacity is U[0, 1]."""
    opaque = torch.rand(count, samples, cells, generator=generator) < keep
    return torch.where(opaque, 1.0, torch.rand(count, samples, cells, generator=generator))
