"""How good local linear explanations are: the paper's three measures, and their scale-free forms.

Notation: g_x is the affine function that explains f at x, e(x) its coefficients with the intercept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """b affine functions from R^d to R^k: coefficients (b, d, k) and intercepts (b, k)."""

    coefficients: Tensor
    intercepts: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        """Return (b, n, k) values at (b, n, d) points, n per function."""
        return points.to(self.coefficients) @ self.coefficients + self.intercepts.unsqueeze(1)

    @property
    def vectors(self) -> Tensor:
        """(b, d + 1, k) coefficients, the intercept last."""
        return torch.cat([self.coefficients, self.intercepts.unsqueeze(1)], 1)


class LocalExplainer(Protocol):
    """Anything that explains (b, d) points by affine functions; equal seeds mean equal random numbers."""

    def __call__(self, points: Tensor, *, seed: int) -> Linear:
        """Explain every point."""


def assess(
    f: Callable[[Tensor], Tensor],
    explain: LocalExplainer,
    points: Tensor,
    *,
    sigma: float = 0.1,
    draws: int = 5,
    stability_draws: int = 2,
    seed: int = 0,
) -> dict[str, float]:
    """Assess an explainer of `f` on (b, d) points, with neighbours from N(x, sigma^2 I).

    Returns means over points and outputs; lower is better, except for "variance" and "slopes", which give the scale.
    `draws` neighbours per point are evaluated, and `stability_draws` explained. The seed fixes neighbours and the
    explainer's random numbers; models assessed with the same seed share them.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(points), max(draws, stability_draws), points.shape[1], generator=generator)
    neighbours = points.unsqueeze(1) + sigma * noise.to(points)
    with torch.no_grad():
        here = f(points).double()
        near = f(neighbours[:, :draws].flatten(0, 1)).double().unflatten(0, (len(points), draws))
        g = explain(points, seed=seed)
        moved, fresh, again = [], [], []
        for draw in range(stability_draws):
            other = seed + 1000 * (draw + 1)
            moved.append(explain(neighbours[:, draw], seed=seed).vectors)
            fresh.append(explain(neighbours[:, draw], seed=other).vectors)
            again.append(explain(points, seed=other).vectors)
    found = {
        "point": _mean_square(g(points.unsqueeze(1)) - here.unsqueeze(1)),  # (g_x(x) - f(x))^2
        "neighbourhood": _mean_square(g(neighbours[:, :draws]) - near),  # E (g_x(x') - f(x'))^2
        "stability": _distance(moved, g.vectors),  # E ||e(x') - e(x)||^2, explaining x' with the random numbers of x
        "stability_fresh": _distance(fresh, g.vectors),  # with fresh random numbers, as in the published results
        "stability_as_coded": _distance(again, g.vectors),  # the released code explains x again, not x'
        "variance": float(here.var(0, correction=0).mean()),
        "slopes": float(g.coefficients.square().sum(1).mean()),  # ||beta||^2, without the intercept
    }
    found["relative_neighbourhood"] = found["neighbourhood"] / max(found["variance"], 1e-30)
    found["relative_stability"] = found["stability"] / max(found["slopes"], 1e-30)
    return found


def _mean_square(difference: Tensor) -> float:
    return float(difference.square().mean())


def _distance(vectors: list[Tensor], reference: Tensor) -> float:
    """Sum over coefficients, average over draws, points and outputs."""
    return float((torch.stack(vectors) - reference).square().sum(2).mean())
