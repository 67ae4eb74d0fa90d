"""Small images with known evidence: digits in cells of noise, digits over all cells, exclusive or of two glyphs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from xaihub import ParameterError

Task = Literal["located", "digits", "xor"]
CELLS = 3  # per side
GLYPH = 8  # pixels per side
SIDE = CELLS * GLYPH
TRAINING = 1400  # glyphs for training; the other 397 are for testing
LEVELS = {"located": (0.30, 0.21), "digits": (0.31, 0.33), "xor": (0.19, 0.20)}  # mean and deviation of the pixels


@dataclass(frozen=True)
class LabelledImages:
    """Images for training or testing."""

    inputs: Tensor  # (n, 1, 24, 24), standardised; 0 is the mean of the training images
    labels: Tensor  # (n,) class indices
    evidence: Tensor  # (n, 9) booleans: cells that the label depends on; all of them for `digits`
    classes: int


def make_images(task: Task, count: int, *, train: bool, seed: int) -> LabelledImages:
    """Draw `count` images.

    `located`: noise from 0 to 0.6 and one digit in one cell, or in half of the images in two cells. `digits`: a digit
    over all cells. `xor`: noise from 0 to 0.3 and a zero or a one in each of two cells; the label is whether they
    differ, which no single cell reveals.

    Raises:
        ParameterError: The task is unknown.
    """
    if task not in get_args(Task):
        raise ParameterError(f"there are no images {task!r}", hint=f"use {', '.join(get_args(Task))}")
    generator = torch.Generator().manual_seed(2 * seed + train)
    part = slice(None, TRAINING) if train else slice(TRAINING, None)
    glyphs, digits = (values[part] for values in _glyphs())
    if task == "digits":
        chosen = torch.randint(len(glyphs), (count,), generator=generator)
        images = torch.nn.functional.interpolate(glyphs[chosen].unsqueeze(1), size=(SIDE, SIDE), mode="bilinear")
        labels, evidence = digits[chosen], torch.ones(count, CELLS**2, dtype=torch.bool)
    else:
        cells = torch.rand(count, CELLS**2, generator=generator).argsort(1)[:, :2]
        images = torch.rand(count, 1, SIDE, SIDE, generator=generator) * (0.6 if task == "located" else 0.3)
        if task == "located":
            chosen = torch.randint(len(glyphs), (count, 1), generator=generator).expand(-1, 2)
            twice = torch.rand(count, generator=generator) < 0.5
            cells = torch.where(twice.unsqueeze(1), cells, cells[:, :1])
            labels = digits[chosen[:, 0]]
        else:
            simple = (digits < 2).nonzero().squeeze(1)
            chosen = simple[torch.randint(len(simple), (count, 2), generator=generator)]
            labels = (digits[chosen[:, 0]] != digits[chosen[:, 1]]).long()
        tiles = images.view(-1, CELLS, GLYPH, CELLS, GLYPH).transpose(2, 3)  # (n, 3, 3, 8, 8)
        for place in (0, 1):
            tiles[torch.arange(count), cells[:, place] // CELLS, cells[:, place] % CELLS] = glyphs[chosen[:, place]]
        evidence = torch.zeros(count, CELLS**2, dtype=torch.bool).scatter_(1, cells, True)
    mean, deviation = LEVELS[task]
    return LabelledImages((images - mean) / deviation, labels, evidence, 2 if task == "xor" else 10)


@cache
def _glyphs() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's 8 x 8 digits from 0 to 1 in a fixed random order, and their labels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    order = torch.randperm(len(loaded.target), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(loaded.images).float()[order] / 16, torch.from_numpy(loaded.target).long()[order]
