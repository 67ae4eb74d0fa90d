"""From boxes to measures: atomic attributions, their increments, and the Riemann-Stieltjes sum on a grid.

A measure is what boxes (a, b] get; an integrator G gives a box `sum_e (-1)^(d - |e|) G(a + e (b - a))`, e in {0, 1}^d.
The sign counts the lower corners: with (-1)^|e| instead, every odd dimension comes out negated.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from xaihub import ExplainerRefused

__all__ = [
    "Atom",
    "Integrator",
    "axis_dirac",
    "axis_lebesgue",
    "increments",
    "length_weighted",
    "require_measure",
    "riemann",
]

Integrator = Callable[[Tensor], Tensor]  # (n, d) points to (n,) values
Atom = Callable[[Tensor, Tensor], float]  # (d,) lower and upper corner of a box to its attribution
CELLS = 2_000_000  # above it a grid is too fine to hold


def axis_dirac(x: Tensor, j: int) -> Integrator:
    """Return the integrator of the point mass at x_j e_j."""

    def integrator(y: Tensor) -> Tensor:
        others = [k for k in range(len(x)) if k != j]
        return ((y[:, j] >= x[j]) & (y[:, others] > 0).all(1)).double()

    return integrator


def axis_lebesgue(d: int, j: int) -> Integrator:
    """Return the integrator of 2 Leb on the j-th axis and 0 elsewhere."""

    def integrator(y: Tensor) -> Tensor:
        others = [k for k in range(d) if k != j]
        return 2 * y[:, j] * (y[:, others] > 0).all(1)

    return integrator


def length_weighted(x: Tensor, j: int) -> Integrator:
    """Return the integrator of the point mass at x_j times Leb on the other sides."""

    def integrator(y: Tensor) -> Tensor:
        others = [k for k in range(len(x)) if k != j]
        return (y[:, j] >= x[j]) * y[:, others].prod(1)

    return integrator


def increments(G: Integrator, lower: Tensor, upper: Tensor) -> Tensor:
    """Return (n,) masses of (n, d) boxes (lower, upper]."""
    d = lower.shape[1]
    total = torch.zeros(len(lower), dtype=torch.float64)
    for corner in product((0, 1), repeat=d):
        e = torch.tensor(corner, dtype=torch.float64)
        total += (-1) ** (d - sum(corner)) * G(lower + e * (upper - lower))
    return total


def riemann(f: Callable[[Tensor], Tensor], G: Integrator, *, d: int, cells: int) -> float:
    """Return the Riemann-Stieltjes sum over a grid of `cells` a side of [0, 1]^d, f at lower corners.

    Raises:
        ExplainerRefused: The grid is too fine.
    """
    if cells**d > CELLS:
        raise ExplainerRefused(f"a grid of {cells}^{d} cells is too fine", hint="use points of a family instead")
    side = torch.arange(cells, dtype=torch.float64) / cells
    lower = torch.cartesian_prod(*[side] * d).view(-1, d)
    return float(f(lower) @ increments(G, lower, lower + 1 / cells))


def require_measure(atom: Atom, *, d: int, trials: int = 64, seed: int = 0) -> None:
    """Check on random boxes that an atomic attribution adds up when a box is split.

    Raises:
        ExplainerRefused: It does not, so it is no measure.
    """
    generator = torch.Generator().manual_seed(seed)
    for trial in range(trials):
        ends = torch.rand(2, d, generator=generator, dtype=torch.float64).sort(0).values
        lower, upper = ends
        side = trial % d
        cut = lower[side] + (upper[side] - lower[side]) * torch.rand((), generator=generator, dtype=torch.float64)
        middle_up, middle_low = upper.clone(), lower.clone()
        middle_up[side] = middle_low[side] = cut
        whole, parts = atom(lower, upper), atom(lower, middle_up) + atom(middle_low, upper)
        if abs(whole - parts) > 1e-9 * max(1.0, abs(whole)):
            raise ExplainerRefused(
                f"the atomic attribution is not a measure: a box gets {whole:g}, its two parts {parts:g} together"
            )
