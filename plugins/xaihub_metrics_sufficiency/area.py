"""How many pixels an explanation says are enough, and how much confidence they lose."""

from __future__ import annotations

from xaihub import Case, Measurement, Metric, MetricRefused
from xaihub_metrics_sufficiency.sets import Baseline, Confidence, Pixels, SufficientSet, answers

__all__ = ["SufficientArea", "SufficientDrop"]


class SufficientArea(Metric):
    """The share of the image that the explanation needs to keep the answer."""

    confidence: Confidence = 0.0
    baseline: Baseline = "auto"
    pixels: Pixels = "returned"

    def score(self, case: Case) -> Measurement:
        """Return the area of the set.

        Raises:
            MetricRefused: The explanation returned a set that does not keep the answer.
        """
        found = answers(case, self.pixels, self.baseline)
        one = found.sets([self.confidence])[0]
        if not one.verdict.keeps or one.verdict.confidence < self.confidence * found.whole - 1e-5:
            raise MetricRefused(
                f"the explanation's own pixels do not keep the answer where others are hidden by {found.baseline!r}",
                hint="use pixels=ranking, or the baseline that they were found with",
            )
        return Measurement(value=one.area, details=_details(one, found.baseline))


class SufficientDrop(Metric):
    """The confidence that is lost when the model sees the explanation's pixels alone."""

    confidence: Confidence = 0.0
    baseline: Baseline = "auto"
    pixels: Pixels = "returned"

    def score(self, case: Case) -> Measurement:
        """Return p(x) - p(x_E); negative if the pixels alone are more convincing than the image."""
        found = answers(case, self.pixels, self.baseline)
        one = found.sets([self.confidence])[0]
        return Measurement(value=found.whole - one.verdict.confidence, details=_details(one, found.baseline))


def _details(one: SufficientSet, baseline: str) -> dict[str, object]:
    return {
        "area": one.area,
        "returned": one.returned,
        "confidence": one.verdict.confidence,
        "keeps": one.verdict.keeps,
        "baseline": baseline,
    }
