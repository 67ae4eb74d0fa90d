"""Closed forms for one hidden ReLU layer: f(y) = sum_k a_k relu(u_k.y + v_k) + c.

Derived: linearity in f reduces everything to one neuron. The tests check each formula against Monte Carlo.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import factorial

import torch
from torch import Tensor

from xaihub import ExplainerRefused


@dataclass(frozen=True, kw_only=True)
class OneHidden:
    """One hidden layer: (H, d) `u`, (H,) `v`, (H,) `a` and the constant `c`. All methods return (d,) float64."""

    u: Tensor
    v: Tensor
    a: Tensor
    c: float = 0.0

    def pdp_gaussian(self, x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        """Return E f(x_j, X_{-j}) for X ~ N(mean, covariance): partial dependence."""
        shift = self.u * mean
        m = self.v.unsqueeze(1) + self.u * x + shift.sum(1, keepdim=True) - shift
        across = self.u @ covariance  # (H, d)
        whole = (across * self.u).sum(1, keepdim=True)
        return self._rectified(m, whole - 2 * self.u * across + self.u.square() * covariance.diagonal())

    def conditional_gaussian(self, x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        """Return E[f(X) | X_j = x_j] for X ~ N(mean, covariance)."""
        across = self.u @ covariance  # u.S_{:j}
        m = self.v.unsqueeze(1) + (self.u @ mean).unsqueeze(1) + across * (x - mean) / covariance.diagonal()
        whole = (across * self.u).sum(1, keepdim=True)
        return self._rectified(m, whole - across.square() / covariance.diagonal())

    def length_weighted(self, x: Tensor, *, tolerance: float = 1e-9) -> Tensor:
        """Return E f(x_j, U) with the other features uniform on [0, 1].

        Raises:
            ExplainerRefused: Cancellation would cost more than `tolerance`, or there are too many features.
        """
        d, neurons = len(x), range(len(self.a))
        rows = [torch.stack([self._uniform(k, j, x, tolerance) for k in neurons]) for j in range(d)]
        return torch.stack(rows) @ self.a + self.c

    def _uniform(self, k: int, j: int, x: Tensor, tolerance: float) -> Tensor:
        others = [i for i in range(len(x)) if i != j and float(self.u[k, i]) != 0]
        u, start, n = self.u[k, others], self.v[k] + self.u[k, j] * x[j], len(others)
        scale = factorial(n + 1) * u.prod()
        error = 2.2e-16 * 2**n * (start.abs() + u.abs().sum()) ** (n + 1) / scale.abs()
        if n > 12 or float(error) > tolerance:
            raise ExplainerRefused(
                f"the closed form over {n} uniform features would be wrong by up to {float(error):.1g}",
                hint="omit exact to use sampled points",
            )
        corners = torch.tensor(list(product((0, 1), repeat=n)), dtype=torch.float64).view(2**n, n)
        signs = (-1.0) ** (n - corners.sum(1))
        return (signs * (start + corners @ u).relu() ** (n + 1)).sum() / scale

    def _rectified(self, m: Tensor, variance: Tensor) -> Tensor:
        """Return the sum over neurons of a_k E relu(N(m, variance)), plus c; both are (H, d)."""
        s = variance.clamp(min=0).sqrt()
        normal = torch.distributions.Normal(torch.zeros((), dtype=m.dtype), 1.0)
        z = m / torch.where(s > 0, s, 1.0)
        spread = m * normal.cdf(z) + s * normal.log_prob(z).exp()
        return self.a @ torch.where(s > 1e-12 * (1 + m.abs()), spread, m.relu()) + self.c
