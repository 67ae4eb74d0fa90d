"""Functions, inputs and a model that the tests of first principles share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from xaihub import Model, Preprocessing

D = 5
SIDE = 12
Function = Callable[[Tensor], Tensor]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def curved(seed: int = 0, d: int = D) -> Function:
    u = torch.randn(d, 9, generator=rng(seed), dtype=torch.float64)
    a = torch.randn(9, generator=rng(seed + 1), dtype=torch.float64)
    return lambda y: torch.tanh(y @ u + 0.3) @ a


def uniform(*shape: int, seed: int = 5) -> Tensor:
    return torch.rand(*shape, generator=rng(seed), dtype=torch.float64)


X, Z = uniform(D), uniform(3, D, seed=6)


class _Peaked(nn.Module):
    """Evidence for class 1 in one third of the image, with a score that saturates: few visible regions suffice."""

    def forward(self, x: Tensor) -> Tensor:
        evidence = x.mean(1)[:, 4:8, 4:8].mean((1, 2))
        return torch.stack([torch.zeros_like(evidence), torch.tanh(3 * evidence)], 1)


def peaked() -> Model:
    plain = Preprocessing(spatial=(), size=(3, SIDE, SIDE), mean=(0.5,) * 3, std=(0.25,) * 3)
    return Model(_Peaked(), name="peaked", preprocessing=plain)
