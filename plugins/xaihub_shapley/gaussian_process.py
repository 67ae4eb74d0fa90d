"""A Gaussian process prior over games: its posterior Shapley values, and the most informative coalitions to evaluate.

With signs z = 2 s - 1, the odd part of a game (half the difference of a coalition and its complement) is a sum of
products of signs over odd sets of players. The prior has two independent parts:

- Each odd set S has a weight of variance prod(decay_i, i in S): covariance sinh(z B z') / sinh(1 B 1), with
  B = atanh(decay).
- Each player has a weight that varies smoothly with the coalition's size: sum of z_i C_ij z'_j, times a kernel of the
  two sizes. C correlates players, for instance neighbours.

Shapley values are linear in the game, so their mean and variance have closed forms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xaihub.masking import Segments

NODES = 32  # of Gauss-Legendre quadrature: exact up to 63 players, and to rounding beyond
JITTER = 1e-8  # of noise, which keeps the Cholesky factorisation stable
PAIRS = 256  # maximum number of pairs for the likelihood, which then takes a millisecond per choice
SWEEPS = 3  # over the kinds of choices
RASTER = 32  # points per side, on which the players' positions are compared


class Choice(NamedTuple):
    """What the marginal likelihood chooses; the defaults apply when there are too few pairs."""

    decay: float = 0.25  # factor on the variance of a product with each further member
    unequal: float = 0.0  # power of the players' own weights: players with large weights also interact more
    alone: float = 5.0  # variance of single players relative to that of all products
    noise: float = 1e-2  # variance that no smooth game explains
    alike: float = 0.3  # correlation of players at one position: parts of an object support the same class
    length: float = inf  # range of that correlation, in widths of a player; unlimited if infinite
    reach: float = 0.35  # range of sizes over which a player's weight stays similar, as a fraction of all players


CHOICES: dict[str, tuple[float, ...]] = {
    "decay": (0.03, 0.1, 0.25, 0.5),
    "unequal": (0.0, 0.5),
    "alone": (1.0, 10.0, 100.0),
    "noise": (1e-4, 1e-2),
    "alike": (0.0, 0.5, 0.9),
    "length": (0.7, 1.0, 1.5, inf),
    "reach": (inf, 1.0, 0.5, 0.25),
}


def shapes(features: Segments) -> Tensor:
    """Return (d, 32, 32) counts of each player's pixels around each point of a raster."""
    rows, columns = (torch.arange(side) * RASTER // side for side in features.size)
    point = rows.unsqueeze(1) * RASTER + columns + features.labels.cpu() * RASTER**2
    return torch.bincount(point.flatten(), minlength=features.count * RASTER**2).view(-1, RASTER, RASTER)


def correlations(shapes: Tensor | None, players: int) -> dict[float, Tensor]:
    """Return, per length, the (d, d) correlations of players by position, 1 on the diagonal.

    `shapes` holds how much of each point of a raster belongs to each player: (d, h, w), None without positions.
    """
    alike = {inf: torch.ones(players, players, dtype=torch.float64)}
    if shapes is None:
        return alike
    parts = shapes.double() / shapes.double().sum((1, 2), keepdim=True)
    width = (shapes.shape[1] * shapes.shape[2] / players) ** 0.5
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in shapes.shape[1:])
    for length in CHOICES["length"]:
        if length < inf:
            down, across = (
                (-(at.unsqueeze(1) - at).square() / (2 * (length * width) ** 2)).exp() for at in (rows, columns)
            )
            mean = (down @ parts @ across).flatten(1) @ parts.flatten(1).T  # of exp(-d^2 / 2 l^2) over their points
            alike[length] = mean / mean.diagonal().outer(mean.diagonal()).sqrt()
    return alike


