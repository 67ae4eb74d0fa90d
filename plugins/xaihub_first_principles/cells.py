"""Deep ReLU networks of two inputs, exactly: the cells on which they are affine, as polygons.

`phi = sum_P (w_P . M_P + b_P mu(P))` with the moments `mu(P)` and `M_P = int_P y dmu`. In this form the density may
have any sign, and nothing is divided by a mass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Cell", "cells_2d", "integrate_cells"]

SMALLEST = 1e-14  # cells with less area are rounding


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A convex polygon, (v, 2) corners in order, on which f(y) = w.y + b."""

    corners: Tensor
    w: Tensor
    b: float

    @property
    def area(self) -> float:
        """The polygon's area."""
        return float(_triangles(self.corners)[1].sum())


def cells_2d(layers: Sequence[tuple[Tensor, Tensor]], *, output: int = 0) -> list[Cell]:
    """Return the affine cells in [0, 1]^2 of a ReLU MLP of (weight, bias) layers."""
    square = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    pieces = [(square, torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))]
    for weight, bias in layers[:-1]:
        following = []
        for polygon, A, c in pieces:
            Z, z = weight.double() @ A, weight.double() @ c + bias.double()
            for part in _split(polygon, Z, z):
                active = (part.mean(0) @ Z.T + z > 0).double()
                following.append((part, active.unsqueeze(1) * Z, active * z))
        pieces = following
    last, constant = layers[-1][0][output].double(), float(layers[-1][1][output])
    return [Cell(corners=polygon, w=last @ A, b=float(last @ c) + constant) for polygon, A, c in pieces]


def integrate_cells(cells: Sequence[Cell], density: Callable[[Tensor], Tensor] | None = None) -> float:
    """Integrate f over [0, 1]^2 against a density, (n, 2) to (n,), that is affine; by default uniform.

    Edge midpoints of triangles are exact up to degree two, so for an affine density times an affine piece.
    """
    total = 0.0
    for cell in cells:
        middles, areas = _triangles(cell.corners)  # (t, 3, 2), (t,)
        points = middles.flatten(0, 1)
        weights = (areas / 3).repeat_interleave(3)
        if density is not None:
            weights = weights * density(points)
        mass, moment = float(weights.sum()), weights @ points
        total += float(cell.w @ moment) + cell.b * mass
    return total


def _split(polygon: Tensor, Z: Tensor, z: Tensor) -> list[Tensor]:
    """Cut a polygon by the lines Z y + z = 0, one unit after the other."""
    parts = [polygon]
    for row, level in zip(Z, z, strict=True):
        cut = [_clip(part, side * row, side * level) for part in parts for side in (1, -1)]
        parts = [part for part in cut if len(part) > 2 and float(_triangles(part)[1].sum()) > SMALLEST]
    return parts


def _clip(polygon: Tensor, normal: Tensor, level: Tensor) -> Tensor:
    """Keep the side on which normal.y + level >= 0 (Sutherland and Hodgman 1974)."""
    height = polygon @ normal + level
    corners = []
    for k in range(len(polygon)):
        here, there = height[k], height[(k + 1) % len(polygon)]
        if here >= 0:
            corners.append(polygon[k])
        if (here < 0 < there) or (there < 0 < here):
            share = here / (here - there)
            corners.append(polygon[k] + share * (polygon[(k + 1) % len(polygon)] - polygon[k]))
    return torch.stack(corners) if corners else polygon[:0]


def _triangles(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (t, 3, 2) edge midpoints and the (t,) areas of a fan of triangles."""
    first, second, third = corners[:1].expand(len(corners) - 2, 2), corners[1:-1], corners[2:]
    one, two = second - first, third - first
    areas = (one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]).abs() / 2
    return torch.stack([(first + second) / 2, (second + third) / 2, (third + first) / 2], 1), areas
