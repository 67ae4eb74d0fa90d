"""Families on vectors: the three of the paper's Table 1, its notebook's two, and derivatives that are measures.

`delta` is a point mass and `Leb` the uniform law. Marks: S stated by the authors, D derived here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from xaihub import ExplainerRefused, ParameterError
from xaihub_first_principles.measures import FIXED, MeasureFamily, Points, owned

__all__ = [
    "AxisDirac",
    "AxisLebesgue",
    "Conditional",
    "FiniteDifferenceIG",
    "GaussianConditional",
    "Independent",
    "LengthWeighted",
    "NotAMeasure",
    "PartialDependence",
    "SmoothGradStein",
]


class _HeldAtX(MeasureFamily):
    """Coordinate j is held at x_j and the others follow a law; each row of `others` serves every feature once.

    D: centred, the mean of f over the law of X is subtracted, so that a feature that is not used gets 0 (partial
    dependence and independent: exactly, since the same draws are used).
    """

    needs = "the law of the other features"
    centre = False

    def _points(
        self, x: Tensor, others: Tensor, cluster: Tensor, weight: Tensor | None = None, law: Tensor | None = None
    ) -> Points:
        """Return the points for (d, n, d) or (n, d) draws of the others, (n,) clusters, and (d, n) raw weights.

        `law` is (n, d) draws of X itself, if they differ from the others.
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

    def weights(self, points: Points) -> Tensor:
        """Return weights that sum to 1 for each feature, minus the law of X if centred."""
        assert points.owner is not None  # noqa: S101 - set by _points
        assert points.weight is not None  # noqa: S101
        return owned(points.owner, points.weight, points.count, normalise=True)


class PartialDependence(_HeldAtX):
    """S: delta at x_j times the law of X_{-j}, here that of the rows of `background`: finite support, so exact."""

    name = "pdp"

    def __init__(self, background: Tensor, *, centre: bool = False) -> None:
        self.background = background.double()
        self.centre = centre

    def points(self, x: Tensor, generator: torch.Generator) -> Points:  # noqa: ARG002
        """Return d n points."""
        return self._points(x, self.background, torch.full((len(self.background),), FIXED))


class Independent(_HeldAtX):
    """S: delta at x_j times the product of the marginals: columns of `background` are drawn separately."""

    name = "independent"

    def __init__(self, background: Tensor, *, samples: int = 1000, centre: bool = False) -> None:
        self.background = background.double()
        self.samples = samples
        self.centre = centre

    def points(self, x: Tensor, generator: torch.Generator) -> Points:
        """Return d * samples points."""
        n, d = self.background.shape
        rows = torch.randint(0, n, (self.samples, d), generator=generator)
        return self._points(x, self.background.gather(0, rows), torch.arange(self.samples))


class Conditional(_HeldAtX):
    """S: delta at x_j times the law of X_{-j} given x_j, by Gaussian kernel weights on the rows of `background`.

    The estimator is chosen here; `bandwidth` is in standard deviations of each column.
    """

    name = "conditional"
    quadrature = True

    def __init__(self, background: Tensor, *, bandwidth: float = 0.2, centre: bool = False) -> None:
        self.background = background.double()
        self.bandwidth = bandwidth
        self.centre = centre

    def points(self, x: Tensor, generator: torch.Generator) -> Points:  # noqa: ARG002
        """Return d n points."""
        width = self.bandwidth * self.background.std(0).clamp(min=1e-12)
        distance = (self.background - x) / width  # (n, d)
        raw = torch.softmax(-distance.square().T / 2, dim=1)  # (d, n); the nearest row counts even if all are far
        return self._points(x, self.background, torch.full((len(self.background),), FIXED), raw)


