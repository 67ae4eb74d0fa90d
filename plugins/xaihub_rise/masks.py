"""RISE's random masks: coarse grids of visible cells, enlarged bilinearly and cropped at a random shift (Sec. 3.2).

A mask is `rows @ grid @ columns.T`: enlarging and cropping act on rows and columns separately, so sums of masks and
their covariance need no masks at the size of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256  # masks that are summed at a time


@dataclass(frozen=True, kw_only=True)
class RandomMasks:
    """The law of the masks of images of one size.

    Attributes:
        size: (H, W) of the image.
        cell: Cells per side of the grid (s in the paper).
        keep: Probability that a cell is visible (p in the paper), which is the mean of a mask at every pixel.
    """

    size: tuple[int, int]
    cell: int
    keep: float

    def draw(self, count: int, generator: torch.Generator, *, paired: bool) -> Tensor:
        """Draw (n, 2 + s^2) rows: a random shift of less than one cell, and the visible cells.

        Paired, neighbouring rows share the shift, and their cells come from u and 1 - u: complements if p is one half.
        """
        drawn = (count + 1) // 2 if paired else count
        uniform = torch.rand(drawn, self.cell**2, generator=generator)
        limits = [_cell_pixels(side, self.cell) for side in self.size]
        shifts = torch.stack([torch.randint(0, limit, (drawn,), generator=generator) for limit in limits], 1).float()
        rows = torch.cat([shifts, (uniform < self.keep).float()], 1)
        if not paired:
            return rows
        opposite = torch.cat([shifts, (1 - uniform <= self.keep).float()], 1)
        return torch.stack([rows, opposite], 1).flatten(0, 1)[:count]

    def expand(self, draws: Tensor) -> Tensor:
        """Return the (n, 1, H, W) masks."""
        rows, grids, columns = self._factors(draws)
        return (rows @ grids @ columns.transpose(1, 2)).unsqueeze(1)

    def at_points(self, draws: Tensor) -> Tensor:
        """Return the masks at the centres of s x s equal cells of the image: (n, s^2)."""
        rows, grids, columns = self._factors(draws)
        across = [factor[:, points] for factor, points in zip((rows, columns), self._points(), strict=True)]
        return (across[0] @ grids @ across[1].transpose(1, 2)).flatten(1)

    def weighted_sum(self, draws: Tensor, weights: Tensor) -> Tensor:
        """Return the (H, W) sum of the masks with (n,) weights."""
        total = torch.zeros(self.size, dtype=torch.float64)
        for start in range(0, len(draws), BLOCK):
            rows, grids, columns = self._factors(draws[start : start + BLOCK])
            scaled = rows @ (grids * weights[start : start + BLOCK, None, None].to(grids))
            # One product over masks and cells.
            total += scaled.permute(1, 0, 2).flatten(1) @ columns.permute(0, 2, 1).flatten(0, 1)
        return total

    def covariance_with(self, coefficients: Tensor) -> Tensor:
        """Return the (H, W) covariance of a mask with the sum of its values at the points, times (s^2,) coefficients.

        For one shift a mask is a sum of independent cells times fixed fractions, so the covariance of two pixels is
        p (1 - p) times the sum of the products of their fractions; over shifts these are averaged. Derived.
        """
        rows, columns = (
            factors.transpose(1, 2).flatten(0, 1).T @ factors[:, points].transpose(1, 2).flatten(0, 1) / len(factors)
            for factors, points in zip(self._all_shifts(), self._points(), strict=True)
        )
        grid = coefficients.double().view(self.cell, self.cell)
        return self.keep * (1 - self.keep) * (rows @ grid @ columns.T)

    def _factors(self, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (n, H, s), (n, s, s) and (n, W, s)."""
        rows, columns = (self._fractions(draws[:, axis], side) for axis, side in enumerate(self.size))
        return rows, draws[:, 2:].view(-1, self.cell, self.cell), columns

    def _fractions(self, shifts: Tensor, side: int) -> Tensor:
        """Return how much of each cell a pixel of the cropped grid has along one axis: (n, side, s), which sum to 1."""
        pixels = shifts.unsqueeze(1) + torch.arange(side, device=shifts.device) + 0.5
        enlarged = (self.cell + 1) * _cell_pixels(side, self.cell)
        centres = (pixels / enlarged * self.cell - 0.5).clamp(0, self.cell - 1)  # edges are repeated
        cells = torch.arange(self.cell, device=shifts.device)
        return (1 - (centres.unsqueeze(2) - cells).abs()).clamp(min=0)

    def _all_shifts(self) -> list[Tensor]:
        return [self._fractions(torch.arange(_cell_pixels(side, self.cell)).double(), side) for side in self.size]

    def _points(self) -> list[Tensor]:
        return [((torch.arange(self.cell) + 0.5) * side / self.cell).long().clamp(max=side - 1) for side in self.size]


def _cell_pixels(side: int, cells: int) -> int:
    return -(-side // cells)  # rounded up: CH = ceil(H / s)
