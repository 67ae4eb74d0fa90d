"""Regions of an image as features, on optionally shifted grids, and maps painted from their values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xaihub import Model, ParameterError
from xaihub.masking import Segments, make_features


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Features and, for a grid, the (rows,) and (columns,) centres of its cells in pixels."""

    features: Segments
    centres: tuple[Tensor, Tensor] | None = None

    def paint(self, values: Tensor, *, smooth: bool) -> Tensor:
        """Return an (H, W) map of (d,) values; smooth interpolates linearly between the centres of grid cells."""
        if not smooth or self.centres is None:
            return self.features.spread(values)
        rows, columns = (
            _hats(side, centres).to(values) for side, centres in zip(self.features.size, self.centres, strict=True)
        )
        return rows @ values.view(rows.shape[1], columns.shape[1]) @ columns.T

    def paint_errors(self, errors: Tensor, *, smooth: bool) -> Tensor:
        """Return the (H, W) standard errors of a painted map, from (d,) independent ones of its values."""
        if not smooth or self.centres is None:
            return self.features.spread(errors)
        rows, columns = (
            _hats(side, centres).to(errors).square()
            for side, centres in zip(self.features.size, self.centres, strict=True)
        )
        return (rows @ errors.square().view(rows.shape[1], columns.shape[1]) @ columns.T).sqrt()


def make_regions(kind: str, model: Model, image: Tensor, *, shifts: int, generator: torch.Generator) -> list[Regions]:
    """Return `shifts` sets of regions: the first as `make_features` returns it, the others on randomly shifted grids.

    Raises:
        ParameterError: `kind` is invalid, or has no grid to shift.
    """
    features = make_features(kind, model, image)
    name, _, number = kind.partition(":")
    if name not in ("grid", "patches"):
        if shifts > 1:
            raise ParameterError(f"features {kind!r} have no grid to shift", hint="set shifts=1")
        return [Regions(features=features)]
    sides = features.size
    cell = [side / int(number) if name == "grid" else float(number) for side in sides]
    found = [_grid(sides, cell, (0, 0))]
    if not torch.equal(found[0].features.labels, features.labels):  # the cells do not divide the sides
        found = [Regions(features=features)]
    for _ in range(shifts - 1):
        offset = [int(torch.randint(1, max(2, int(length)), (), generator=generator)) for length in cell]
        found.append(_grid(sides, cell, (offset[0], offset[1])))
    return found


def _grid(sides: tuple[int, int], cell: list[float], offset: tuple[int, int]) -> Regions:
    labels, centres = [], []
    for side, length, first in zip(sides, cell, offset, strict=True):
        number = ((torch.arange(side) + first).double() / length + 1e-9).floor().long()
        labels.append(number)
        centres.append((torch.arange(int(number[-1]) + 1) + 0.5).double() * length - first - 0.5)
    return Regions(
        features=Segments(labels[0].unsqueeze(1) * (int(labels[1][-1]) + 1) + labels[1]),
        centres=(centres[0], centres[1]),
    )


def _hats(side: int, centres: Tensor) -> Tensor:
    """Return the (side, n) weights of linear interpolation between (n,) centres, constant beyond the ends."""
    if len(centres) == 1:
        return torch.ones(side, 1, dtype=torch.float64)
    position = (torch.arange(side).double() - centres[0]) / (centres[1] - centres[0])
    position = position.clamp(0, len(centres) - 1).unsqueeze(1)
    return (1 - (position - torch.arange(len(centres))).abs()).clamp(min=0)
