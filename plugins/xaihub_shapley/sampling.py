"""Random coalitions for a training step: paired, one set an image."""

from __future__ import annotations

import torch
from torch import Tensor

from xaihub import ParameterError
from xaihub.masking import shapley_sizes

__all__ = ["sample_coalitions"]


def sample_coalitions(
    rows: int, count: int, players: int, *, generator: torch.Generator, alike: bool = False
) -> Tensor:
    """Return (rows, count, players) coalitions of zeros and ones, independent from row to row.

    A size k is drawn in proportion to 1 / (k (players - k)), then a uniform subset of that size; every second coalition
    is the complement of the one before. So each follows the law of Kernel SHAP, and squared errors need no weights.
    With `alike` a row has one size, and that of its complements, so that coalitions can be compared within a size.
    (`xaihub.masking.draw_coalitions` stratifies one budget and expects its rows to be weighted, which suits an estimate
    but not a stochastic gradient.)

    Raises:
        ParameterError: `count` is odd, or there are less than two players.
    """
    if count < 2 or count % 2:
        raise ParameterError(f"{count} coalitions cannot be paired with their complements", hint="an even number")
    if players < 2:
        raise ParameterError(f"{players} player has no coalitions to compare", hint="a backbone with two cells or more")
    pairs = count // 2
    law = shapley_sizes(players).exp()
    sizes = torch.multinomial(law, rows * (1 if alike else pairs), replacement=True, generator=generator)
    rank = torch.rand(rows, pairs, players, generator=generator).argsort(2).argsort(2)
    shown = (rank < sizes.view(rows, -1, 1)).float()
    return torch.stack([shown, 1 - shown], 2).view(rows, count, players)
