"""Grid pointing game (Boehle, Fritz, Schiele 2021, arXiv 2104.00032, Sec. 4): localisation without masks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from xaihub import Case, Measurement, Meta, Metric, MetricRefused, Scene, generator_for


class GridPointing(Metric):
    """Fraction of the positive attribution that falls into the right cell of a mosaic of images."""

    needs_pool = True

    cells: Annotated[
        int, Meta(ge=2, le=8, description="Images per side of the mosaic; needs images of cells^2 - 1 other classes.")
    ] = 2

    def score(self, case: Case) -> Measurement:
        """Return the fraction, in [0, 1].

        Raises:
            MetricRefused: An image can have several classes, the run has too few others, or no pixel of the
                mosaic's map is positive.
        """
        outputs = case.model.outputs
        if not outputs.exclusive:
            raise MetricRefused(f"images without the target are unknown, because the outputs are {outputs.kind}")
        # The mosaic belongs to the image, so that all explainers see the same one.
        key = ("grid_pointing: mosaic", self.cells, case.seed)
        mosaic = case.scene.memory.once(key, lambda: make_mosaic(case.scene, self.cells, case.seed))
        explanation = case.explain(mosaic.image)
        positive = explanation.heatmap().double().clamp(min=0)
        total = positive.sum()
        if not total > 0:
            raise MetricRefused("no pixel of the mosaic's map is positive, so it has no location")
        rows, columns = mosaic.rows, mosaic.columns
        return Measurement(
            value=float(positive[rows, columns].sum() / total),
            details={
                "chance": (rows.stop - rows.start) * (columns.stop - columns.start) / positive.numel(),
                "cell": [mosaic.cell // self.cells, mosaic.cell % self.cells],
                "classes": mosaic.classes,
                "probability_in_mosaic": explanation.target.probability,
            },
        )


@dataclass(frozen=True, kw_only=True)
class Mosaic:
    """Several images in one."""

    image: Tensor  # (C, H, W), of the size of the model's input
    cell: int  # the cell of the target's image, counted row by row
    rows: slice  # the rows of its pixels
    columns: slice  # the columns of its pixels
    classes: list[int]  # the class of each cell, row by row


def make_mosaic(scene: Scene, cells: int, seed: int) -> Mosaic:
    """Combine the scene's image with cells^2 - 1 images of other, pairwise different classes.

    Raises:
        MetricRefused: The pool has too few other classes, or a cell would be empty.
    """
    height, width = scene.image.shape[1:]
    if min(height, width) < cells:
        raise MetricRefused(f"an input of {width}x{height} pixels cannot hold {cells}x{cells} images")
    # Seeded by the image as well; otherwise all images of a run were in the same cell, which a prior could know.
    generator = generator_for(f"mosaic {seed}", scene.image)
    target = int(scene.target.index[0])
    # The predicted class is excluded as well, since the pool may contain this very image.
    known = {target, int(scene.model.outputs.predicted(scene.logits[None]))}
    others: list[tuple[Tensor, int]] = []
    for position in torch.randperm(len(scene.pool), generator=generator).tolist():
        tile, predicted = scene.pool[position]
        if predicted not in known:
            known.add(predicted)
            others.append((tile, predicted))
    needed = cells**2 - 1
    if len(others) < needed:
        raise MetricRefused(
            f"a {cells}x{cells} mosaic needs images of {needed} other predicted classes; the run has {len(others)}",
            hint="evaluate more images, or use fewer cells",
        )
    cell = int(torch.randint(cells**2, (), generator=generator))
    tiles = others[:needed]
    tiles.insert(cell, (scene.image, target))
    image = torch.empty_like(scene.image)
    spans = [(rows, columns) for rows in _spans(height, cells) for columns in _spans(width, cells)]
    for (tile, _), (rows, columns) in zip(tiles, spans, strict=True):
        size = (rows.stop - rows.start, columns.stop - columns.start)
        # Scaling is linear with weights that sum to one, so it commutes with normalisation.
        image[:, rows, columns] = interpolate(
            tile[None].to(image), size=size, mode="bilinear", align_corners=False, antialias=True
        )[0]
    return Mosaic(
        image=image, cell=cell, rows=spans[cell][0], columns=spans[cell][1], classes=[label for _, label in tiles]
    )


def _spans(side: int, cells: int) -> list[slice]:
    """Split `side` pixels into `cells` spans whose lengths differ by at most one."""
    edges = [round(index * side / cells) for index in range(cells + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]
