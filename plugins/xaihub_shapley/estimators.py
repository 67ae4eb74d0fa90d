"""Shapley values from questions about coalitions: all of them, or a sample in pairs.

Only the part of a game that changes sign when every player changes sides matters to Shapley values: with signs
z = 2 s - 1 a game is a sum of products over sets of players, products over even sets give everybody nothing, and one
over an odd set gives 2 / |S| to each of its members. A coalition and its complement together show the odd part alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from xaihub import ParameterError
from xaihub.masking import CERTAIN, Coalitions, draw_coalitions, draw_orders, every_coalition, shapley_sizes
from xaihub.masking import shapley_weights as weights_of

__all__ = ["MOST_PLAYERS", "Ask", "Estimate", "enumerated", "interacting", "ordered", "regressed"]

Ask = Callable[[Tensor], Tensor]

# The choices among which the marginal likelihood decides, on at most so many pairs: it costs a millisecond each, and
# less than a tenth of the forward passes in all.
PAIRS = 256
DECAY = (0.03, 0.1, 0.25, 0.5)  # how much less variance a product has with each member more
ALONE = (1.0, 10.0, 100.0)  # variance of single players against that of all products
NOISE = (1e-4, 1e-2, 0.1, 0.5)  # what no smooth game explains
UNEQUAL = (0.0, 0.5)  # power of the players' own weights: players that count alone also count together
MOST_PLAYERS = 512  # the kernel is a product over players


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Shapley values of d players.

    Attributes:
        values: (d,) float64.
        stderr: (d,) standard errors over the draw of coalitions; zero if all were asked.
        whole: Score of the full coalition less that of the empty one.
        asked: Coalitions that were asked about.
        kind: Which estimator, in a word.
    """

    values: Tensor
    stderr: Tensor
    whole: float
    asked: int
    kind: str


def enumerated(ask: Ask, players: int) -> Estimate:
    """Ask about all 2^d coalitions."""
    found = every_coalition(players)
    scores = ask(found.shown).double()
    values = weights_of(found.shown, found.log_expected).T @ scores
    return _estimate(values, torch.zeros_like(values), found.shown, scores, "exact")


def regressed(ask: Ask, players: int, budget: int, generator: torch.Generator) -> Estimate:
    """Kernel SHAP on pairs, adjusted: its solution, and an estimate of what it leaves over.

    Lundberg and Lee 2017 (arXiv 1705.07874), pairs and regression after Covert and Lee 2021 (arXiv 2012.01536). The
    standard errors are those of the pairs' own contributions to what is left over.
    """
    found = _drawn(players, budget, generator)
    scores = ask(found.shown).double()
    weights = weights_of(found.shown, found.log_expected)
    values = weights.T @ scores
    shown = found.shown.double()
    rest = scores - scores[shown.sum(1) == 0].mean() - shown @ values
    return _estimate(values, _sandwich(weights * rest.unsqueeze(1), found, players), shown, scores, "kernel")


def ordered(ask: Ask, players: int, budget: int, generator: torch.Generator) -> Estimate:
    """Average what a player adds along random orders, each with its reverse (Mitchell et al. 2022, arXiv 2104.12199).

    Raises:
        ParameterError: The budget allows a single order, which has no standard error.
    """
    found, weights = draw_orders(players, budget, generator=generator)
    count = int(found.draw.max()) + 1
    if count < 2:
        raise ParameterError(
            f"a budget of {budget} is too small for orders of {players} players with a standard error",
            hint=f"at least {4 * players - 2}",
        )
    scores = ask(found.shown).double()
    values = weights.T @ scores
    # The two ends are shared by all orders; what an order gives them is found from its sums.
    kept = found.draw != CERTAIN
    parts = torch.zeros(count, players, dtype=torch.float64)
    parts.index_add_(0, found.draw[kept], weights[kept] * scores[kept].unsqueeze(1) * count)
    parts = _with_ends(parts, found.shown[kept], found.draw[kept], scores[0], scores[1])
    return _estimate(values, parts.std(0) / count**0.5, found.shown, scores, "permutation")


