"""Coalition designs: random subsets of players, and the weights that turn their scores into Shapley values.

A design draws a size from a distribution, then a uniform subset of that size. It records how often it expects to draw
each coalition, which is all that an estimator needs: every estimate is linear, `values = weights.T @ scores`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import comb, lgamma, log

import torch
from torch import Tensor

from xaihub.errors import ParameterError

CERTAIN = -1  # the draw number of coalitions that are not random
LISTED = 2**20  # sizes with at most this many coalitions are sampled without replacement


@dataclass(frozen=True, kw_only=True)
class Coalitions:
    """n coalitions of d players.

    Attributes:
        shown: (n, d) floats, 1 for the players that take part.
        draw: (n,) number of the draw; a coalition and its complement, or all coalitions of an order and its reverse,
            are one draw. Draws are identically distributed and nearly independent. `CERTAIN` if not random.
        copy: (n,) index of the replacement for the absent players, where there are several; they alternate.
        log_expected: (n,) float64, log of the expected number of rows with this coalition, over all copies.
    """

    shown: Tensor
    draw: Tensor
    copy: Tensor
    log_expected: Tensor

    def __len__(self) -> int:
        """Return the number of coalitions."""
        return len(self.shown)


def every_coalition(players: int, *, copies: int = 1) -> Coalitions:
    """Return all 2^d coalitions, once per copy."""
    shown = ((torch.arange(2**players).unsqueeze(1) >> torch.arange(players)) & 1).float()
    return _certain(shown, copies)


def draw_coalitions(
    players: int, count: int, sizes: Tensor, *, ends: bool, copies: int = 1, generator: torch.Generator
) -> Coalitions:
    """Draw about `count` coalitions, certain ones first.

    Sizes are stratified by systematic sampling, and coalitions of a size are drawn without replacement until all have
    been drawn. Coalition sizes that the budget covers completely are enumerated, not sampled. If the distribution of
    sizes is symmetric, coalitions come in pairs with their complements.

    Args:
        players: d.
        count: Number of rows; one fewer if pairs leave a remainder, and at most one row per coalition and copy.
        sizes: (d + 1,) log-probabilities of the sizes 0..d.
        ends: Include the empty and the full coalition once per copy, and never draw them at random.
        copies: Number of replacements for absent players.
        generator: The source of all random numbers.

    Raises:
        ParameterError: `count` is too small.
    """
    sizes = sizes.double().clone()
    parts: list[Coalitions] = []
    if ends:
        sizes[[0, players]] = -torch.inf
        parts = [_certain(torch.stack([torch.zeros(players), torch.ones(players)]), copies)]
    left = count - sum(map(len, parts))
    if left < 4 or players < 1:
        raise ParameterError(f"a budget of {count} masks is too small", hint=f"use at least {count - left + 4}")
    if not bool(sizes.isfinite().any()):
        return parts[0]
    sizes = sizes - sizes.logsumexp(0)
    paired = torch.allclose(sizes.exp(), sizes.exp().flip(0), atol=1e-12)
    strata = {
        size: _Stratum(players, size, paired)
        for size in range(players // 2 + 1 if paired else players + 1)
        if bool(sizes[size].isfinite())
    }
    law = torch.zeros(players + 1, dtype=torch.float64)
    for size in strata:
        law[size] = sizes[size].exp() * (2 if paired and 2 * size != players else 1)
    draws = left // 2 if paired else left
    while whole := [s for s, stratum in strata.items() if draws * float(law[s] / law.sum()) >= copies * stratum.count]:
        for size in whole:
            stratum = strata.pop(size)
            parts.append(_certain(stratum.rows(torch.arange(stratum.count)).flatten(0, 1), copies))
            law[size], draws = 0, draws - copies * stratum.count
        if not strata or draws <= 0:
            break
    if strata and draws > 0:
        parts.append(_random(strata, law / law.sum(), draws, copies, generator))
    names = [item.name for item in fields(Coalitions)]
    return Coalitions(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def balanced_coalitions(players: int, count: int, *, copies: int = 1, generator: torch.Generator) -> Coalitions:
    """Draw `count` coalitions in which every player takes part with probability one half, evenly in each block.

    A block is the rows of a Hadamard matrix and their complements, with random columns for the players and random
    signs: each coalition is uniform, and over a whole block no two players are correlated, so an additive fit has the
    smallest possible variance. Derived; the design is that of Plackett and Burman (1946). Coalitions may repeat, which
    is unlikely with many players.

    Args:
        players: d.
        count: Number of rows; one fewer if it is odd.
        copies: Number of replacements for absent players; pairs alternate.
        generator: The source of all random numbers.
    """
    order, pairs = block_of(players), count // 2
    signs = []
    for _ in range(-(-pairs // order)):
        columns = torch.randperm(order, generator=generator)[:players]
        flipped = torch.randint(0, 2, (players,), generator=generator)
        rows = torch.randperm(order, generator=generator)
        signs.append(_hadamard(order)[rows][:, columns] ^ flipped)
    shown = torch.cat(signs)[:pairs].float()
    draw = torch.arange(pairs).repeat_interleave(2)
    return Coalitions(
        shown=torch.stack([shown, 1 - shown], 1).flatten(0, 1),
        draw=draw,
        copy=draw % copies,
        log_expected=torch.full((2 * pairs,), log(2 * max(pairs, 1)) - players * log(2), dtype=torch.float64),
    )


def block_of(players: int) -> int:
    """Return the pairs per block of `balanced_coalitions`: the smallest power of two that is at least d."""
    return 1 << max(players - 1, 0).bit_length()


def _hadamard(order: int) -> Tensor:
    """Return Sylvester's matrix of an order that is a power of two, with 1 for -1 and 0 for 1: (order, order)."""
    found = torch.zeros(1, 1, dtype=torch.long)
    while len(found) < order:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, 1 - found], 1)])
    return found


