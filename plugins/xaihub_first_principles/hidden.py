"""Networks with one hidden ReLU layer, exactly: f(y) = sum_k a_k relu(u_k.y + v_k) + c.

Linearity in f reduces everything to one neuron. D throughout; each row is checked against Monte Carlo in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import factorial

import torch
from torch import Tensor

from xaihub import ExplainerRefused

__all__ = ["OneHidden"]


@dataclass(frozen=True, kw_only=True)
class OneHidden:
    """One hidden layer: (H, d) `u`, (H,) `v`, (H,) `a` and the constant `c`. All methods return (d,) float64."""

    u: Tensor
    v: Tensor
    a: Tensor
    c: float = 0.0

    @classmethod
    def of(cls, module: torch.nn.Module, output: int = 0) -> OneHidden:
        """Read `Linear, ReLU, Linear` out of a sequence.

        Raises:
            ExplainerRefused: The module is not that.
        """
        parts = [part for part in module.modules() if not list(part.children())]
        if [type(part).__name__ for part in parts] != ["Linear", "ReLU", "Linear"]:
            kinds = ", ".join(type(part).__name__ for part in parts)
            raise ExplainerRefused(f"the formulas need Linear, ReLU, Linear, and this network is {kinds}")
        first, last = parts[0], parts[2]

        def bias(part: torch.nn.Module) -> Tensor:
            return torch.zeros(len(part.weight)) if part.bias is None else part.bias.detach()  # type: ignore

        weight: Tensor = last.weight  # type: ignore[assignment]
        u: Tensor = first.weight  # type: ignore[assignment]
        return cls(
            u=u.detach().double(),
            v=bias(first).detach().double(),
            a=weight[output].detach().double(),
            c=float(bias(last)[output]),
        )

    def __call__(self, y: Tensor) -> Tensor:
        """Return the (n,) outputs at (n, d) points."""
        return (y.double() @ self.u.T + self.v).relu() @ self.a + self.c

    def axis_dirac(self, x: Tensor) -> Tensor:
        """Return f(x_j e_j)."""
        return self.a @ (self.u * x + self.v.unsqueeze(1)).relu() + self.c

    def axis_lebesgue(self) -> Tensor:
        """Return 2 int_0^1 f(t e_j) dt."""
        v = self.v.unsqueeze(1)
        top = (self.u + v).relu().square() - v.relu().square()
        # Near u = 0 the quotient cancels; its expansion around the middle of the segment does not.
        small = self.u.abs() < 1e-9 * (1 + v.abs())
        parts = torch.where(small, 2 * (v + self.u / 2).relu(), top / torch.where(small, 1.0, self.u))
        return self.a @ parts + 2 * self.c

    def independent_gaussian(self, x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        """Return E f(x_j, X_{-j}) for independent X_i ~ N(mean_i, deviation_i^2); O(H d) in all."""
        shift, spread = self.u * mean, (self.u * deviation).square()
        m = self.v.unsqueeze(1) + self.u * x + shift.sum(1, keepdim=True) - shift
        return self._rectified(m, spread.sum(1, keepdim=True) - spread)

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
        d = len(x)
        return torch.stack([sum((self.a[k] * self._uniform(k, j, x, tolerance) for k in range(len(self.a))),
                                torch.zeros((), dtype=torch.float64)) for j in range(d)]) + self.c  # fmt: skip

    def _uniform(self, k: int, j: int, x: Tensor, tolerance: float) -> Tensor:
        others = [i for i in range(len(x)) if i != j and float(self.u[k, i]) != 0]
        u, start, n = self.u[k, others], self.v[k] + self.u[k, j] * x[j], len(others)
        scale = factorial(n + 1) * u.prod()
        error = 2.2e-16 * 2**n * (start.abs() + u.abs().sum()) ** (n + 1) / scale.abs()
        if n > 12 or float(error) > tolerance:
            raise ExplainerRefused(
                f"the closed form over {n} uniform features would be wrong by up to {float(error):.1g}",
                hint="use length_weighted points instead",
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
