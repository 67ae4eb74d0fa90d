"""The three penalties as pure functions of drawn points and of what the network says about them.

Notation follows the paper: m neighbours x'_j of a point x in R^d, outputs y_j in R^k; b points at once. Neighbours are
constants: gradients flow through the outputs only. Everything is computed in float32 at least, also under autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "LocalFit",
    "default_samples",
    "gaussian_neighbours",
    "line_fit",
    "line_neighbours",
    "local_fit",
    "penalise_fidelity",
    "penalise_line",
    "penalise_stability",
    "relative_change",
    "share_missed",
    "squared_change",
]

Network = Callable[[Tensor], Tensor]
FEW = 20  # the least number of neighbours, and that of the penalty along a line (the authors' settings)
FLOOR = 1e-4  # added to what relative penalties divide by: (0.01)^2 of a logit is nothing, and gradients stay finite


@dataclass(frozen=True)
class LocalFit:
    """Affine functions fitted by ordinary least squares, one a point and an output.

    Attributes:
        coefficients: (b, d, k).
        intercepts: (b, k).
        residuals: (b, m, k) outputs minus fit.
    """

    coefficients: Tensor
    intercepts: Tensor
    residuals: Tensor


def default_samples(features: int) -> int:
    """Return the paper's number of neighbours for d features: max(20, 2 d)."""
    return max(FEW, 2 * features)


def local_fit(points: Tensor, outputs: Tensor) -> LocalFit:
    """Fit (b, m, k) outputs by affine functions of (b, m, d) points.

    Both are centred first, so that float32 is enough wherever the points lie, and the fit is a QR decomposition; where
    features are collinear or constant in the sample it is the shortest solution, by SVD. Outputs may carry a graph.
    """
    X, Y = _exact(points.detach()), _exact(outputs)
    with torch.autocast(Y.device.type, enabled=False):
        X = X.to(Y.dtype)
        first = X[:, :1]
        near = X - first  # far from the origin the mean itself would be rounded
        middle = near.mean(1, keepdim=True)
        near = near - middle
        level = Y.mean(1, keepdim=True)
        basis, solve = _decompose(near)
        along = basis.mT @ (Y - level)  # (b, d, k)
        coefficients = solve @ along
        residuals = Y - level - basis @ along
        intercepts = (level - (first + middle) @ coefficients).squeeze(1)
    return LocalFit(coefficients, intercepts, residuals)


def line_fit(positions: Tensor, outputs: Tensor) -> LocalFit:
    """Fit (b, m, k) outputs by affine functions of (b, m) positions, in closed form."""
    t, Y = _exact(positions.detach()), _exact(outputs)
    with torch.autocast(Y.device.type, enabled=False):
        t = t.to(Y.dtype).unsqueeze(2)
        middle, level = t.mean(1, keepdim=True), Y.mean(1, keepdim=True)
        offset = t - middle
        spread = offset.square().sum(1, keepdim=True)
        tiny = torch.finfo(Y.dtype).tiny  # one single position: no slope
        slope = (offset * (Y - level)).sum(1, keepdim=True) / spread.clamp(min=tiny)
        residuals = Y - level - offset * slope
    return LocalFit(slope, (level - middle * slope).squeeze(1), residuals)


def squared_change(outputs: Tensor, reference: Tensor) -> Tensor:
    """Return the mean squared difference of (b, ..., k) outputs from their reference, a scalar."""
    return (_exact(outputs) - _exact(reference)).square().mean()


def share_missed(fit: LocalFit, outputs: Tensor) -> Tensor:
    """Return the mean squared residual of (b, m, k) outputs over their mean variance on the neighbourhood, a scalar.

    Our extension: 0 for affine functions, at most 1, and whatever factor the outputs are multiplied by, the same. The
    gradient flows through the variance as well, so that it is orthogonal to that factor; both are pooled over points
    and outputs, so that what hardly varies does not count as much as what does.
    """
    return fit.residuals.square().mean() / (_exact(outputs).var(1, correction=0).mean() + FLOOR)


def relative_change(outputs: Tensor, reference: Tensor) -> Tensor:
    """Return the mean squared difference of (b, ..., k) outputs from their reference over the latter's mean square.

    Our extension: multiplying all outputs by a factor changes nothing, neither the value nor through the gradient.
    """
    return squared_change(outputs, reference) / (_exact(reference).square().mean() + FLOOR)


def gaussian_neighbours(points: Tensor, samples: int, sigma: float, generator: torch.Generator) -> Tensor:
    """Draw (b, m, d) neighbours of (b, d) points from N(x, sigma^2 I); the point itself is not among them."""
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
    """Return ExpO-Fidelity of (b, d) points: the mean squared residual of the local affine fits, a scalar."""
    neighbours = gaussian_neighbours(points, samples or default_samples(points.shape[1]), sigma, generator)
    return local_fit(neighbours, ask(network, neighbours)).residuals.square().mean()


def penalise_line(
    network: Network, points: Tensor, *, generator: torch.Generator, sigma: float = 0.5, samples: int = FEW
) -> Tensor:
    """Return ExpO-1D-Fidelity of (b, d) points: as ExpO-Fidelity, along one random feature a point."""
    neighbours, steps, _ = line_neighbours(points, samples, sigma, generator)
    return line_fit(steps, ask(network, neighbours)).residuals.square().mean()


def penalise_stability(
    network: Network,
    points: Tensor,
    *,
    generator: torch.Generator,
    sigma: float = 0.5,
    samples: int = 1,
    stop_gradient: bool = False,
) -> Tensor:
    """Return ExpO-Stability of (b, d) points: the mean squared change of the outputs, a scalar."""
    neighbours = gaussian_neighbours(points, samples, sigma, generator)
    everything = ask(network, torch.cat([points.unsqueeze(1), neighbours], 1))
    here = everything[:, :1].detach() if stop_gradient else everything[:, :1]
    return squared_change(everything[:, 1:], here)


def ask(network: Network, points: Tensor) -> Tensor:
    """Return the (b, m, k) outputs of (b, m, ...) points, from one forward pass."""
    outputs: Tensor = network(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    return outputs


def _decompose(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis Q (b, m, r) of the columns, and what turns Q'Y into coefficients (b, d, r)."""
    rows, columns = centred.shape[1:]
    if rows > columns:
        basis, triangle = torch.linalg.qr(centred)
        diagonal = triangle.diagonal(dim1=1, dim2=2).abs()
        limit = diagonal.amax(1) * rows * torch.finfo(centred.dtype).eps
        if bool((diagonal.amin(1) > limit).all()):
            identity = torch.eye(columns).to(centred).expand_as(triangle)
            return basis, torch.linalg.solve_triangular(triangle, identity, upper=True)
    basis, sizes, turn = torch.linalg.svd(centred, full_matrices=False)
    kept = sizes > sizes.amax(1, keepdim=True) * max(rows, columns) * torch.finfo(centred.dtype).eps
    inverse = torch.where(kept, 1 / torch.where(kept, sizes, 1), 0)
    return basis * kept.unsqueeze(1), turn.mT * inverse.unsqueeze(1)


def _exact(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
