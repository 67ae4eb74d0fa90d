"""Candidate measures in a few parameters, and a search that asks for one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xaihub_first_principles.masks import Mixture
from xaihub_first_principles.measures import Points

__all__ = ["PS", "Candidate", "Choice", "Mixed", "Smoothed", "propose", "smoothing_weights"]

Choice = Literal["p", "sizes", "weights"]
PS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the keep-p measures that are mixed


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """A mixture of keep-p measures."""

    ps: tuple[float, ...] = (0.5,)
    thetas: tuple[float, ...] = (1.0,)

    @property
    def parameters(self) -> dict[str, float]:
        """Shares by p; p itself if there is only one."""
        if len(self.ps) == 1:
            return {"p": self.ps[0]}
        return {f"share of p = {p:g}": theta for p, theta in zip(self.ps, self.thetas, strict=True)}

    def weights(self, points: Points, places: Tensor) -> Tensor:  # noqa: ARG002
        """Return the (n, d) weights."""
        return Mixture(ps=self.ps, thetas=self.thetas).weights(points)


@dataclass(frozen=True, kw_only=True)
class Smoothed:
    """Weights of a regression that takes effects of near regions to be alike.

    Attributes:
        length: Over how many regions' widths they are.
        noise: Variance of what the regression leaves over, as a share of the variance of what it explains.
    """

    length: float
    noise: float

    @property
    def parameters(self) -> dict[str, float]:
        """Both."""
        return {"length": self.length, "noise": self.noise}

    def weights(self, points: Points, places: Tensor) -> Tensor:
        """Return the (n, d) weights."""
        assert points.masks is not None  # noqa: S101 - designs of masks only come here
        return smoothing_weights(points.masks, places, length=self.length, noise=self.noise)


Candidate = Mixed | Smoothed


def smoothing_weights(masks: Tensor, places: Tensor, *, length: float, noise: float) -> Tensor:
    """Return (n, d) weights of mass 0: the posterior mean of regions' effects in a Gaussian process.

    `phi = C Z' (Z C Z' + lambda I)^-1 (F - mean F)`, with Z the centred masks and C_jk = exp(-|c_j - c_k|^2 / 2 l^2).

    Args:
        masks: (n, d).
        places: (d, 2) centres of the regions, in widths of a region.
        length: l.
        noise: lambda, as a share of the mean of Z C Z' on the diagonal.
    """
    Z = masks.double()
    Z = Z - Z.mean(0)
    C = (-torch.cdist(places.double(), places.double()).square() / (2 * length**2)).exp()
    CZ = C @ Z.T
    K = Z @ CZ
    K += noise * K.diagonal().mean() * torch.eye(len(K), dtype=torch.float64)
    weights: Tensor = torch.linalg.solve(K, CZ.T)
    return weights - weights.mean(0)


def propose(choose: Choice, trials: int, seed: int, known: Sequence[tuple[Candidate, float]]) -> Iterator[Candidate]:
    """Yield candidates: keep-p at 0.5, then evenly spread ones, then ever closer to the best of those `known`.

    Args:
        choose: Which parameters there are.
        trials: Number of candidates in all.
        seed: Of the search.
        known: Candidates with their scores; the caller adds to it between one candidate and the next.
    """
    yield Mixed()
    sides = {"p": 1, "sizes": len(PS) - 1, "weights": 2}[choose]
    spread = torch.quasirandom.SobolEngine(sides, scramble=True, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    places: dict[Candidate, Tensor] = {}
    for trial in range(1, trials):
        judged = [(candidate, score) for candidate, score in known if candidate in places]
        if trial <= trials // 2 or not judged:
            place = spread.draw(1, dtype=torch.float64)[0]
        else:
            best = places[max(judged, key=lambda pair: pair[1])[0]]
            step = 0.25 * (1 - trial / trials) + 0.03
            place = best + step * torch.randn(sides, generator=generator, dtype=torch.float64)
            place = 1 - (1 - place.abs()).abs()  # reflected at both sides
        candidate = _at(choose, place)
        places[candidate] = place
        yield candidate


def _at(choose: Choice, place: Tensor) -> Candidate:
    """Return the candidate at a point of the unit cube."""
    if choose == "p":
        return Mixed(ps=(0.05 + 0.9 * float(place[0]),))
    if choose == "weights":
        length, noise = place.tolist()
        return Smoothed(length=0.3 * 10**length, noise=0.01 * 1000**noise)  # 0.3 to 3 widths, 1 % to 10
    # Gaps between sorted points of [0, 1] are spread evenly over the simplex.
    cuts = torch.cat([torch.zeros(1).double(), place.sort().values, torch.ones(1).double()])
    thetas = (cuts.diff() / cuts.diff().sum()).tolist()
    return Mixed(ps=PS, thetas=tuple(thetas))
