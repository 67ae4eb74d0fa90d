"""Asking a model about one image at the points of a family, once for every family and target that follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xaihub import ExplainerRefused, Model
from xaihub.masking import Features, Removal, masked_forward_passes
from xaihub_first_principles.measures import FIXED, Measured, MeasureFamily, Points, measured

__all__ = ["Answers", "ask"]

LOOKS = 4  # how often a run looks whether its standard errors are small enough


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The (n, K) logits of a model at the points of one design over the regions of one image."""

    points: Points
    logits: Tensor

    def measure(self, family: MeasureFamily, score: Callable[[Tensor], Tensor]) -> Measured:
        """Attribute `score`, which maps (n, K) logits to (n,) or (n, T), by any family that fits the points."""
        return measured(family, self.points, score(self.logits))


def ask(
    model: Model,
    image: Tensor,
    points: Points,
    *,
    features: Features,
    removals: Sequence[Removal],
    enough: Callable[[Answers], bool] | None = None,
    done: int = 0,
    total: int | None = None,
) -> Answers:
    """Show `image` through masks: values of points are how much of each region is seen.

    Args:
        model: The model.
        image: (C, H, W), in the model's units.
        points: Where to ask; `points.base` picks the removal of each point.
        features: The regions.
        removals: What hidden regions become, one for each base.
        enough: Looked at after each quarter; True ends the run with the points asked so far.
        done: Rows of earlier calls, for the progress bar.
        total: Rows of all calls, for the progress bar.

    Raises:
        ExplainerRefused: A point's base has no removal.
    """
    base = torch.zeros(len(points), dtype=torch.long) if points.base is None else points.base
    if int(base.max()) >= len(removals):
        raise ExplainerRefused(f"the points use {int(base.max()) + 1} replacements, and {len(removals)} are given")
    total = total or done + len(points)
    logits: Tensor | None = None
    asked = torch.zeros(len(points), dtype=torch.bool)
    for block in _blocks(points, 1 if enough is None else LOOKS):
        for number in base[block].unique().tolist():
            rows = block[base[block] == number]
            draws = points.values[rows].float()
            batches = masked_forward_passes(
                model, image, draws, removal=removals[number], expand=features.masks, done=done, total=total
            )
            outputs = torch.cat([batch.outputs.cpu() for batch in batches])
            if logits is None:
                logits = outputs.new_zeros(len(points), outputs.shape[1])
            logits[rows] = outputs
            done += len(rows)
        asked[block] = True
        assert logits is not None  # noqa: S101 - a block is never empty
        answers = Answers(points=points.part(asked), logits=logits[asked])
        if enough is not None and not bool(asked.all()) and enough(answers):
            break
    return answers


def _blocks(points: Points, count: int) -> list[Tensor]:
    """Cut the rows into blocks of whole clusters; fixed points come first, all at once."""
    clusters = int(points.cluster.max()) + 1
    if clusters == 0:
        return [torch.arange(len(points))]
    edges = torch.linspace(0, clusters, count + 1).round().long()
    block = torch.bucketize(points.cluster.clamp(min=0), edges[1:], right=True)
    block[points.cluster == FIXED] = 0
    return [rows for number in range(count) if len(rows := torch.nonzero(block == number).squeeze(1))]
