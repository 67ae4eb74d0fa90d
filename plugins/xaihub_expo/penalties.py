"""Local fits and the penalties derived from them, as functions of drawn points and of the network's outputs there.

Notation follows the paper: m neighbours x'_j of a point x in R^d, outputs y_j in R^k; b points at once. Neighbours are
constants: gradients flow through the outputs only. Everything is computed in float32 at least, also under autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-4  # added to denominators: the square of 0.01 logits is negligible, and gradients stay finite
SMALLEST = 1e-12  # the penalty of a linear network starts at zero, which must not give an infinite weight


@dataclass(frozen=True)
class LocalFit:
    """Affine functions fitted by ordinary least squares, one per point and output."""

    coefficients: Tensor  # (b, d, k)
    intercepts: Tensor  # (b, k)
    residuals: Tensor  # (b, m, k) outputs minus fit


def calibrated(c: float, loss: float, penalty: float) -> float:
    """Return the weight that makes a penalty the fraction c of the loss: c L_0 / R_0."""
    return c * loss / max(penalty, SMALLEST)


def neighbour_outputs(network: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return the (b, m, k) outputs of (b, m, ...) points, from one forward pass."""
    outputs: Tensor = network(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    return outputs


def local_fit(points: Tensor, outputs: Tensor) -> LocalFit:
    """Fit (b, m, k) outputs by affine functions of (b, m, d) points, by QR; outputs may carry a graph.

    Both are centred first, so that float32 suffices far from the origin. If features are collinear or constant in the
    sample, the result is the minimum-norm solution, by SVD.
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


def unexplained_fraction(fit: LocalFit, outputs: Tensor) -> Tensor:
    """Return the mean squared residual of (b, m, k) outputs over their mean variance on the neighbourhood, a scalar.

    Our choice: 0 for affine functions, at most 1, and unchanged if the outputs are multiplied by a factor. The
    gradient flows through the variance as well. Both are pooled over points and outputs, so that points whose outputs
    hardly vary do not dominate.
    """
    return fit.residuals.square().mean() / (_exact(outputs).var(1, correction=0).mean() + FLOOR)


def relative_change(outputs: Tensor, reference: Tensor) -> Tensor:
    """Return the mean squared difference of (b, ..., k) outputs from their reference over the latter's mean square.

    Our choice: scaling all outputs by a factor does not change the value, so nothing is gained by shrinking them.
    """
    return squared_change(outputs, reference) / (_exact(reference).square().mean() + FLOOR)


def _decompose(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis Q (b, m, r) of the columns, and the matrix (b, d, r) from Q'Y to coefficients."""
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
