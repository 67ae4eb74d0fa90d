"""Insertion and deletion (Petsiuk, Das, Saenko 2018, arXiv 1806.07421)."""

from __future__ import annotations

from typing import Annotated

import torch

from xaihub import Case, Measurement, Meta, Metric, MetricRefused
from xaihub.masking import BaselineName
from xaihub_metrics_curves.curves import Output, Steps, curves
from xaihub_metrics_curves.order import Direction, Patch, Unit

__all__ = ["Deletion", "Insertion"]

Normalised = Annotated[
    bool,
    Meta(description="Rescale the score so that the baseline alone counts 0 and the whole image 1."),
]


class _Area(Metric):
    """The area under one curve by the trapezoid rule."""

    steps: int
    unit: str
    patch: int
    baseline: str
    output: str
    normalised: bool

    def _area(self, case: Case, direction: Direction) -> Measurement:
        found = curves(case, steps=self.steps, unit=self.unit, patch=self.patch, baseline=self.baseline)
        scores = found.scores(direction, self.output)
        ends = (float(scores[-1]), float(scores[0])) if direction == "hide" else (float(scores[0]), float(scores[-1]))
        nothing, whole = ends
        if self.normalised:
            if whole <= nothing:
                raise MetricRefused(
                    f"the {self.output} of the whole image, {whole:.3g}, is no higher than that of the baseline"
                    f" {self.baseline!r}, {nothing:.3g}",
                    hint="use another baseline, or normalised=false",
                )
            scores = (scores - nothing) / (whole - nothing)
        return Measurement(
            value=float(torch.trapezoid(scores, found.shares)),
            curve=(found.shares.tolist(), scores.tolist()),
            details={"whole": whole, "hidden": nothing},
        )


class Insertion(_Area):
    """Show the image on a baseline, highest values of the map first: the area under the score.

    1 is reached by a map whose first step brings back all of a probability of 1.
    """

    steps: Steps = 28
    unit: Unit = "pixels"
    patch: Patch = 16
    baseline: BaselineName = "blur"
    output: Output = "probability"
    normalised: Normalised = False

    def score(self, case: Case) -> Measurement:
        """Return the area with its curve.

        Raises:
            MetricRefused: `normalised`, and the whole image scores no higher than the baseline.
        """
        return self._area(case, "show")


class Deletion(_Area):
    """Hide the image with a baseline, highest values of the map first: the area under the score.

    0 is approached by a map whose first step takes all of the probability away.
    """

    steps: Steps = 28
    unit: Unit = "pixels"
    patch: Patch = 16
    baseline: BaselineName = "zero"
    output: Output = "probability"
    normalised: Normalised = False

    def score(self, case: Case) -> Measurement:
        """Return the area with its curve.

        Raises:
            MetricRefused: `normalised`, and the whole image scores no higher than the baseline.
        """
        return self._area(case, "hide")