@dataclass(frozen=True)
class Prior:
    """A distribution over the odd parts of games of d players, up to a scale."""

    decay: Tensor  # (d,) in (0, 1)
    alone: Tensor  # (d, d) covariance of the players' own weights
    reach: float  # range of sizes over which these stay similar
    noise: float  # variance of the noise in a score; the grand coalition has none

    def between(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the (n, m) covariances of the odd part at (n, d) and (m, d) signs."""
        slopes = self.decay.atanh()
        most, inner = slopes.sum(), (left * slopes) @ right.T
        products = ((inner - most).exp() - (-inner - most).exp()) / (1 - (-2 * most).exp())
        return products + (left @ self.alone) @ right.T * self._sizes[_size(left)][:, _size(right)]

    def variance(self, signs: Tensor) -> Tensor:
        """Return the (n,) variances of the odd part at (n, d) signs, including noise."""
        size = _size(signs)
        noise = self.noise * ((size > 0) & (size < signs.shape[1])).double() + JITTER * (1 + self.alone.trace())
        return 1 + ((signs @ self.alone) * signs).sum(1) * self._sizes.diagonal()[size] + noise

    def towards(self, signs: Tensor) -> Tensor:
        """Return the (n, d) covariances of the players' Shapley values with the odd part at each row.

        A product over S contributes 2 / |S| to each member; a sum with 1 / |S| is an integral of polynomials.
        """
        nodes, weights = np.polynomial.legendre.leggauss(min(NODES, signs.shape[1] // 2 + 1))
        total = torch.zeros_like(signs)
        parts = signs * self.decay
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            plus, minus = 1 + node * parts, 1 - node * parts
            total += weight * (plus.prod(1, keepdim=True) / plus + minus.prod(1, keepdim=True) / minus)
        own, others, size = signs @ self.alone, signs.shape[1] - 1, _size(signs)
        inside, whole = self._inside[size].unsqueeze(1), 2 * self._sizes[size, -1:]
        # A player's term contributes its mean over sizes to the player, and splits the rest among the other players.
        return parts * total / self._norm + inside * own + (whole - inside) * (own.sum(1, keepdim=True) - own) / others

    @cached_property
    def before(self) -> Tensor:
        """(d,) prior variances of the Shapley values."""
        nodes, weights = np.polynomial.legendre.leggauss(len(self.decay) // 2 + 32)
        total = torch.zeros_like(self.decay)
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            # 1 / |S|^2 is an integral against -log r; r = node^2 smooths the logarithm at 0.
            plus, minus = 1 + node**2 * self.decay, 1 - node**2 * self.decay
            total += -4 * node * np.log(node) * weight * (plus.prod() / plus + minus.prod() / minus)
        players, one = len(self.decay), torch.eye(len(self.decay), dtype=torch.float64)
        rest = (1 - one) / (players - 1)
        both = self._inside[:-1].mean() + self._inside[1:].mean()
        varied = (
            ((one - rest) @ self.alone @ (one - rest).T).diagonal() * both
            + ((one - rest) @ self.alone @ rest.T).diagonal() * 4 * self._inside[-1]
            + (rest @ self.alone @ rest.T).diagonal() * 4 * self._sizes[-1, -1]
        )
        return 2 * self.decay * total / self._norm + varied

    @cached_property
    def _norm(self) -> Tensor:
        return ((1 + self.decay).prod() - (1 - self.decay).prod()) / 2

    @cached_property
    def _sizes(self) -> Tensor:
        """(d + 1, d + 1) covariances of a player's weight at two sizes, symmetric under complements."""
        share = torch.arange(len(self.decay) + 1, dtype=torch.float64) / len(self.decay)
        near = (-(share.unsqueeze(1) - share).square() / (2 * self.reach**2)).exp()
        return (near + near.flip(1)) / 2

    @cached_property
    def _inside(self) -> Tensor:
        """(d + 1,) covariances of a player's weight at a size with the Shapley value of its own term."""
        return self._sizes[:, :-1].mean(1) + self._sizes[:, 1:].mean(1)


class Posterior:
    """The posterior given `odd`: half the differences of coalitions with (n, d) signs and their complements."""

    def __init__(self, prior: Prior, signs: Tensor, odd: Tensor) -> None:
        """Solve the regression in O(n^3)."""
        self.prior, self.signs, self.root = prior, signs, torch.linalg.cholesky(_covariance(prior, signs))
        self.weights = torch.cholesky_solve(odd.unsqueeze(1), self.root).squeeze(1)
        self.level = float(self.weights @ odd) / len(odd)

    def mean(self, signs: Tensor) -> Tensor:
        """Return the (m,) expected odd parts at (m, d) signs."""
        return self.prior.between(signs, self.signs) @ self.weights

    @cached_property
    def _towards(self) -> Tensor:
        return self.prior.towards(self.signs)

    @cached_property
    def values(self) -> Tensor:
        """(d,) Shapley values of the mean."""
        return self._towards.T @ self.weights

    @cached_property
    def stderr(self) -> Tensor:
        """(d,) standard deviations of the Shapley values."""
        explained = (self._towards * torch.cholesky_solve(self._towards, self.root)).sum(0)
        return (self.level * (self.prior.before - explained).clamp(min=0)).sqrt()


def choose_prior(
    signs: Tensor, odd: Tensor, alike: Mapping[float, Tensor], generator: torch.Generator, start: Choice
) -> tuple[Prior, Choice]:
    """Maximise the marginal likelihood by coordinate ascent from a choice, on at most `PAIRS` of the pairs."""
    players = signs.shape[1]
    odd = odd / odd.square().mean().sqrt().clamp(min=1e-30)
    # An additive fit, made unique by a small ridge, gives each player's own weight.
    ridge = torch.cat([signs, 0.1 * torch.eye(players, dtype=torch.float64)])
    own = torch.linalg.lstsq(ridge, torch.cat([odd, odd.new_zeros(players)]).unsqueeze(1)).solution.abs().squeeze(1)
    some = torch.randperm(len(signs), generator=generator)[:PAIRS]
    signs, odd = signs[some], odd[some]
    found, best = start, _likelihood(make_prior(start, own, alike), signs, odd)
    for _ in range(SWEEPS):
        before = found
        for kind, values in CHOICES.items():
            for value in values:
                other = found._replace(**{kind: value})
                if other == found or other.length not in alike:
                    continue
                likelihood = _likelihood(make_prior(other, own, alike), signs, odd)
                if likelihood > best:
                    found, best = other, likelihood
        if found == before:
            break
    return make_prior(found, own, alike), found


def make_prior(choice: Choice, own: Tensor, alike: Mapping[float, Tensor]) -> Prior:
    """Return the prior of a choice for players with (d,) `own` weights."""
    own = (own / own.mean().clamp(min=1e-30)).pow(choice.unequal).clamp(0.2, 3)
    own = own / own.mean()
    share = own / own.norm()
    like = choice.alike * alike[choice.length] + (1 - choice.alike) * torch.eye(len(own), dtype=torch.float64)
    return Prior(
        (choice.decay * own).clamp(max=0.9), choice.alone * share.outer(share) * like, choice.reach, choice.noise
    )


def most_informative(prior: Prior, known: Tensor, pool: Tensor, count: int) -> Tensor:
    """Return up to `count` rows of (n, d) signs that, picked greedily, most reduce the values' summed variance.

    Neither the (m, d) signs of known coalitions nor their complements are returned.
    """
    root = torch.linalg.cholesky(_covariance(prior, known))
    found = torch.linalg.solve_triangular(root, prior.between(known, pool), upper=False)
    towards = prior.towards(pool) - found.T @ torch.linalg.solve_triangular(root, prior.towards(known), upper=False)
    variance = prior.variance(pool) - found.square().sum(0)
    parts = torch.cat([found, found.new_zeros(count, len(pool))])  # rows of the Cholesky factor
    free = ((pool @ known.T).abs() < pool.shape[1]).all(1)
    rows: list[int] = []
    for row in range(len(known), len(parts)):
        gain = torch.where(free, towards.square().sum(1) / variance.clamp(min=JITTER), -1.0)
        best = int(gain.argmax())
        if not bool(free[best]):
            break
        rows.append(best)
        deviation = variance[best].clamp(min=JITTER).sqrt()
        part = (prior.between(pool[best : best + 1], pool)[0] - parts[:row, best] @ parts[:row]) / deviation
        towards = towards - part.unsqueeze(1) * towards[best] / deviation
        variance = variance - part.square()
        parts[row] = part
        free &= (pool @ pool[best]).abs() < pool.shape[1]
    return pool[rows]


def _size(signs: Tensor) -> Tensor:
    return ((signs.sum(1) + signs.shape[1]) / 2).round().long()


def _covariance(prior: Prior, signs: Tensor) -> Tensor:
    """Return the (n, n) covariance of the scores."""
    between = prior.between(signs, signs)
    between.diagonal().copy_(prior.variance(signs))
    return between


def _likelihood(prior: Prior, signs: Tensor, odd: Tensor) -> float:
    """Return the log marginal likelihood up to a constant, maximised over the scale of the variance."""
    root, failed = torch.linalg.cholesky_ex(_covariance(prior, signs))
    if int(failed):
        return -inf
    fit = float(odd @ torch.cholesky_solve(odd.unsqueeze(1), root).squeeze(1)) / len(odd)
    return float(-0.5 * len(odd) * np.log(max(fit, 1e-300)) - root.diagonal().log().sum())
