"""Shapley values from questions about coalitions: all of them, or a sample in pairs.

Only the part of a game that changes sign when every player changes sides matters to Shapley values: with signs
z = 2 s - 1 a game is a sum of products over sets of players, products over even sets give everybody nothing, and one
over an odd set gives 2 / |S| to each of its members. A coalition and its complement together show the odd part alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xaihub import ParameterError
from xaihub.masking import CERTAIN, Coalitions, draw_coalitions, draw_orders, every_coalition, shapley_sizes
from xaihub.masking import shapley_weights as weights_of
from xaihub_shapley.smooth import Choice, Posterior, chosen, likenesses, most_telling, prior_of

__all__ = ["MOST_ASKED", "MOST_PLAYERS", "Ask", "Estimate", "enumerated", "interacting", "ordered", "regressed"]

Ask = Callable[[Tensor], Tensor]

FIRST = 24  # pairs before the prior is chosen; fewer cannot
POOL = 1000  # random pairs among which the most telling ones are looked for
TELLING = 512  # pairs that are looked for; beyond these, random ones do
MOST_PLAYERS, MOST_ASKED = 512, 16384  # of a fit with interactions: for time, and for memory


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


def interacting(
    ask: Ask, players: int, budget: int, generator: torch.Generator, shapes: Tensor | None = None
) -> Estimate:
    """Fit a smooth game with interactions to the odd part, and take its Shapley values.

    Gaussian process regression; the marginal likelihood chooses the prior (`xaihub_shapley.smooth`). Pairs are asked in
    rounds: those that the fit so far says tell most about the values, then, beyond a number, random ones. It is
    consistent and exact in the limit of all coalitions, but not unbiased. Standard errors are the posterior's.

    Args:
        ask: The game.
        players: d, at least 2.
        budget: Coalitions at most.
        generator: Every random number comes from it.
        shapes: (d, h, w) share that each player has of each point of a raster, so that neighbours may be alike; None
            for players without places.
    """
    alike = likenesses(shapes, players)
    signs = torch.ones(1, players, dtype=torch.float64)
    scores = ask(torch.stack([torch.zeros(players), torch.ones(players)])).double()
    choice = Choice()
    prior = prior_of(choice, torch.ones(players, dtype=torch.float64), alike)
    for upto in _rounds(budget // 2):
        pool = 2 * _drawn(players, 2 * (POOL + upto), generator).shown[::2].double() - 1
        if upto <= TELLING:
            added = most_telling(prior, signs, pool, upto - len(signs))
        else:
            added = pool[((pool @ signs.T).abs() < players).all(1)][: upto - len(signs)]
        shown = torch.stack([1 - added, 1 + added], 1).flatten(0, 1) / 2
        signs, scores = torch.cat([signs, added]), torch.cat([scores, ask(shown.float()).double()])
        odd = (scores[1::2] - scores[::2]) / 2
        if len(signs) >= FIRST:
            prior, choice = chosen(signs, odd, alike, generator, choice)
    found = Posterior(prior, signs, odd)
    whole = float(scores[1] - scores[0])
    return Estimate(values=found.values, stderr=found.stderr, whole=whole, asked=len(scores), kind="interactions")


def _rounds(pairs: int) -> list[int]:
    """Return after how many pairs to fit: twice as many each time."""
    found = [min(FIRST, pairs)]
    while found[-1] < pairs:
        found.append(min(2 * found[-1], pairs) if 3 * found[-1] < pairs else pairs)
    return found


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
