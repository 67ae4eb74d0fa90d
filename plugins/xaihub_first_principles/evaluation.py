"""Evaluating a model at the points of a design, once for all families and targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xaihub import ExplainerRefused, Model, rounds
from xaihub.masking import Features, Removal, masked_forward_passes
from xaihub_first_principles.measures import FIXED, MeasureFamily, MeasureResult, Points, combine

CHECKS = 16  # how often the standard errors are checked during a run


@dataclass(frozen=True, kw_only=True)
class PointOutputs:
    """The (n, K) logits of a model at the points of one design over the regions of one image."""

    points: Points
    logits: Tensor

    def measure(self, family: MeasureFamily, score: Callable[[Tensor], Tensor]) -> MeasureResult:
        """Attribute `score`, which maps (n, K) logits to (n,) or (n, T), by any family that fits the points."""
        return combine(family, self.points, score(self.logits))


def evaluate_points(
    model: Model,
    image: Tensor,
    points: Points,
    *,
    features: Features,
    removals: Sequence[Removal],
    enough: Callable[[PointOutputs], bool] | None = None,
    checks: int = CHECKS,
    done: int = 0,
    total: int | None = None,
) -> PointOutputs:
    """Evaluate the model on masked copies of a (C, H, W) image; a point's values are the opacities of the regions.

    `points.base` selects the removal of each point. `enough` is called after each of `checks` parts; True ends the run
    with the points evaluated so far. For the progress bar, `done` is the rows of earlier calls and `total` those of all
    calls.

    Raises:
        ExplainerRefused: A point's base has no removal.
    """
    base = torch.zeros(len(points), dtype=torch.long) if points.base is None else points.base
    if int(base.max()) >= len(removals):
        raise ExplainerRefused(f"the points use {int(base.max()) + 1} replacements, but only {len(removals)} are given")
    total = total or done + len(points)
    logits: Tensor | None = None
    evaluated = torch.zeros(len(points), dtype=torch.bool)
    for part in _parts(points, 1 if enough is None else checks):
        for number in base[part].unique().tolist():
            rows = part[base[part] == number]
            draws = points.values[rows].float()
            batches = masked_forward_passes(
                model, image, draws, removal=removals[number], expand=features.masks, done=done, total=total
            )
            outputs = torch.cat([batch.outputs for batch in batches]).cpu()
            if logits is None:
                logits = outputs.new_zeros(len(points), outputs.shape[1])
            logits[rows] = outputs
            done += len(rows)
        evaluated[part] = True
        assert logits is not None  # noqa: S101 - a part is never empty
        found = PointOutputs(points=points.part(evaluated), logits=logits[evaluated])
        if enough is not None and not bool(evaluated.all()) and enough(found):
            break
    return found


def _parts(points: Points, count: int) -> Iterator[Tensor]:
    """Split the rows into about `count` parts of whole clusters; the first has all fixed points."""
    clusters = int(points.cluster.max()) + 1
    if clusters == 0:
        yield torch.arange(len(points))
        return
    done = FIXED
    for upto in rounds(clusters, checks=count):
        yield torch.nonzero((points.cluster >= done) & (points.cluster < upto)).squeeze(1)
        done = upto
