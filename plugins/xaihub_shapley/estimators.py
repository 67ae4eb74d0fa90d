"""Shapley values from the scores of coalitions: all of them, or a sample in pairs.

With signs z = 2 s - 1, a game is a sum of products of signs over sets of players. A product over an even set
contributes nothing to Shapley values; one over an odd set S contributes 2 / |S| to each member. Half the difference of
a coalition and its complement is the odd part alone, so every estimator here uses pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xaihub import ParameterError, in_time
from xaihub.masking import CERTAIN, Coalitions, draw_coalitions, draw_orders, every_coalition, shapley_sizes
from xaihub.masking import shapley_weights as weights_of
from xaihub_shapley.gaussian_process import Choice, Posterior, choose_prior, correlations, make_prior, most_informative

Stop = Callable[["Estimate"], bool]  # whether an estimate is good enough
Game = Callable[[Tensor], Tensor]  # (n, d) coalitions to (n,) scores
Estimator = Literal["auto", "exact", "interactions", "kernel", "permutation"]

FIRST = 24  # pairs before the prior is chosen
POOL = 1000  # random pairs from which the most informative ones are picked
INFORMATIVE = 512  # pairs that are picked in this way; later ones are random
MOST_PLAYERS, LARGEST_BUDGET = 512, 16384  # limits of a fit with interactions, for time and memory


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Shapley values of d players."""

    values: Tensor  # (d,) float64
    stderr: Tensor  # (d,) over the draw of coalitions; zero if all coalitions were evaluated
    whole: float  # score of the full coalition minus that of the empty one
    evaluated: int  # number of evaluated coalitions
    kind: str  # name of the estimator

    @property
    def noise(self) -> float:
        """The root mean square standard error over the spread of the values."""
        return float(self.stderr.square().mean().sqrt()) / max(float(self.values.std(correction=0)), 1e-12)


def estimate(
    game: Game,
    players: int,
    budget: int,
    generator: torch.Generator,
    *,
    kind: Estimator = "auto",
    shapes: Tensor | None = None,
    enough: Stop = lambda _estimate: False,
) -> Estimate:
    """Estimate Shapley values within a budget of coalitions; `interactions` ends early if an estimate is enough.

    `auto` is exact if the budget covers all coalitions, else `interactions` up to `LARGEST_BUDGET`, else `kernel`.
    `interactions` is exact too if the budget allows it.

    Raises:
        ParameterError: The estimator cannot work with this budget or number of players.
    """
    affordable = players < 40 and 2**players <= budget
    if kind == "exact" and not affordable:
        raise ParameterError(
            f"all coalitions of {players} players are 2^{players} forward passes, more than the budget of {budget}",
            hint=f"use budget={2**players}" if players <= 20 else "use fewer players or another estimator",
        )
    if kind == "exact" or (affordable and kind in ("auto", "interactions")):
        return enumerated(game, players)
    if players < 2:
        raise ParameterError(f"estimator={kind} needs at least two players", hint="use estimator=auto")
    if kind == "permutation":
        return ordered(game, players, budget, generator)
    if kind == "kernel" or (kind == "auto" and budget > LARGEST_BUDGET):
        return regressed(game, players, budget, generator)
    return interacting(game, players, budget, generator, shapes, enough)


def enumerated(game: Game, players: int) -> Estimate:
    """Evaluate all 2^d coalitions."""
    found = every_coalition(players)
    scores = game(found.shown).double()
    values = weights_of(found.shown, found.log_expected).T @ scores
    return _result(values, torch.zeros_like(values), found.shown, scores, "exact")


def regressed(game: Game, players: int, budget: int, generator: torch.Generator) -> Estimate:
    """Kernel SHAP on pairs of coalitions, adjusted by an estimate from its residuals.

    Lundberg and Lee 2017 (arXiv 1705.07874), pairs and regression after Covert and Lee 2021 (arXiv 2012.01536).
    Standard errors come from the pairs' contributions to the residual estimate.

    Raises:
        ParameterError: The budget is too small for a fit.
    """
    if budget < 2 * players + 2:
        raise ParameterError(
            f"a budget of {budget} is too small to fit {players} players", hint=f"use at least {2 * players + 2}"
        )
    found = _drawn(players, budget, generator)
    scores = game(found.shown).double()
    weights = weights_of(found.shown, found.log_expected)
    values = weights.T @ scores
    shown = found.shown.double()
    rest = scores - scores[shown.sum(1) == 0].mean() - shown @ values
    return _result(values, _sandwich(weights * rest.unsqueeze(1), found, players), shown, scores, "kernel")


