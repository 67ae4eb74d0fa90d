"""Candidate measures with few parameters, a search over them, and the masks of free weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

import torch
from torch import Tensor

from xaihub.masking import Coalitions, binomial_sizes, draw_coalitions
from xaihub_first_principles.mask_families import Mixture

Choice = Literal["p", "sizes", "weights"]
PS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the keep-p measures in a mixture


@dataclass(frozen=True, kw_only=True)
class Smoothed:
    """Weights of a regression in which nearby regions have similar effects."""

    length: float  # length scale, in widths of a region
    noise: float  # residual variance as a fraction of the explained variance

    @property
    def parameters(self) -> dict[str, float]:
        """Length scale and noise."""
        return {"length": self.length, "noise": self.noise}

    def weights(self, masks: Tensor, centres: Tensor) -> Tensor:
        """Return (n, d) weights of mass 0: the posterior mean of regions' effects in a Gaussian process.

        `phi = C Z' (Z C Z' + lambda I)^-1 (F - mean F)`, with Z the centred (n, d) masks and C_jk = exp(-|c_j - c_k|^2
        / 2 l^2) for (d, 2) centres in widths of a region; lambda is `noise` times the mean diagonal of Z C Z'.
        """
        Z = masks.double()
        Z = Z - Z.mean(0)
        C = (-torch.cdist(centres.double(), centres.double()).square() / (2 * self.length**2)).exp()
        CZ = C @ Z.T
        K = Z @ CZ
        K += self.noise * K.diagonal().mean() * torch.eye(len(K), dtype=torch.float64)
        weights: Tensor = torch.linalg.solve(K, CZ.T)
        return weights - weights.mean(0)


Candidate = Mixture | Smoothed


def block_masks(sides: tuple[int, int], block: int, count: int, generator: torch.Generator) -> Coalitions:
    """Draw about `count` masks of a grid whose squares of `block` x `block` cells are visible with probability 1/2.

    Each mask's squares are shifted at random. A mask comes with its complement.
    """
    rows, columns = (-(-(side - 1) // block) + 1 for side in sides)
    coarse = draw_coalitions(
        rows * columns, count, binomial_sizes(rows * columns, 0.5), ends=False, generator=generator
    )
    shift = torch.randint(0, block, (len(coarse) // 2, 2), generator=generator).repeat_interleave(2, 0)
    vertical, horizontal = (
        (torch.arange(side) + shift[:, [axis]]) // block for axis, side in enumerate(sides)
    )  # (n, side): the square of each row and column of cells
    squares = vertical.unsqueeze(2) * columns + horizontal.unsqueeze(1)
    shown = coarse.shown.gather(1, squares.flatten(1))
    return Coalitions(
        shown=shown,
        draw=coarse.draw,
        copy=coarse.copy,
        log_expected=torch.full((len(shown),), -shown.shape[1] * log(2), dtype=torch.float64),
    )


def propose(choose: Choice, trials: int, seed: int, known: Sequence[tuple[Candidate, float]]) -> Iterator[Candidate]:
    """Yield candidates: keep-p at 0.5, then evenly spread ones, then candidates ever closer to the best known one.

    The caller adds each candidate with its score to `known` before it takes the next one.
    """
    yield Mixture()
    sides = {"p": 1, "sizes": len(PS) - 1, "weights": 2}[choose]
    spread = torch.quasirandom.SobolEngine(sides, scramble=True, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    places: dict[Candidate, Tensor] = {}
    for trial in range(1, trials):
        scored = [(candidate, score) for candidate, score in known if candidate in places]
        if trial <= trials // 2 or not scored:
            place = spread.draw(1, dtype=torch.float64)[0]
        else:
            best = places[max(scored, key=lambda pair: pair[1])[0]]
            step = 0.25 * (1 - trial / trials) + 0.03
            place = best + step * torch.randn(sides, generator=generator, dtype=torch.float64)
            place = 1 - (1 - place.abs()).abs()  # reflected at both sides
        candidate = _at(choose, place)
        places[candidate] = place
        yield candidate


def _at(choose: Choice, place: Tensor) -> Candidate:
    """Return the candidate at a point of the unit cube."""
    if choose == "p":
        return Mixture(ps=(0.05 + 0.9 * float(place[0]),))
    if choose == "weights":
        length, noise = place.tolist()
        return Smoothed(length=0.3 * 10**length, noise=0.01 * 1000**noise)  # 0.3 to 3 widths, 1 % to 10
    # Gaps between sorted uniform points are uniform on the simplex.
    cuts = torch.cat([torch.zeros(1).double(), place.sort().values, torch.ones(1).double()])
    thetas = (cuts.diff() / cuts.diff().sum()).tolist()
    return Mixture(ps=PS, thetas=tuple(thetas))
