"""Insertion and deletion (Petsiuk, Das, Saenko 2018, arXiv 1806.07421)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch

from xaihub import Case, Measurement, Meta, MetricRefused
from xaihub_metrics_curves.curves import CurveMetric, Output
from xaihub_metrics_curves.order import Direction


class _Area(CurveMetric):
    """The area under one curve by the trapezoid rule."""

    output: Output = "probability"
    normalised: Annotated[
        bool, Meta(description="Rescale the score to 0 for the baseline alone and 1 for the whole image.")
    ] = False

    direction: ClassVar[Direction]

    def score(self, case: Case) -> Measurement:
        """Return the area with its curve.

        Raises:
            MetricRefused: `normalised`, and the whole image scores no higher than the baseline.
        """
        found = self.curves(case)
        scores = found.scores(self.direction, self.output)
        ends = float(scores[0]), float(scores[-1])
        empty, whole = ends if self.direction == "show" else ends[::-1]
        if self.normalised:
            if whole <= empty:
                raise MetricRefused(
                    f"the {self.output} of the whole image, {whole:.3g}, does not exceed that of the baseline"
                    f" {self.baseline!r}, {empty:.3g}",
                    hint="use another baseline, or normalised=false",
                )
            scores = (scores - empty) / (whole - empty)
        return Measurement(
            value=float(torch.trapezoid(scores, found.fractions)),
            curve=(found.fractions.tolist(), scores.tolist()),
            details={"whole": whole, "empty": empty},
        )


class Insertion(_Area):
    """The area under the score while the image is revealed on a baseline, highest values of the map first.

    It reaches 1 if the first step restores a probability of 1.
    """

    direction = "show"
    baseline = "blur"


class Deletion(_Area):
    """The area under the score while the image is masked with a baseline, highest values of the map first.

    It approaches 0 if the first step removes all of the probability.
    """

    direction = "hide"
