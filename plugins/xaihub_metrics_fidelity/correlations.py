"""Correlation of a map's sums over random subsets of features with the drops in the score when they are removed.

For a subset S: A(S), the sum of the map over S, and D(S) = f(x) - f(x without S), the drop in the score.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from xaihub import Case, Measurement, Meta
from xaihub.ranking import is_constant
from xaihub_metrics_fidelity.subsets import SUMS, SubsetMetric, remove_subsets


class SensitivityN(SubsetMetric):
    """Pearson's correlation of A(S) and D(S) at several sizes n of S, averaged (Ancona et al. 2018)."""

    sizes: Annotated[int, Meta(ge=1, le=100, description="Number of sizes n, spaced logarithmically from 1.")] = 6
    largest: Annotated[float, Meta(gt=0, lt=1, description="Largest n, as a fraction of all features.")] = 0.8

    def score(self, case: Case) -> Measurement:
        """Return the mean over n, and the correlation at each n as a curve over the fraction n / d.

        Sizes at which the score does not react are skipped: they are the same for every map of the image.
        """
        removed = remove_subsets(case, self, self._sizes)
        found, used = removed.correlations(), ~is_constant(removed.drops, SUMS)
        fractions = [size / removed.count for size, kept in zip(removed.sizes, used, strict=True) if kept]
        return Measurement(
            value=float(found[used].mean()),
            curve=(fractions, found[used].tolist()),
            details={"sizes": removed.sizes, "used": used.tolist()},
        )

    def _sizes(self, count: int) -> list[float]:
        """Space the sizes from 1 to the largest in equal ratios; a single size is the largest."""
        largest = max(1.0, self.largest * count)
        steps = self.sizes - 1
        return [largest ** (step / steps) for step in range(steps)] + [largest]


class FaithfulnessCorrelation(SubsetMetric):
    """Pearson's correlation of A(S) and D(S) over random subsets of one size (Bhatt et al. 2020, Def. 3)."""

    features, samples = "pixels", 100
    subset: Annotated[float, Meta(gt=0, lt=1, description="Size of each subset S, as a fraction of all features.")] = (
        0.05
    )

    ranks: ClassVar[bool] = False

    def score(self, case: Case) -> Measurement:
        """Return the correlation; a map whose sums do not vary scores 0."""
        removed = remove_subsets(case, self, lambda count: [self.subset * count])
        flat = bool(is_constant(removed.attributed, SUMS)[0])
        return Measurement(
            value=float(removed.correlations(ranks=self.ranks)[0]),
            details={"subset": removed.sizes[0], "map_is_flat": flat},
        )


class MuFidelity(FaithfulnessCorrelation):
    """Spearman's rank correlation of A(S) and D(S) over random subsets of a grid's cells (Fel et al. 2021)."""

    ranks = True
    features, subset, samples = "grid:9", 0.2, 200