def interacting(ask: Ask, players: int, budget: int, generator: torch.Generator) -> Estimate:
    """Fit a smooth game with interactions to the odd part, and take its Shapley values.

    Gaussian process regression: products over odd sets of players have independent normal weights, whose variance falls
    by a constant factor with each member (and by the players' own weight). So the kernel is a product over players, and
    the Shapley values of the mean have a closed form. The marginal likelihood chooses the factor. It is consistent and
    exact in the limit of all coalitions, but not unbiased. Standard errors are the posterior's.
    """
    found = _drawn(players, budget, generator)
    scores = ask(found.shown).double()
    signs = 2 * found.shown[::2].double() - 1
    odd = (scores[::2] - scores[1::2]) / 2
    values, stderr = _fit(signs, odd, generator)
    return _estimate(values, stderr, found.shown, scores, "interactions")


def _drawn(players: int, budget: int, generator: torch.Generator) -> Coalitions:
    """Return coalitions by Shapley sizes with both ends; neighbouring rows are complements."""
    return draw_coalitions(players, budget - budget % 2, shapley_sizes(players), ends=True, generator=generator)


def _estimate(values: Tensor, stderr: Tensor, shown: Tensor, scores: Tensor, kind: str) -> Estimate:
    sizes = shown.sum(1)
    whole = float(scores[sizes == shown.shape[1]].mean() - scores[sizes == 0].mean())
    return Estimate(values=values, stderr=stderr, whole=whole, asked=len(shown), kind=kind)


def _sandwich(parts: Tensor, found: Coalitions, players: int) -> Tensor:
    """Return the standard errors of sums of (n, d) parts whose rows are drawn in pairs."""
    drawn = found.draw != CERTAIN
    if not bool(drawn.any()):
        return torch.zeros(parts.shape[1], dtype=torch.float64)
    count = int(found.draw.max()) + 1
    sums = torch.zeros(count, parts.shape[1], dtype=torch.float64).index_add_(0, found.draw[drawn], parts[drawn])
    free = max(count - players, 1)
    return ((sums - sums.mean(0)).square().sum(0) * count / free).sqrt()


def _with_ends(parts: Tensor, shown: Tensor, draw: Tensor, empty: Tensor, full: Tensor) -> Tensor:
    """Add to each pair of orders what its first and its last players get from the two ends."""
    players = shown.shape[1]
    first = shown.sum(1) == 1
    last = shown.sum(1) == players - 1
    parts.index_add_(0, draw[first], -shown[first].double() * empty / 2)
    parts.index_add_(0, draw[last], (1 - shown[last].double()) * full / 2)
    return parts


@dataclass(frozen=True)
class _Prior:
    """Variances: `alone * own_i` of player i alone; of a set, the product of its members' `decay`, normalised."""

    decay: Tensor
    own: Tensor
    alone: float
    noise: float


