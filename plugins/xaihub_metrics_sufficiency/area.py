"""Size of the sufficient set of pixels, and the drop in confidence with this set alone."""

from __future__ import annotations

from xaihub import Case, Measurement, Metric, MetricRefused
from xaihub_metrics_sufficiency.sets import Baseline, Confidence, Pixels, SufficientSet, sets_of


class _OfOneSet(Metric):
    confidence: Confidence = 0.0
    baseline: Baseline = "auto"
    pixels: Pixels = "returned"


class SufficientArea(_OfOneSet):
    """The fraction of the image that the explanation needs to keep the target."""

    def score(self, case: Case) -> Measurement:
        """Return the area of the set.

        Raises:
            MetricRefused: The explanation returned a set that does not keep the target.
        """
        found = sets_of(case, self.pixels, self.baseline)
        one = found.sets([self.confidence])[0]
        if not one.verdict.pass_at(self.confidence * found.whole):
            raise MetricRefused(
                f"the returned set does not keep the target when the other pixels are replaced by {found.baseline!r}",
                hint="use pixels=ranking, or the baseline that the set was found with",
            )
        return Measurement(value=one.area, details=_details(one, found.baseline))


class SufficientDrop(_OfOneSet):
    """The drop in confidence when the model sees the explanation's set alone."""

    def score(self, case: Case) -> Measurement:
        """Return p(x) - p(x_E); negative if the set alone gives a higher confidence than the image."""
        found = sets_of(case, self.pixels, self.baseline)
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