class GaussianConditional(_HeldAtX):
    """S: the conditional family where X is N(mean, covariance), by draws of the conditional law."""

    name = "gaussian_conditional"

    def __init__(self, mean: Tensor, covariance: Tensor, *, samples: int = 1000, centre: bool = False) -> None:
        self.mean = mean.double()
        self.covariance = covariance.double()
        self.samples = samples
        self.centre = centre

    def points(self, x: Tensor, generator: torch.Generator) -> Points:
        """Return d * samples points."""
        d = len(x)
        root = MultivariateNormal(self.mean, self.covariance).scale_tril
        draws = self.mean + torch.randn(self.samples, d, generator=generator, dtype=torch.float64) @ root.T
        # Moving a draw along S_{:j} until its j-th entry is x_j gives a draw of the conditional law (kriging).
        slope = self.covariance / self.covariance.diagonal().unsqueeze(1)  # (j, d)
        moved = draws + (x - draws).T.unsqueeze(2) * slope.unsqueeze(1)  # (j, n, d)
        return self._points(x, moved, torch.arange(self.samples), law=draws)


class LengthWeighted(_HeldAtX):
    """S: delta at x_j times Leb on the other sides of [0, 1]^d, at scrambled Sobol points."""

    name = "length_weighted"

    def __init__(self, *, samples: int = 1024, centre: bool = False) -> None:
        self.samples = samples
        self.centre = centre

    def points(self, x: Tensor, generator: torch.Generator) -> Points:
        """Return d * samples points."""
        seed = int(torch.randint(0, 2**31, (), generator=generator))
        draws = torch.quasirandom.SobolEngine(len(x), scramble=True, seed=seed).draw(self.samples, dtype=torch.float64)
        return self._points(x, draws, torch.arange(self.samples))


class AxisDirac(MeasureFamily):
    """S: delta at x_j e_j. D: from a baseline b, and centred, f(b + (x_j - b_j) e_j) - f(b)."""

    name = "axis_dirac"

    def __init__(self, *, baseline: Tensor | None = None, centre: bool = False) -> None:
        self.baseline = baseline
        self.centre = centre

    def points(self, x: Tensor, generator: torch.Generator) -> Points:  # noqa: ARG002
        """Return d points, and the baseline if centred."""
        b = torch.zeros_like(x) if self.baseline is None else self.baseline.to(x)
        return _fixed(x, b + torch.diag(x - b), torch.ones(len(x)), base=b if self.centre else None)


class AxisLebesgue(MeasureFamily):
    """S: 2 Leb on the j-th axis of the cube and 0 elsewhere, so that f(y) = w.y gets w; Gauss-Legendre nodes.

    D: centred it subtracts 2 f(0). From a baseline `b` to `end` it runs along b + t (end_j - b_j) e_j instead.
    """

    name = "axis_lebesgue"
    quadrature = True

    def __init__(
        self, *, nodes: int = 64, centre: bool = False, baseline: Tensor | None = None, end: Tensor | None = None
    ) -> None:
        self.nodes = nodes
        self.centre = centre
        self.baseline = baseline
        self.end = end

    def points(self, x: Tensor, generator: torch.Generator) -> Points:  # noqa: ARG002
        """Return d * nodes points, and the baseline if centred."""
        b = torch.zeros_like(x) if self.baseline is None else self.baseline.to(x)
        end = torch.ones_like(x) if self.end is None else self.end.to(x)
        t, w = gauss_legendre(self.nodes)
        steps = torch.diag(end - b).unsqueeze(1) * t.view(-1, 1)  # (d, nodes, d)
        return _fixed(x, (b + steps).flatten(0, 1), (2 * w).repeat(len(x)), base=b if self.centre else None, mass=2)


