"""Neighbourhoods of images: noise on pixels, and random opacities of the cells of a grid.

Notation: T(x, a) = b + up(a) (x - b) is an image x whose cell k has the opacity a_k; b is a baseline, such as the mean
colour.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xaihub import Model
from xaihub.masking import Features, baseline_image


def noisy(inputs: Tensor, radius: float, std: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """Add uniform noise to (b, C, H, W) inputs, up to `radius` in units of pixels in [0, 1]; nothing is clipped."""
    noise = (torch.rand(inputs.shape, generator=generator) * 2 - 1) * radius
    return inputs + (noise / torch.tensor(std).view(-1, 1, 1)).to(inputs)


def baselines(name: str, model: Model, inputs: Tensor) -> Tensor:
    """Return the named baseline of each of (b, C, H, W) inputs, in the model's units."""
    return torch.stack([baseline_image(name, model, image) for image in inputs])


def faded(inputs: Tensor, baseline: Tensor, opacity: Tensor, cells: Features) -> Tensor:
    """Return T(x, a): (b, m, C, H, W) images of (b, C, H, W) inputs over baselines, for (b, m, K) opacities."""
    masks = cells.masks(opacity.flatten(0, 1).to(inputs)).unflatten(0, opacity.shape[:2])  # (b, m, 1, H, W)
    images: Tensor = baseline.unsqueeze(1) + masks * (inputs - baseline).unsqueeze(1)
    return images


def line_opacities(count: int, samples: int, cells: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw opacities U[0, 1] of one random cell per image; all other cells are opaque.

    Returns:
        (b, m, K) opacities, (b, m) those of the chosen cells.
    """
    chosen = torch.randint(cells, (count,), generator=generator)
    levels = torch.rand(count, samples, generator=generator)
    axis = torch.nn.functional.one_hot(chosen, cells).unsqueeze(1)
    return 1 - axis * (1 - levels.unsqueeze(2)), levels


def mask_opacities(count: int, samples: int, cells: int, keep: float | None, generator: torch.Generator) -> Tensor:
    """Draw (b, m, K) masks that show each cell with probability `keep`; None: each mask draws its own from U[0, 1].

    In the latter case all numbers of visible cells from 0 to K are equally likely.
    """
    chance = torch.rand(count, samples, 1, generator=generator) if keep is None else keep
    return (torch.rand(count, samples, cells, generator=generator) < chance).float()


def cell_opacities(count: int, samples: int, cells: int, keep: float, generator: torch.Generator) -> Tensor:
    """Draw (b, m, K) opacities: a cell is opaque with probability `keep`, otherwise its opacity is from U[0, 1]."""
    opaque = torch.rand(count, samples, cells, generator=generator) < keep
    return torch.where(opaque, 1.0, torch.rand(count, samples, cells, generator=generator))
