"""The paper's three penalties on rows of a table: neighbours are drawn from N(x, sigma^2 I)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xaihub_expo.penalties import line_fit, local_fit, neighbour_outputs, squared_change

Network = Callable[[Tensor], Tensor]
FEW = 20  # the minimum number of neighbours, and the number along a line (stated: the authors' code)


def gaussian_neighbours(points: Tensor, samples: int, sigma: float, generator: torch.Generator) -> Tensor:
    """Draw (b, m, d) neighbours of (b, d) points; the points themselves are not among them."""
    noise = torch.randn(len(points), samples, points.shape[1], generator=generator)
    return points.unsqueeze(1) + sigma * noise.to(points)


def line_neighbours(
    points: Tensor, samples: int, sigma: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Move (b, d) points along one random feature each, by N(0, sigma^2).

    Returns:
        (b, m, d) neighbours, (b, m) steps, (b,) features.
    """
    features = torch.randint(points.shape[1], (len(points),), generator=generator)
    steps = (sigma * torch.randn(len(points), samples, generator=generator)).to(points)
    axis = torch.nn.functional.one_hot(features, points.shape[1]).to(points)
    return points.unsqueeze(1) + steps.unsqueeze(2) * axis.unsqueeze(1), steps, features


def penalise_fidelity(
    network: Network, points: Tensor, *, generator: torch.Generator, sigma: float = 0.5, samples: int | None = None
) -> Tensor:
    """Return ExpO-Fidelity of (b, d) points: the mean squared residual of the local affine fits.

    `samples` neighbours per point, by default the paper's max(20, 2 d), are drawn with standard deviation `sigma`.
    """
    neighbours = gaussian_neighbours(points, samples or max(FEW, 2 * points.shape[1]), sigma, generator)
    return local_fit(neighbours, neighbour_outputs(network, neighbours)).residuals.square().mean()


def penalise_line(
    network: Network, points: Tensor, *, generator: torch.Generator, sigma: float = 0.5, samples: int = FEW
) -> Tensor:
    """Return ExpO-1D-Fidelity of (b, d) points: as ExpO-Fidelity, along one random feature per point."""
    neighbours, steps, _ = line_neighbours(points, samples, sigma, generator)
    return line_fit(steps, neighbour_outputs(network, neighbours)).residuals.square().mean()


def penalise_stability(
    network: Network, points: Tensor, *, generator: torch.Generator, sigma: float = 0.5, samples: int = 1
) -> Tensor:
    """Return ExpO-Stability of (b, d) points: the mean squared change of the outputs."""
    neighbours = gaussian_neighbours(points, samples, sigma, generator)
    outputs = neighbour_outputs(network, torch.cat([points.unsqueeze(1), neighbours], 1))
    return squared_change(outputs[:, 1:], outputs[:, :1])
