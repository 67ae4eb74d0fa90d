"""An image whose evidence is planted, and a network that reads it, for the tests of the causal search."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xaihub import (
    Explanation,
    Model,
    Preprocessing,
    Runtime,
)
from xaihub_convad.explainers import Rex

SIDE = 32
SMALL = {"cell": 4, "shrink": 1000, "confidence": 0.0, "agreement": 1.0, "confidence_filter": 0.0, "refinements": 4}


class Spots(nn.Module):
    """Class 0 needs the mean of one of some bright squares; class 1 wins otherwise; class 2 is never far behind."""

    def __init__(self, *squares: tuple[int, int, int], need: float = 0.7, gain: float = 8.0) -> None:
        super().__init__()
        self.squares, self.need, self.gain = squares, need, gain

    def forward(self, x: Tensor) -> Tensor:
        seen = [x[:, 0, t : t + side, l : l + side].mean((1, 2)) for t, l, side in self.squares]  # noqa: E741
        evidence = (torch.stack(seen).amax(0) - self.need) * self.gain
        return torch.stack([evidence, torch.zeros_like(evidence), torch.full_like(evidence, -0.5)], 1)


def model_of(module: nn.Module, rows: int | None = None, side: int = SIDE) -> Model:
    plain = Preprocessing(spatial=(), size=(1, side, side), mean=(0.0,), std=(1.0,))
    return Model(module, name="toy", preprocessing=plain, runtime=Runtime(batch_size=rows))


def bright(side: int = SIDE) -> Tensor:
    return torch.ones(1, side, side)


def explained(
    module: nn.Module, *, rows: int | None = 16, seed: int = 0, target: Any = 0, **values: Any
) -> Explanation:
    return Rex(**{**SMALL, **values}).explain(model_of(module, rows), bright()[None], target, seed=seed)[0]


def mask_of(explanation: Explanation, role: str | None = None) -> NDArray[np.bool_]:
    """Return the mask of the main set, or of the first with this role."""
    return next(one for one in explanation.sets if role in (None, one.role)).mask.numpy()


def passes(module: nn.Module, mask: NDArray[np.bool_]) -> bool:
    with torch.inference_mode():
        logits = module(bright()[None] * torch.from_numpy(mask))
    return int(logits.argmax()) == 0


ONE = (8, 20, 6)  # rows 8 to 13, columns 20 to 25