def _fit(signs: Tensor, odd: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the posterior's (d,) Shapley values and their standard deviations from (n, d) signs."""
    ends = signs.sum(1).abs() == signs.shape[1]
    scale = odd.square().mean().sqrt().clamp(min=1e-30)
    prior = _chosen(signs, odd / scale, ends, generator)
    root = torch.linalg.cholesky(_covariance(signs, prior, ends, _products(signs, prior.decay)))
    weights = torch.cholesky_solve((odd / scale).unsqueeze(1), root)
    towards = _towards(signs, prior)  # (n, d)
    level = float((weights.squeeze(1) @ (odd / scale)) / len(odd))
    explained = (towards * torch.cholesky_solve(towards, root)).sum(0)
    left = (_before(prior) - explained).clamp(min=0)
    return (towards.T @ weights).squeeze(1) * scale, (level * left).sqrt() * scale


def _chosen(signs: Tensor, odd: Tensor, ends: Tensor, generator: torch.Generator) -> _Prior:
    """Return the prior of the largest marginal likelihood, on some of the pairs."""
    players = signs.shape[1]
    # A first, additive fit says how much each player counts alone; a little ridge makes it unique.
    ridge = torch.cat([signs, 0.1 * torch.eye(players, dtype=torch.float64)])
    alone = torch.linalg.lstsq(ridge, torch.cat([odd, odd.new_zeros(players)]).unsqueeze(1)).solution.abs().squeeze(1)
    some = torch.randperm(len(signs), generator=generator)[:PAIRS]
    signs, odd, ends = signs[some], odd[some], ends[some]
    best: tuple[float, _Prior] | None = None
    for power in UNEQUAL:
        own = (alone / alone.mean().clamp(min=1e-30)).pow(power).clamp(0.2, 3)
        own = own / own.mean()
        for decay in DECAY:
            products = _products(signs, (decay * own).clamp(max=0.9))
            for prior in _priors(own, decay):
                found = _likelihood(_covariance(signs, prior, ends, products), odd)
                if best is None or found > best[0]:
                    best = found, prior
    assert best is not None  # noqa: S101 - there is a choice of each
    return best[1]


def _priors(own: Tensor, decay: float) -> Iterator[_Prior]:
    share = own.square() / own.square().sum()
    for alone, noise in product(ALONE, NOISE):
        yield _Prior((decay * own).clamp(max=0.9), share, alone, noise)


def _likelihood(covariance: Tensor, odd: Tensor) -> float:
    """Return the log marginal likelihood, but for a constant, with the level of the variance at its best."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed):
        return -torch.inf
    fit = float(odd @ torch.cholesky_solve(odd.unsqueeze(1), root).squeeze(1)) / len(odd)
    return float(-0.5 * len(odd) * np.log(max(fit, 1e-300)) - root.diagonal().log().sum())


def _covariance(signs: Tensor, prior: _Prior, ends: Tensor, products: Tensor) -> Tensor:
    # The value of the whole is known as it is, so that the values sum to it; a trace of noise keeps the root real.
    noise = prior.noise * (~ends).double() + 1e-8 * (1 + prior.alone)
    return products + prior.alone * (signs * prior.own) @ signs.T + torch.diag(noise)


def _products(signs: Tensor, decay: Tensor) -> Tensor:
    """Return (n, n) sums over odd sets of players of the product of decay, sign and sign; 1 on the diagonal."""
    plus = torch.ones(len(signs), len(signs), dtype=torch.float64)
    minus = plus.clone()
    for column, factor in zip(signs.T, decay, strict=True):
        alike = torch.outer(column * factor, column)
        plus *= 1 + alike
        minus *= 1 - alike
    return (plus - minus) / ((1 + decay).prod() - (1 - decay).prod())


def _towards(signs: Tensor, prior: _Prior) -> Tensor:
    """Return the (n, d) covariances of the players' Shapley values with the odd part at each row.

    A sum over odd sets with 1 / |S| is an integral of polynomials over [0, 1], which Gauss's rule takes exactly.
    """
    nodes, weights = np.polynomial.legendre.leggauss(signs.shape[1] // 2 + 1)
    total = torch.zeros_like(signs)
    parts = signs * prior.decay
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        plus, minus = 1 + node * parts, 1 - node * parts
        total += weight * (plus.prod(1, keepdim=True) / plus + minus.prod(1, keepdim=True) / minus)
    norm = ((1 + prior.decay).prod() - (1 - prior.decay).prod()) / 2
    return parts * total / norm + 2 * prior.alone * prior.own * signs


def _before(prior: _Prior) -> Tensor:
    """Return the (d,) prior variances of the Shapley values."""
    nodes, weights = np.polynomial.legendre.leggauss(prior.decay.numel() // 2 + 32)
    total = torch.zeros_like(prior.decay)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        # 1 / |S|^2 is an integral against -log r; r = node^2 takes the corner off the logarithm.
        plus, minus = 1 + node**2 * prior.decay, 1 - node**2 * prior.decay
        total += -4 * node * np.log(node) * weight * (plus.prod() / plus + minus.prod() / minus)
    norm = ((1 + prior.decay).prod() - (1 - prior.decay).prod()) / 2
    return 2 * prior.decay * total / norm + 4 * prior.alone * prior.own
