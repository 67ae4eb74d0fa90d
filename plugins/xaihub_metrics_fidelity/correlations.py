"""Correlation between what the map claims for random subsets of features and what their removal does to the score.

For a subset S: A(S), the sum of the map over S, and D(S) = f(x) - f(x without S), the drop of the score.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from xaihub import Case, Measurement, Meta, Metric
from xaihub.masking import BaselineName
from xaihub.ranking import is_constant
from xaihub_metrics_fidelity.subsets import SUMS, Removed, remove_subsets

Features = Annotated[
    str, Meta(description="What is removed together: grid:N, patches:PIXELS, superpixels:N or pixels.")
]
Output = Annotated[Literal["logit", "probability", "log_probability"], Meta(description="The score f.")]


class SensitivityN(Metric):
    """Pearson's correlation of A(S) and D(S) at several sizes n of S, averaged (Ancona et al. 2018)."""

    features: Features = "grid:14"
    sizes: Annotated[int, Meta(ge=1, le=100, description="Numbers of features n, spaced logarithmically from one.")] = 6
    largest: Annotated[float, Meta(gt=0, lt=1, description="The largest n, as a share of all features.")] = 0.8
    samples: Annotated[int, Meta(ge=3, description="Random subsets of each size; each costs a forward.")] = 50
    baseline: BaselineName = "zero"
    output: Output = "logit"

    def score(self, case: Case) -> Measurement:
        """Return the mean over n, and the correlation at each n as a curve over the share n / d.

        Sizes at which the score does not react are left out: they are the same for every map of the scene.
        """
        removed = remove_subsets(
            case,
            features=self.features,
            baseline=self.baseline,
            sizes=self._sizes,
            samples=self.samples,
            output=self.output,
        )
        found, judged = removed.correlations(), ~is_constant(removed.drops, SUMS)
        shares = [size / removed.count for size, is_judged in zip(removed.sizes, judged, strict=True) if is_judged]
        return Measurement(
            value=float(found[judged].mean()),
            curve=(shares, found[judged].tolist()),
            details={"sizes": removed.sizes, "judged": judged.tolist()},
        )

    def _sizes(self, count: int) -> list[float]:
        """Space the sizes from 1 to the largest in equal ratios; if there is one only, it is the largest."""
        largest = max(1.0, self.largest * count)
        steps = self.sizes - 1
        return [largest ** (step / steps) for step in range(steps)] + [largest]


class FaithfulnessCorrelation(Metric):
    """Pearson's correlation of A(S) and D(S) over random subsets of one size (Bhatt et al. 2020, Def. 3)."""

    features: Features = "pixels"
    subset: Annotated[float, Meta(gt=0, lt=1, description="Share of all features in each subset S.")] = 0.05
    samples: Annotated[int, Meta(ge=3, description="Random subsets; each costs one forward pass.")] = 100
    baseline: BaselineName = "zero"
    output: Output = "logit"

    def score(self, case: Case) -> Measurement:
        """Return the correlation."""
        removed = _one_size(self, case)
        return _report(removed.correlations()[0], removed)


class MuFidelity(Metric):
    """Spearman's rank correlation of A(S) and D(S) over random subsets of a grid's cells (Fel et al. 2021)."""

    features: Features = "grid:9"
    subset: Annotated[float, Meta(gt=0, lt=1, description="Share of all features in each subset S.")] = 0.2
    samples: Annotated[int, Meta(ge=3, description="Random subsets; each costs one forward pass.")] = 200
    baseline: BaselineName = "zero"
    output: Output = "logit"

    def score(self, case: Case) -> Measurement:
        """Return the rank correlation; equal sums share their mean rank."""
        removed = _one_size(self, case)
        return _report(removed.correlations(ranks=True)[0], removed)


def _one_size(metric: FaithfulnessCorrelation | MuFidelity, case: Case) -> Removed:
    return remove_subsets(
        case,
        features=metric.features,
        baseline=metric.baseline,
        sizes=lambda count: [metric.subset * count],
        samples=metric.samples,
        output=metric.output,
    )


def _report(found: Tensor, removed: Removed) -> Measurement:
    flat = bool(is_constant(removed.attributed, SUMS)[0])
    return Measurement(value=float(found), details={"subset": removed.sizes[0], "map_is_flat": flat})
