"""Families on coordinates: one coordinate held at x_j or moved along its axis, and derivatives written as measures.

`delta` is a point mass and `Leb` the uniform law. Docstrings start with a mark: stated by the authors, or derived.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from xaihub import ExplainerRefused
from xaihub_first_principles.measures import FIXED, MeasureFamily, Points


@dataclass(frozen=True, kw_only=True)
class HeldAtX(MeasureFamily):
    """Coordinate j is held at x_j and the other coordinates follow a law.

    `centre` subtracts the mean of f over the law of X (derived), so that an unused feature gets 0: exactly for partial
    dependence and independent features, which use the same draws for both.
    """

    normalise: ClassVar[bool] = True

    centre: bool = False

    def held_points(
        self, x: Tensor, others: Tensor, cluster: Tensor, weight: Tensor | None = None, law: Tensor | None = None
    ) -> Points:
        """Return the points for (n, d) draws of the other coordinates that serve every feature, or (d, n, d) draws.

        `cluster` is (n,) and `weight` (d, n), by default equal; `law` holds (n, d) draws of X, if they differ.
        """
        d, n = len(x), others.shape[-2]
        values = others.expand(d, n, d).clone()
        features = torch.arange(d)
        values[features, :, features] = x.unsqueeze(1)
        raw = torch.ones(d, n, dtype=torch.float64) if weight is None else weight
        values, raw = values.flatten(0, 1), raw.flatten()
        owner, cluster = features.repeat_interleave(n), cluster.repeat(d + int(self.centre))
        if self.centre:
            values = torch.cat([values, others if law is None else law])
            raw = torch.cat([raw, torch.ones(n, dtype=torch.float64)])
            owner = torch.cat([owner, torch.full((n,), FIXED)])
        return Points(values=values, x=x, count=d, cluster=cluster, owner=owner, weight=raw)


@dataclass(frozen=True, kw_only=True)
class LengthWeighted(HeldAtX):
    """Stated: delta at x_j times Leb on the other sides of [0, 1]^d, at scrambled Sobol points."""

    name: ClassVar[str] = "length_weighted"

    samples: int = 1024

    def points(self, x: Tensor, generator: torch.Generator) -> Points:
        """Return d * samples points."""
        seed = int(torch.randint(0, 2**31, (), generator=generator))
        draws = torch.quasirandom.SobolEngine(len(x), scramble=True, seed=seed).draw(self.samples, dtype=torch.float64)
        return self.held_points(x, draws, torch.arange(self.samples))


@dataclass(frozen=True, kw_only=True)
class AxisDirac(MeasureFamily):
    """Stated: delta at x_j e_j. Derived: with a baseline b and centred, f(b + (x_j - b_j) e_j) - f(b)."""

    name: ClassVar[str] = "axis_dirac"

    baseline: Tensor | None = None
    centre: bool = False

    def points(self, x: Tensor, generator: torch.Generator) -> Points:  # noqa: ARG002
        """Return d points, and the baseline if centred."""
        b = start_of(self.baseline, x)
        return _on_axes(x, b + torch.diag(x - b), torch.ones(len(x)), base=b if self.centre else None)


@dataclass(frozen=True, kw_only=True)
class AxisLebesgue(MeasureFamily):
    """Stated: 2 Leb on the j-th axis of the cube, so that f(y) = w.y gets w. Derived: centred, minus 2 f(0)."""

    name: ClassVar[str] = "axis_lebesgue"
    quadrature: ClassVar[bool] = True

    nodes: int = 64
    centre: bool = False

    def points(self, x: Tensor, generator: torch.Generator) -> Points:  # noqa: ARG002
        """Return d * nodes Gauss-Legendre points, and 0 if centred."""
        t, w = _gauss_legendre(self.nodes)
        steps = torch.eye(len(x), dtype=x.dtype).unsqueeze(1) * t.view(-1, 1)  # (d, nodes, d)
        base = torch.zeros_like(x) if self.centre else None
        return _on_axes(x, steps.flatten(0, 1), (2 * w).repeat(len(x)), base=base, mass=2)


@dataclass(frozen=True, kw_only=True)
class SmoothGradStein(MeasureFamily):
    """Derived: SmoothGrad without gradients (Stein's identity): density z_j / sigma at x + sigma z, on R^d."""

    name: ClassVar[str] = "smoothgrad"

    sigma: float = 0.1
    samples: int = 1000

    def points(self, x: Tensor, generator: torch.Generator) -> Points:
        """Return antithetic pairs, x + sigma z and x - sigma z."""
        pairs = max(1, self.samples // 2)
        z = torch.randn(pairs, len(x), generator=generator, dtype=torch.float64)
        values = x + self.sigma * torch.stack([z, -z], 1).flatten(0, 1)
        return Points(values=values, x=x, count=len(x), cluster=torch.arange(pairs).repeat_interleave(2))

    def weights(self, points: Points) -> Tensor:
        """Return (Y - x) / sigma^2 / n."""
        return (points.values - points.x) / self.sigma**2 / len(points)


@dataclass(frozen=True, kw_only=True)
class FiniteDifferenceIG(MeasureFamily):
    """Derived: Integrated Gradients by central differences of step h: +-(x_j - b_j) / (2h) on two shifted lines."""

    name: ClassVar[str] = "fd_ig"
    quadrature: ClassVar[bool] = True

    baseline: Tensor | None = None
    h: float = 1e-3
    steps: int = 64

    def points(self, x: Tensor, generator: torch.Generator) -> Points:  # noqa: ARG002
        """Return 2 d * steps points."""
        b = start_of(self.baseline, x)
        t, w = _gauss_legendre(self.steps)
        line = b + t.unsqueeze(1) * (x - b)  # (steps, d)
        shift = self.h * torch.eye(len(x), dtype=x.dtype).unsqueeze(1)  # (d, 1, d)
        slope = (x - b).unsqueeze(1) / (2 * self.h) * w  # (d, steps)
        values = torch.cat([line + shift, line - shift]).flatten(0, 1)
        owner = torch.arange(len(x)).repeat_interleave(self.steps).repeat(2)
        weight = torch.cat([slope, -slope]).flatten()
        cluster = torch.full((len(values),), FIXED)
        return Points(values=values, x=x, count=len(x), cluster=cluster, owner=owner, weight=weight)


_UNBOUNDED = "it is not bounded by the sup norm of the model, since gradients are not"
_NONLINEAR = "it is not linear in the model's output function"
# Derived: f = eps sin((y_1 - y_2) / eps^2) is at most eps, but its gradient is 1 / eps.
NOT_MEASURES = {
    "gradient": _UNBOUNDED,
    "gradient_x_input": _UNBOUNDED,
    "integrated_gradients": f"with two or more features {_UNBOUNDED}",
    "ig": f"with two or more features {_UNBOUNDED}",
    "deeplift": _NONLINEAR,
    "lrp": _NONLINEAR,
    "gradcam": _NONLINEAR,
    "lime_lasso": _NONLINEAR,
    "binary_membership": "splitting a box adds up to more than the box",
}


@dataclass(frozen=True, kw_only=True)
class NotAMeasure(MeasureFamily):
    """A method that has no measure, one of `NOT_MEASURES`; it refuses with the reason."""

    method: str

    def points(self, x: Tensor, generator: torch.Generator) -> Points:
        """Return the two points of Integrated Gradients with one feature; refuse everything else."""
        if self.method in ("integrated_gradients", "ig") and len(x) == 1:
            return AxisDirac(centre=True).points(x, generator)
        reason = NOT_MEASURES[self.method]
        raise ExplainerRefused(
            f"{self.method} is not a measure: {reason}",
            hint="use fd_ig or smoothgrad, which are measures" if "sup norm" in reason else "",
        )


def start_of(baseline: Tensor | None, x: Tensor) -> Tensor:
    """Return the baseline, or 0."""
    return torch.zeros_like(x) if baseline is None else baseline.to(x)


def _gauss_legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Return (nodes,) points and weights for the mean over [0, 1]."""
    t, w = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((t + 1) / 2), torch.from_numpy(w / 2)


def _on_axes(x: Tensor, values: Tensor, weight: Tensor, *, base: Tensor | None = None, mass: float = 1) -> Points:
    """Return points in d equal blocks, one per feature, and `base` with weight -mass for all features."""
    owner = torch.arange(len(x)).repeat_interleave(len(values) // len(x))
    if base is not None:
        values = torch.cat([values, base.unsqueeze(0)])
        weight = torch.cat([weight, weight.new_tensor([-mass])])
        owner = torch.cat([owner, torch.tensor([FIXED])])
    cluster = torch.full((len(values),), FIXED)
    return Points(values=values, x=x, count=len(x), cluster=cluster, owner=owner, weight=weight.double())
