"""Small images whose evidence is known: digits in cells of noise, digits in full, an exclusive or of two glyphs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from xaihub import ParameterError

__all__ = ["CELLS", "SIDE", "TASKS", "LabelledImages", "Task", "make_images"]

Task = Literal["located", "digits", "xor"]
TASKS: tuple[Task, ...] = ("located", "digits", "xor")
CELLS = 3  # a side
GLYPH = 8  # pixels a side
SIDE = CELLS * GLYPH
LEARNT = 1400  # glyphs for training; the other 397 are for testing


@dataclass(frozen=True)
class LabelledImages:
    """Images for training or testing.

    Attributes:
        inputs: (n, 1, 24, 24), standardised; 0 is the mean of the training images.
        labels: (n,) class indices.
        evidence: (n, 9) truth: the cells that hold what the label depends on; all of them for `digits`.
        classes: Number of classes.
    """

    inputs: Tensor
    labels: Tensor
    evidence: Tensor
    classes: int

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


def make_images(task: Task, count: int, *, train: bool, seed: int) -> LabelledImages:
    """Draw `count` images.

    `located`: noise from 0 to 0.6 and one digit in one cell, or in half of the images twice in two cells. `digits`:
    a digit over all cells. `xor`: noise from 0 to 0.3, a nought or a one in two cells each; the label is whether they
    differ, which no single cell tells.

    Raises:
        ParameterError: There is no such task.
    """
    if task not in TASKS:
        raise ParameterError(f"there are no images {task!r}", hint=", ".join(TASKS))
    generator = torch.Generator().manual_seed(2 * seed + train)
    glyphs, digits = _glyphs()
    part = slice(None, LEARNT) if train else slice(LEARNT, None)
    glyphs, digits = glyphs[part], digits[part]
    if task == "digits":
        chosen = torch.randint(len(glyphs), (count,), generator=generator)
        large = torch.nn.functional.interpolate(glyphs[chosen].unsqueeze(1), size=(SIDE, SIDE), mode="bilinear")
        return _standardised(large, digits[chosen], torch.ones(count, CELLS**2, dtype=torch.bool), 10, 0.31, 0.33)
    cells = torch.rand(count, CELLS**2, generator=generator).argsort(1)[:, :2]
    canvas = torch.rand(count, 1, SIDE, SIDE, generator=generator) * (0.6 if task == "located" else 0.3)
    if task == "located":
        chosen = torch.randint(len(glyphs), (count, 1), generator=generator).expand(-1, 2)
        twice = torch.rand(count, generator=generator) < 0.5
        cells = torch.where(twice.unsqueeze(1), cells, cells[:, :1])
        labels = digits[chosen[:, 0]]
    else:
        simple = (digits < 2).nonzero().squeeze(1)
        chosen = simple[torch.randint(len(simple), (count, 2), generator=generator)]
        labels = (digits[chosen[:, 0]] != digits[chosen[:, 1]]).long()
    for place in (0, 1):
        _paste(canvas, glyphs[chosen[:, place]], cells[:, place])
    evidence = torch.zeros(count, CELLS**2, dtype=torch.bool).scatter_(1, cells, True)
    level = (0.30, 0.21) if task == "located" else (0.19, 0.20)
    return _standardised(canvas, labels, evidence, 10 if task == "located" else 2, *level)


def _standardised(
    images: Tensor, labels: Tensor, evidence: Tensor, classes: int, mean: float, std: float
) -> LabelledImages:
    return LabelledImages((images - mean) / std, labels, evidence, classes)


def _paste(canvas: Tensor, glyphs: Tensor, cells: Tensor) -> None:
    """Write (n, 8, 8) glyphs into one cell of each image."""
    tiles = canvas.view(-1, CELLS, GLYPH, CELLS, GLYPH).transpose(2, 3)  # (n, 3, 3, 8, 8)
    tiles[torch.arange(len(canvas)), cells // CELLS, cells % CELLS] = glyphs


@cache
def _glyphs() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's 8 by 8 digits from 0 to 1, in a fixed random order, and which they are."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    order = torch.randperm(len(loaded.target), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(loaded.images).float()[order] / 16, torch.from_numpy(loaded.target).long()[order]