def ordered(game: Game, players: int, budget: int, generator: torch.Generator) -> Estimate:
    """Average each player's marginal contribution along random orders and their reverses.

    Mitchell et al. 2022 (arXiv 2104.12199).

    Raises:
        ParameterError: The budget allows a single order, which has no standard error.
    """
    found, weights = draw_orders(players, budget, generator=generator)
    count = int(found.draw.max()) + 1
    if count < 2:
        raise ParameterError(
            f"a budget of {budget} is too small for orders of {players} players with a standard error",
            hint=f"use at least {4 * players - 2}",
        )
    scores = game(found.shown).double()
    kept = found.draw != CERTAIN
    shown, draw = found.shown[kept].double(), found.draw[kept]
    parts = torch.zeros(count, players, dtype=torch.float64)
    parts.index_add_(0, draw, weights[kept] * scores[kept].unsqueeze(1) * count)
    # All orders share the empty and the full coalition, which the first and the last player of each are compared with.
    first, last = shown.sum(1) == 1, shown.sum(1) == players - 1
    parts.index_add_(0, draw[first], -shown[first] * scores[0] / 2)
    parts.index_add_(0, draw[last], (1 - shown[last]) * scores[1] / 2)
    return _result(weights.T @ scores, parts.std(0) / count**0.5, found.shown, scores, "permutation")


def interacting(
    game: Game,
    players: int,
    budget: int,
    generator: torch.Generator,
    shapes: Tensor | None = None,
    enough: Stop = lambda _estimate: False,
) -> Estimate:
    """Fit a smooth game with interactions by Gaussian process regression, and return its Shapley values.

    The fit is to the odd part; the marginal likelihood chooses the prior. Pairs are evaluated in rounds: first those
    that are most informative about the values under the current fit, then random ones. Exact in the limit of all
    coalitions, but not unbiased. Standard errors are the posterior's. With `shapes`, neighbours can correlate.

    Raises:
        ParameterError: There are too many players or coalitions for a fit.
    """
    if players > MOST_PLAYERS:
        raise ParameterError(
            f"interactions of {players} players cannot be fitted",
            hint=f"use at most {MOST_PLAYERS} players, or estimator=kernel",
        )
    if budget > LARGEST_BUDGET:
        raise ParameterError(
            f"interactions cannot be fitted to {budget} coalitions",
            hint=f"use a budget of at most {LARGEST_BUDGET}, or estimator=kernel",
        )
    alike = correlations(shapes, players)
    signs = torch.ones(1, players, dtype=torch.float64)
    scores = game(torch.stack([torch.zeros(players), torch.ones(players)])).double()
    choice = Choice()
    prior = make_prior(choice, torch.ones(players, dtype=torch.float64), alike)
    for upto in in_time(_rounds(budget // 2)):
        pool = 2 * _drawn(players, 2 * (POOL + upto), generator).shown[::2].double() - 1
        if upto <= INFORMATIVE:
            added = most_informative(prior, signs, pool, upto - len(signs))
        else:
            added = pool[((pool @ signs.T).abs() < players).all(1)][: upto - len(signs)]
        shown = torch.stack([1 - added, 1 + added], 1).flatten(0, 1) / 2
        signs, scores = torch.cat([signs, added]), torch.cat([scores, game(shown.float()).double()])
        odd = (scores[1::2] - scores[::2]) / 2
        if len(signs) >= FIRST:
            prior, choice = choose_prior(signs, odd, alike, generator, choice)
        fit = Posterior(prior, signs, odd)
        whole, evaluated = float(scores[1] - scores[0]), len(scores)
        found = Estimate(values=fit.values, stderr=fit.stderr, whole=whole, evaluated=evaluated, kind="interactions")
        if 2 * upto < budget - 1 and enough(found):
            break
    return found


def _rounds(pairs: int) -> list[int]:
    """Return the numbers of pairs after which to fit: doubling each time."""
    found = [min(FIRST, pairs)]
    while found[-1] < pairs:
        found.append(min(2 * found[-1], pairs) if 3 * found[-1] < pairs else pairs)
    return found


def _drawn(players: int, budget: int, generator: torch.Generator) -> Coalitions:
    """Return coalitions by Shapley sizes with both ends; neighbouring rows are complements."""
    return draw_coalitions(players, budget - budget % 2, shapley_sizes(players), ends=True, generator=generator)


def _result(values: Tensor, stderr: Tensor, shown: Tensor, scores: Tensor, kind: str) -> Estimate:
    sizes = shown.sum(1)
    whole = float(scores[sizes == shown.shape[1]].mean() - scores[sizes == 0].mean())
    return Estimate(values=values, stderr=stderr, whole=whole, evaluated=len(shown), kind=kind)


def _sandwich(parts: Tensor, found: Coalitions, players: int) -> Tensor:
    """Return the standard errors of sums of (n, d) parts whose rows are drawn in pairs."""
    drawn = found.draw != CERTAIN
    if not bool(drawn.any()):
        return torch.zeros(parts.shape[1], dtype=torch.float64)
    count = int(found.draw.max()) + 1
    sums = torch.zeros(count, parts.shape[1], dtype=torch.float64).index_add_(0, found.draw[drawn], parts[drawn])
    free = max(count - players, 1)
    return ((sums - sums.mean(0)).square().sum(0) * count / free).sqrt()
