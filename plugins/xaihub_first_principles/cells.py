"""Deep ReLU networks of two to four inputs, exactly: the cells on which they are affine, as convex polytopes.

A cell is kept by its corners. A unit's hyperplane cuts it where corners lie on both sides, and a half is the hull of
the corners on its side and of the points where segments between the sides cross. No linear programme is solved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from xaihub import ExplainerRefused

__all__ = ["DIMENSIONS", "Cell", "cells", "integrate_cells"]

DIMENSIONS = (2, 3, 4)
SMALLEST = 1e-14  # cells with less volume are rounding
FLAT = 1e-12  # corners nearer than this to a hyperplane lie in it
MOST = 200_000  # cells

Layers = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A convex cell, cut into (t, d + 1, d) simplices of (t,) volumes, on which f(y) = w.y + b.

    Attributes:
        corners: (v, d).
        simplices: A fan around a point inside.
        volumes: Of the simplices.
        w: (d,) weights.
        b: The constant.
    """

    corners: Tensor
    simplices: Tensor
    volumes: Tensor
    w: Tensor
    b: float

    @property
    def volume(self) -> float:
        """The cell's volume."""
        return float(self.volumes.sum())


def cells(layers: Layers, *, output: int = 0) -> list[Cell]:
    """Return the affine cells in [0, 1]^d of a ReLU MLP of (weight, bias) layers.

    Raises:
        ExplainerRefused: d is not 2, 3 or 4, or there are too many cells.
    """
    d = layers[0][0].shape[1]
    if d not in DIMENSIONS:
        raise ExplainerRefused(f"cells are built in two to four dimensions, and this network has {d} inputs")
    cube = torch.tensor(list(product((0.0, 1.0), repeat=d)), dtype=torch.float64)
    pieces = [(cube, torch.eye(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64))]
    for weight, bias in layers[:-1]:
        following = []
        for corners, A, c in pieces:
            Z, z = weight.double() @ A, weight.double() @ c + bias.double()
            for part in _split(corners, Z, z):
                active = (part.mean(0) @ Z.T + z > 0).double()
                following.append((part, active.unsqueeze(1) * Z, active * z))
        pieces = following
        if len(pieces) > MOST:
            raise ExplainerRefused(f"the network has more than {MOST} affine cells", hint="use points of a family")
    last, constant = layers[-1][0][output].double(), float(layers[-1][1][output])
    found = []
    for corners, A, c in pieces:
        simplices, volumes = _fan(corners)
        found.append(
            Cell(corners=corners, simplices=simplices, volumes=volumes, w=last @ A, b=float(last @ c) + constant)
        )
    return found


def integrate_cells(found: Sequence[Cell], density: Callable[[Tensor], Tensor] | None = None) -> float:
    """Integrate f over [0, 1]^d against a density, (n, d) to (n,), that is affine; by default uniform.

    `sum_P (w_P . M_P + b_P mu(P))` with the moments mu(P) and M_P = int_P y dmu, so a density may have any sign. Over a
    simplex `int g h = V (sum g_i sum h_i + sum g_i h_i) / ((d + 1) (d + 2))` for affine g and h, over its corners i.
    """
    total = 0.0
    for cell in found:
        t, corners, d = cell.simplices.shape
        points = cell.simplices
        g = torch.ones(t, corners, dtype=torch.float64)
        if density is not None:
            g = density(points.flatten(0, 1)).view(t, corners)
        mass = float((cell.volumes * g.mean(1)).sum())
        products = g.sum(1, keepdim=True) * points.sum(1) + (g.unsqueeze(2) * points).sum(1)  # (t, d)
        moment = (cell.volumes.unsqueeze(1) * products).sum(0) / ((d + 1) * (d + 2))
        total += float(cell.w @ moment) + cell.b * mass
    return total


def _split(corners: Tensor, Z: Tensor, z: Tensor) -> list[Tensor]:
    """Cut a cell by the hyperplanes Z y + z = 0, one unit after the other."""
    parts = [corners]
    for row, level in zip(Z, z, strict=True):
        length = row.norm()
        if float(length) < FLAT:
            continue
        following = []
        for part in parts:
            height = (part @ row + level) / length
            above, below = height > FLAT, height < -FLAT
            if not bool(above.any()) or not bool(below.any()):
                following.append(part)
                continue
            high, low = height[above].unsqueeze(1), height[below].unsqueeze(0)
            share = (high / (high - low)).unsqueeze(2)  # (a, b, 1)
            crossing = (part[above].unsqueeze(1) * (1 - share) + part[below].unsqueeze(0) * share).flatten(0, 1)
            within = part[~above & ~below]
            halves = [_hull(torch.cat([part[side], within, crossing])) for side in (above, below)]
            following += [half for half in halves if half is not None]
        parts = following
    return parts


def _hull(points: Tensor) -> Tensor | None:
    """Return the corners of the points' convex hull; None if it is flat."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        hull = ConvexHull(points.numpy())
    except QhullError:
        return None
    return points[torch.from_numpy(hull.vertices.astype("int64"))] if hull.volume > SMALLEST else None


def _fan(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Cut a convex cell into simplices between its middle and the triangles of its hull; return their volumes too."""
    from scipy.spatial import ConvexHull

    faces = torch.from_numpy(ConvexHull(corners.numpy()).simplices.astype("int64"))  # (t, d)
    middle = corners.mean(0).expand(len(faces), 1, -1)
    simplices = torch.cat([middle, corners[faces]], 1)
    sides = simplices[:, 1:] - simplices[:, :1]
    factorial = float(torch.lgamma(torch.tensor(corners.shape[1] + 1.0, dtype=torch.float64)).exp())
    return simplices, torch.linalg.det(sides).abs() / round(factorial)
