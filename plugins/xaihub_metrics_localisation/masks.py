"""Localisation against masks.

Pointing game: Zhang et al. 2016 (arXiv 1608.00507). Relevance mass and rank: Arras, Osman, Samek 2022 (arXiv
2003.07258). With tied pixels the score is the mean over all their orders, so a constant map scores at chance level.
"""

from __future__ import annotations

from typing import Annotated

import torch
from skimage.morphology import isotropic_dilation
from torch import Tensor

from xaihub import Case, Measurement, Meta, Metric, MetricRefused


class PointingGame(Metric):
    """Whether the map's maximum lies on the mask, or within `tolerance` pixels of it."""

    needs_truth = True

    tolerance: Annotated[
        float, Meta(ge=0, description="Maximum distance of the peak from the mask, in pixels; 15 in the paper.")
    ] = 15

    def score(self, case: Case) -> Measurement:
        """Return 1 for a hit and 0 for a miss, or the fraction of hits among tied peaks.

        Raises:
            MetricRefused: The mask is empty, or every pixel would be a hit.
        """
        near = torch.from_numpy(isotropic_dilation(_mask(case).numpy(), self.tolerance))
        chance = near.double().mean().item()
        if chance == 1:
            raise MetricRefused(
                f"every pixel lies within {self.tolerance:g} pixels of the mask", hint="use a smaller tolerance"
            )
        peaks = case.heat == case.heat.max()
        return Measurement(value=near[peaks].double().mean().item(), details={"chance": chance})


class RelevanceMass(Metric):
    """Fraction of the positive attribution inside the mask."""

    needs_truth = True

    def score(self, case: Case) -> Measurement:
        """Return the fraction, in [0, 1].

        Raises:
            MetricRefused: The mask is empty or the whole image, or no pixel is positive.
        """
        mask = _mask(case)
        positive = case.heat.double().clamp(min=0)
        total = positive.sum()
        if not total > 0:
            raise MetricRefused("no pixel of the map is positive, so it has no mass")
        return Measurement(value=float(positive[mask].sum() / total), details={"chance": mask.double().mean().item()})


class RelevanceRank(Metric):
    """Fraction of the mask's K pixels that are among the K largest of the map."""

    needs_truth = True

    def score(self, case: Case) -> Measurement:
        """Return the fraction, in [0, 1].

        Raises:
            MetricRefused: The mask is empty or the whole image.
        """
        mask = _mask(case)
        size = int(mask.sum())
        last = case.heat.flatten().topk(size).values[-1]
        above, tied = case.heat > last, case.heat == last
        places = size - int(above.sum())  # left for the tied pixels
        hits = int((above & mask).sum()) + places * mask[tied].double().mean().item()
        return Measurement(value=hits / size, details={"chance": mask.double().mean().item()})


def _mask(case: Case) -> Tensor:
    """Return the (H, W) bool mask on the CPU; refuse one that marks nothing, or everything."""
    truth = case.scene.truth
    assert truth is not None  # noqa: S101 - `needs_truth`: the base class has refused
    if truth.shape != case.heat.shape:
        raise MetricRefused(f"the mask has the shape {tuple(truth.shape)}, the map {tuple(case.heat.shape)}")
    mask = truth.bool().cpu()
    if not mask.any():
        raise MetricRefused("the mask is empty within the model's crop of the image")
    if mask.all():
        raise MetricRefused("the mask covers the model's whole input, so every map scores 1")
    return mask