def draw_orders(players: int, count: int, *, generator: torch.Generator) -> tuple[Coalitions, Tensor]:
    """Draw about `count` coalitions along random orders of the players: permutation sampling.

    Orders come in pairs with their reverses (antithetic; Mitchell et al. 2022). An order adds d - 1 coalitions to the
    empty and the full coalition, which occur once.

    Returns:
        The coalitions, and the (n, d) weights that turn their scores into Shapley values.

    Raises:
        ParameterError: `count` is too small for an order and its reverse.
    """
    orders = (count - 2) // (2 * max(players - 1, 1))
    if orders < 1:
        raise ParameterError(
            f"a budget of {count} masks is too small for an order of {players} players and its reverse",
            hint=f"use at least {2 * players}",
        )
    forward = torch.rand(orders, players, generator=generator).argsort(1)
    order = torch.stack([forward, forward.flip(1)], 1).flatten(0, 1)  # (2 orders, d)
    place = order.argsort(1)
    steps = torch.arange(1, players).view(1, -1, 1)
    shown = (place.unsqueeze(1) < steps).float().flatten(0, 1)
    rows = torch.arange(len(shown)) + 2
    # The coalition of the first k players joins the k-th (+1) and is left by the next (-1).
    weights = torch.zeros(len(shown) + 2, players, dtype=torch.float64)
    weights[rows, order[:, :-1].flatten()] += 1 / len(order)
    weights[rows, order[:, 1:].flatten()] -= 1 / len(order)
    weights[0].index_add_(0, order[:, 0], torch.full((len(order),), -1 / len(order), dtype=torch.float64))
    weights[1].index_add_(0, order[:, -1], torch.full((len(order),), 1 / len(order), dtype=torch.float64))
    shown = torch.cat([torch.zeros(1, players), torch.ones(1, players), shown])
    draw = torch.arange(orders).repeat_interleave(2 * (players - 1))
    size = shown.sum(1).long()
    expected = log(max(len(order), 1)) - _log_subsets(players, size)
    expected[:2] = 0
    coalitions = Coalitions(
        shown=shown,
        draw=torch.cat([torch.full((2,), CERTAIN), draw]),
        copy=torch.zeros(len(shown), dtype=torch.long),
        log_expected=expected,
    )
    return coalitions, weights