class SmoothGradStein(MeasureFamily):
    """D: SmoothGrad without a gradient (Stein's identity): density z_j / sigma at x + sigma z; lives on R^d."""

    name = "smoothgrad"
    needs = "f on all of R^d"

    def __init__(self, *, sigma: float = 0.1, samples: int = 1000) -> None:
        self.sigma = sigma
        self.samples = samples

    def points(self, x: Tensor, generator: torch.Generator) -> Points:
        """Return antithetic pairs, x + sigma z and x - sigma z."""
        pairs = max(1, self.samples // 2)
        z = torch.randn(pairs, len(x), generator=generator, dtype=torch.float64)
        values = x + self.sigma * torch.stack([z, -z], 1).flatten(0, 1)
        return Points(values=values, x=x, count=len(x), cluster=torch.arange(pairs).repeat_interleave(2))

    def weights(self, points: Points) -> Tensor:
        """Return (Y - x) / sigma^2 / n."""
        return (points.values - points.x) / self.sigma**2 / len(points)


class FiniteDifferenceIG(MeasureFamily):
    """D: Integrated Gradients with central differences of step h: +-(x_j - b_j) / (2h) on two shifted lines."""

    name = "fd_ig"
    quadrature = True

    def __init__(self, *, baseline: Tensor | None = None, h: float = 1e-3, steps: int = 64) -> None:
        self.baseline = baseline
        self.h = h
        self.steps = steps

    def points(self, x: Tensor, generator: torch.Generator) -> Points:  # noqa: ARG002
        """Return 2 d * steps points."""
        b = torch.zeros_like(x) if self.baseline is None else self.baseline.to(x)
        t, w = gauss_legendre(self.steps)
        line = b + t.unsqueeze(1) * (x - b)  # (steps, d)
        shift = self.h * torch.eye(len(x), dtype=x.dtype).unsqueeze(1)  # (d, 1, d)
        slope = (x - b).unsqueeze(1) / (2 * self.h) * w  # (d, steps)
        values = torch.cat([line + shift, line - shift]).flatten(0, 1)
        owner = torch.arange(len(x)).repeat_interleave(self.steps).repeat(2)
        weight = torch.cat([slope, -slope]).flatten()
        cluster = torch.full((len(values),), FIXED)
        return Points(values=values, x=x, count=len(x), cluster=cluster, owner=owner, weight=weight)


class NotAMeasure(MeasureFamily):
    """A method that has no measure; it exists to say why.

    D: f = eps sin((y_1 - y_2) / eps^2) is at most eps, but its gradient is 1 / eps, so that gradients, and
    Integrated Gradients with two or more features, are not bounded by the sup norm of f as any measure's integral is.
    """

    def __init__(self, name: str, **_options: Any) -> None:
        if name not in _REASONS:
            raise ParameterError(f"nothing is known of a measure called {name!r}")
        self.method = name

    def points(self, x: Tensor, generator: torch.Generator) -> Points:
        """Return the two points of Integrated Gradients with one feature; refuse everything else."""
        if self.method in ("integrated_gradients", "ig") and len(x) == 1:
            return AxisDirac(centre=True).points(x, generator)
        raise ExplainerRefused(
            f"{self.method} is not a measure: {_REASONS[self.method]}",
            hint="use fd_ig or smoothgrad, which are" if "sup norm" in _REASONS[self.method] else "",
        )


_UNBOUNDED = "it is not bounded by the sup norm of the model, since gradients are not"
_NONLINEAR = "it is not linear in the model's output function"
_REASONS = {
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
NOT_MEASURES = tuple(_REASONS)


def gauss_legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Return (nodes,) points and weights for the mean over [0, 1]."""
    import numpy as np

    t, w = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((t + 1) / 2), torch.from_numpy(w / 2)


def _fixed(x: Tensor, values: Tensor, weight: Tensor, *, base: Tensor | None = None, mass: float = 1) -> Points:
    """Return points in d equal blocks, one a feature, with a last one of weight -mass at `base` for all."""
    owner = torch.arange(len(x)).repeat_interleave(len(values) // len(x))
    if base is not None:
        values = torch.cat([values, base.unsqueeze(0)])
        weight = torch.cat([weight, weight.new_tensor([-mass])])
        owner = torch.cat([owner, torch.tensor([FIXED])])
    cluster = torch.full((len(values),), FIXED)
    return Points(values=values, x=x, count=len(x), cluster=cluster, owner=owner, weight=weight.double())
