"""The linear regions of deep ReLU networks with two to four inputs, as convex polytopes given by their corners.

A unit's hyperplane splits a region that has corners on both sides; each half is the hull of the corners on its side and
of the points where segments between the sides cross the hyperplane. No linear programme is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import factorial

import torch
from torch import Tensor

from xaihub import ExplainerRefused

DIMENSIONS = (2, 3, 4)
SMALLEST = 1e-14  # smaller volumes are rounding errors
FLAT = 1e-12  # corners nearer than this to a hyperplane lie in it
MAX_REGIONS = 200_000

Layers = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LinearRegion:
    """A convex region on which f(y) = w.y + b."""

    corners: Tensor  # (v, d)
    centroid: Tensor  # (d,) centre of mass
    volume: float
    w: Tensor  # (d,) weights
    b: float  # the constant

    @property
    def integral(self) -> float:
        """The integral of f over the region."""
        return self.volume * (float(self.w @ self.centroid) + self.b)


def linear_regions(layers: Layers) -> list[LinearRegion]:
    """Return the linear regions in [0, 1]^d of a ReLU MLP of (weight, bias) layers with one output.

    Raises:
        ExplainerRefused: d is not 2, 3 or 4, or there are too many regions.
    """
    d = layers[0][0].shape[1]
    if d not in DIMENSIONS:
        raise ExplainerRefused(f"linear regions need two to four dimensions, and this network has {d} inputs")
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
        if len(pieces) > MAX_REGIONS:
            raise ExplainerRefused(f"the network has more than {MAX_REGIONS} linear regions", hint="omit exact")
    last, constant = layers[-1][0][0].double(), float(layers[-1][1][0])
    return [
        LinearRegion(corners, *_centre_of_mass(corners), last @ A, float(last @ c) + constant)
        for corners, A, c in pieces
    ]


def _split(corners: Tensor, Z: Tensor, z: Tensor) -> list[Tensor]:
    """Split a region by the hyperplanes Z y + z = 0, one unit after the other."""
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
            fraction = (high / (high - low)).unsqueeze(2)  # (a, b, 1)
            crossing = (part[above].unsqueeze(1) * (1 - fraction) + part[below].unsqueeze(0) * fraction).flatten(0, 1)
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


def _centre_of_mass(corners: Tensor) -> tuple[Tensor, float]:
    """Return a region's centroid and volume, from the simplices between its middle and the facets of its hull."""
    from scipy.spatial import ConvexHull

    faces = torch.from_numpy(ConvexHull(corners.numpy()).simplices.astype("int64"))  # (t, d)
    middle = corners.mean(0).expand(len(faces), 1, -1)
    simplices = torch.cat([middle, corners[faces]], 1)
    volumes = torch.linalg.det(simplices[:, 1:] - simplices[:, :1]).abs() / factorial(corners.shape[1])
    volume = volumes.sum()
    return volumes @ simplices.mean(1) / volume, float(volume)