def shapley_weights(shown: Tensor, log_expected: Tensor, *, adjust: bool = True) -> Tensor:
    """Return (n, d) float64 weights that turn scores of coalitions into Shapley values.

    The weight of a coalition is its Shapley weight divided by its expected number of rows, which is unbiased. `adjust`
    applies this estimate to the residuals of the least-squares fit of an additive game (as in Kernel SHAP; Covert and
    Lee 2021) and adds the fit's Shapley values. The result stays linear in the scores, removes the variance of the
    additive part, and sums to the difference between the full and the empty coalition. Fit and residuals share the
    draws, which causes a bias that falls faster with the number of rows than the standard deviation does. `adjust`
    needs the empty and the full coalition, two players, and 2 d + 2 rows.

    Args:
        shown: (n, d) coalitions.
        log_expected: (n,), as in `Coalitions`.
        adjust: Whether to regress; ignored if its requirements are not met.
    """
    M = shown.double()  # noqa: N806 - the papers' notation
    s, d = M.sum(1), M.shape[1]
    kept = (torch.lgamma(s.clamp(min=1)) + torch.lgamma(d - s + 1) - lgamma(d + 1) - log_expected).exp()
    dropped = (torch.lgamma(s + 1) + torch.lgamma((d - s).clamp(min=1)) - lgamma(d + 1) - log_expected).exp()
    plain = M * kept.unsqueeze(1) - (1 - M) * dropped.unsqueeze(1)
    empty, full = (s == 0).double(), (s == d).double()
    if not adjust or d < 2 or len(M) < 2 * d + 2 or not bool(empty.any()) or not bool(full.any()):
        return plain
    start, end = empty / empty.sum(), full / full.sum()
    fit = _additive_fit(M, s, log_expected, start, end)
    # Applied to the residuals F - F(empty) - M fit F, as one linear map of F.
    rest = plain.T - plain.sum(0).unsqueeze(1) * start - (plain.T @ M) @ fit
    # The residual is 0 at both ends, so its Shapley values sum to 0; their estimate must as well.
    return (fit + rest - rest.mean(0)).T


def binomial_sizes(players: int, p: float) -> Tensor:
    """Return the (d + 1,) log-probabilities of sizes if each player takes part with probability p."""
    s = torch.arange(players + 1, dtype=torch.float64)
    return _log_subsets(players, s) + s * log(p) + (players - s) * log(1 - p)


def shapley_sizes(players: int) -> Tensor:
    """Return (d + 1,) log-probabilities proportional to 1 / (s (d - s)) for sizes 0 < s < d."""
    s = torch.arange(players + 1, dtype=torch.float64)
    logs = -(s * (players - s)).log()
    logs[[0, players]] = -torch.inf
    return logs - logs.logsumexp(0) if players > 1 else torch.full((players + 1,), -log(2.0), dtype=torch.float64)


