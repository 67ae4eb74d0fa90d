"""The Shapley losses of training and the random coalitions that they need."""

from __future__ import annotations

import torch
from torch import Tensor

from xaihub import ParameterError
from xaihub.masking import shapley_sizes


def check_even(count: int) -> None:
    """Refuse a number of coalitions that cannot be split into pairs of complements."""
    if count < 2 or count % 2:
        raise ParameterError(f"{count} coalitions cannot be paired with their complements", hint="use an even number")


def sample_coalitions(
    rows: int, count: int, players: int, *, generator: torch.Generator, alike: bool = False
) -> Tensor:
    """Return (rows, count, players) coalitions of zeros and ones, independent between rows.

    A size k is drawn with probability proportional to 1 / (k (players - k)), then a uniform subset of that size; every
    second coalition is the complement of the one before. Coalitions thus follow the Shapley kernel, and squared errors
    need no weights. With `alike` all pairs of a row share one size. (`xaihub.masking.draw_coalitions` stratifies one
    budget and weights its rows, which suits an estimate but not a stochastic gradient.)

    Raises:
        ParameterError: `count` is odd, or there are fewer than two players.
    """
    check_even(count)
    if players < 2:
        raise ParameterError(f"{players} player has no coalitions to compare", hint="use a backbone with two patches")
    pairs = count // 2
    law = shapley_sizes(players).exp()
    sizes = torch.multinomial(law, rows * (1 if alike else pairs), replacement=True, generator=generator)
    rank = torch.rand(rows, pairs, players, generator=generator).argsort(2).argsort(2)
    shown = (rank < sizes.view(rows, -1, 1)).float()
    return torch.stack([shown, 1 - shown], 2).view(rows, count, players)


def shapley_loss(phi: Tensor, values: Tensor, shown: Tensor, empty: Tensor | None = None) -> Tensor:
    """Return the mean squared error of summed patch scores against values, over classes, coalitions and images.

    For coalitions from `sample_coalitions`, the minimiser over free patch scores is the Shapley vector of the game with
    these values whose grand coalition is worth the sum of the patch scores (derived). Shapes: (B, N, K) patch scores
    phi, (B, M, K) values of (B, M, N) coalitions shown, and the (K,) value of the empty coalition, 0 if None.
    """
    worth = values if empty is None else values - empty
    return (worth - shown.to(phi) @ phi).square().mean()


def patch_score_loss(phi: Tensor, values: Tensor, shown: Tensor) -> Tensor:
    """Return the variance of the same error within each coalition size, averaged over classes and images.

    For coalitions from `sample_coalitions(alike=True)`, the minimiser over free patch scores is the Shapley vector of
    any game with these values, up to a constant that all patches share (derived): within a size their sum does not
    matter. That sum causes most of `shapley_loss`, and most of its noise. Shapes are as there; M is at least 4.
    """
    error: Tensor = (values - shown.to(phi) @ phi).unflatten(1, (-1, 2))  # (B, M / 2, 2, K)
    spread = (error - error.mean(1, keepdim=True)).square().mean()
    return spread / (1 - 1 / error.shape[1])  # the mean comes from the same draws
