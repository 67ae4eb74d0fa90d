"""Families that hold x_j and draw the other features from the law of data: the paper's Table 1 (stated)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from xaihub_first_principles.families import HeldAtX
from xaihub_first_principles.measures import FIXED, Points


@dataclass(frozen=True, kw_only=True)
class PartialDependence(HeldAtX):
    """delta at x_j times the law of X_{-j}, here that of the rows of `background`: finite support, so exact."""

    name: ClassVar[str] = "pdp"

    background: Tensor

    def points(self, x: Tensor, generator: torch.Generator) -> Points:  # noqa: ARG002
        """Return d n points."""
        return self.held_points(x, self.background, torch.full((len(self.background),), FIXED))


@dataclass(frozen=True, kw_only=True)
class Independent(HeldAtX):
    """delta at x_j times the product of the marginals: columns of `background` are drawn separately."""

    name: ClassVar[str] = "independent"

    background: Tensor
    samples: int = 1000

    def points(self, x: Tensor, generator: torch.Generator) -> Points:
        """Return d * samples points."""
        n, d = self.background.shape
        rows = torch.randint(0, n, (self.samples, d), generator=generator)
        return self.held_points(x, self.background.gather(0, rows), torch.arange(self.samples))


@dataclass(frozen=True, kw_only=True)
class Conditional(HeldAtX):
    """delta at x_j times the law of X_{-j} given x_j, by Gaussian kernel weights on the rows of `background`.

    The estimator is our choice; `bandwidth` is in standard deviations of each column.
    """

    name: ClassVar[str] = "conditional"
    quadrature: ClassVar[bool] = True

    background: Tensor
    bandwidth: float = 0.2

    def points(self, x: Tensor, generator: torch.Generator) -> Points:  # noqa: ARG002
        """Return d n points."""
        width = self.bandwidth * self.background.std(0).clamp(min=1e-12)
        distance = (self.background - x) / width  # (n, d)
        raw = torch.softmax(-distance.square().T / 2, dim=1)  # (d, n); finite even if all rows are far away
        return self.held_points(x, self.background, torch.full((len(self.background),), FIXED), raw)


@dataclass(frozen=True, kw_only=True)
class GaussianConditional(HeldAtX):
    """The conditional family for X ~ N(mean, covariance), by draws from the conditional law."""

    name: ClassVar[str] = "gaussian_conditional"

    mean: Tensor
    covariance: Tensor
    samples: int = 1000

    def points(self, x: Tensor, generator: torch.Generator) -> Points:
        """Return d * samples points."""
        root = MultivariateNormal(self.mean, self.covariance).scale_tril
        draws = self.mean + torch.randn(self.samples, len(x), generator=generator, dtype=torch.float64) @ root.T
        # Moving a draw along S_{:j} until its j-th entry is x_j gives a draw from the conditional law (kriging).
        slope = self.covariance / self.covariance.diagonal().unsqueeze(1)  # (j, d)
        moved = draws + (x - draws).T.unsqueeze(2) * slope.unsqueeze(1)  # (j, n, d)
        return self.held_points(x, moved, torch.arange(self.samples), law=draws)