class _Stratum:
    """All coalitions of one size, or all pairs of such a coalition and its complement, by number."""

    def __init__(self, players: int, size: int, paired: bool) -> None:
        self.players, self.size, self.paired = players, size, paired
        self.halved = paired and 2 * size == players  # complements have the same size; player 0 distinguishes them
        self.count = comb(players - 1, size - 1) if self.halved else comb(players, size)

    def rows(self, numbers: Tensor) -> Tensor:
        """Return the (n, 1 or 2, d) coalitions of (n,) numbers, in lexicographic order."""
        shown = torch.zeros(len(numbers), self.players)
        left, rest = torch.full_like(numbers, self.size), numbers.clone()
        first = int(self.halved)
        shown[:, :first], left = 1, left - first
        table = torch.tensor([[min(comb(n, k), 2**62) for k in range(self.size + 1)] for n in range(self.players)])
        for player in range(first, self.players):
            with_it = torch.where(left > 0, table[self.players - player - 1][(left - 1).clamp(min=0)], 0)
            taken = rest < with_it
            shown[taken, player] = 1
            rest, left = torch.where(taken, rest, rest - with_it), left - taken.long()
        return self._with_complements(shown)

    def drawn(self, count: int, copies: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return (count, 1 or 2, d) random coalitions and their (count,) copies."""
        turn = torch.randint(0, copies, (), generator=generator)
        if self.count > LISTED:  # too many to enumerate, and a repetition is unlikely
            rank = torch.rand(count, self.players, generator=generator).argsort(1).argsort(1)
            return self._with_complements((rank < self.size).float()), (turn + torch.arange(count)) % copies
        rounds = -(-count // self.count)
        order = torch.randperm(self.count, generator=generator)
        # Each round uses all coalitions in the same random order, with the next copy.
        copy = (torch.arange(self.count) + turn + torch.arange(rounds).unsqueeze(1)).flatten()[:count] % copies
        return self.rows(order.repeat(rounds)[:count]), copy

    def _with_complements(self, shown: Tensor) -> Tensor:
        return torch.stack([shown, 1 - shown], 1) if self.paired else shown.unsqueeze(1)


def _random(
    strata: dict[int, _Stratum], law: Tensor, draws: int, copies: int, generator: torch.Generator
) -> Coalitions:
    levels = (torch.arange(draws) + torch.rand((), generator=generator, dtype=torch.float64)) / draws
    of_draw = torch.searchsorted(law.cumsum(0), levels, right=True).clamp(max=max(strata))
    shown, copy, expected = [], [], []
    for size, count in zip(*(part.tolist() for part in of_draw.unique(return_counts=True)), strict=True):
        rows, copied = strata[size].drawn(count, copies, generator)
        shown.append(rows)
        copy.append(copied)
        expected.append(torch.full((count,), log(draws) + float(law[size].log()) - log(strata[size].count)).double())
    order = torch.randperm(draws, generator=generator)
    together = shown[0].shape[1]
    return Coalitions(
        shown=torch.cat(shown)[order].flatten(0, 1),
        draw=torch.arange(draws).repeat_interleave(together),
        copy=torch.cat(copy)[order].repeat_interleave(together),
        log_expected=torch.cat(expected)[order].repeat_interleave(together),
    )


def _certain(shown: Tensor, copies: int) -> Coalitions:
    n = len(shown) * copies
    return Coalitions(
        shown=shown.repeat(copies, 1),
        draw=torch.full((n,), CERTAIN),
        copy=torch.arange(copies).repeat_interleave(len(shown)),
        log_expected=torch.full((n,), log(copies), dtype=torch.float64),
    )


def _additive_fit(M: Tensor, s: Tensor, log_expected: Tensor, start: Tensor, end: Tensor) -> Tensor:  # noqa: N803
    """Return the (d, n) linear map from scores to the solution of Kernel SHAP, which is exact at both ends."""
    d = M.shape[1]
    inner = (s > 0) & (s < d)
    logs = torch.full_like(s, -torch.inf)
    logs[inner] = (torch.lgamma(s[inner]) + torch.lgamma(d - s[inner])) - log_expected[inner]
    kernel = (logs - logs.max()).exp()  # (s - 1)! (d - s - 1)! over the expected number of rows, up to a factor
    weighted = M * kernel.unsqueeze(1)
    inverse: Tensor = torch.linalg.pinv(M.T @ weighted, hermitian=True)
    free = inverse @ (weighted.T - weighted.sum(0).unsqueeze(1) * start)  # scores minus that of the empty coalition
    direction = inverse.sum(1, keepdim=True) / inverse.sum()
    return free - direction * (free.sum(0) - (end - start))


def _log_subsets(players: int, size: Tensor) -> Tensor:
    size = size.double()
    return lgamma(players + 1) - torch.lgamma(size + 1) - torch.lgamma(players - size + 1)
