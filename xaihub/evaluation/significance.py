"""Paired tests: which differences between scores of the same images are more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from xaihub.evaluation.columns import Column

ALPHA = 0.05
COSTS = ("cost_forward_passes", "cost_seconds")  # metrics that are not tested: images are not a sample of their values
EXACT = 50  # differences, up to which p-values are exact
ROUNDING = 1e-6  # relative difference of two scores that float32 may make of equal ones


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The paired difference of two explainers on one metric.

    Attributes:
        metric: The metric.
        first: An explainer.
        second: Another one.
        mean: The mean, over the images for which both have a score, of the first's score minus the second's.
        count: Number of these images.
        p: Two-sided p-value of `p_value`, corrected for the comparisons of the metric by `holm`.
        comparisons: Number of these comparisons: all pairs of explainers, controls included.
    """

    metric: str
    first: str
    second: str
    mean: float
    count: int
    p: float
    comparisons: int

    @property
    def significant(self) -> bool:
        """Whether the difference is more than chance, at a family-wise error of 5 % for the metric."""
        return self.p < ALPHA


def differences(column: Column, explainers: Sequence[str]) -> list[Difference]:
    """Return the paired difference of each two explainers on one metric that have scores of the same images."""
    found = []
    for first, second in combinations(range(len(explainers)), 2):
        paired = paired_differences(column.values[first], column.values[second])
        if len(paired):
            found.append(
                Difference(
                    metric=column.metric, first=explainers[first], second=explainers[second],
                    mean=float(paired.mean()), count=len(paired), p=p_value(paired), comparisons=0,
                )
            )  # fmt: skip
    corrected = holm([one.p for one in found])
    return [replace(one, p=p, comparisons=len(found)) for one, p in zip(found, corrected, strict=True)]


def paired_differences(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the differences where neither is NaN; those that are rounding of float32 are 0.

    Args:
        first: (I,) scores, one per image.
        second: (I,) scores of the same images.
    """
    both = ~np.isnan(first) & ~np.isnan(second)
    ours, theirs = first[both], second[both]
    return np.where(np.isclose(ours, theirs, rtol=ROUNDING, atol=0), 0.0, ours - theirs)


def p_value(paired: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test of paired differences; 1 if all are 0.

    Zeros are dropped, as in the original test (Wilcoxon 1945, *stated*). It is twice the one-sided value in the
    direction of the mean, so that ranks that contradict the mean never count as evidence for it (*our choice*); where
    they agree, this is the usual two-sided value. Up to `EXACT` differences it is exact, beyond it is the normal
    approximation.
    """
    from scipy.stats import rankdata, wilcoxon

    changed = paired[paired != 0]
    if not len(changed):
        return 1.0
    ahead = changed if changed.sum() > 0 else -changed
    if len(ahead) > EXACT:
        return min(1.0, 2 * float(wilcoxon(ahead, alternative="greater").pvalue))
    # With ties scipy enumerates all signs, which takes a second for 13 differences.
    ranks = np.rint(2 * rankdata(np.abs(ahead))).astype(int)
    return min(1.0, 2 * float(_rank_sums(ranks)[ranks[ahead > 0].sum() :].sum()))


def _rank_sums(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the probability of each sum of the ranks of positive differences, if each sign is a coin toss."""
    chances = np.zeros(int(ranks.sum()) + 1)
    chances[0] = 1
    for rank in ranks:
        chances[rank:] = (chances[rank:] + chances[:-rank]) / 2
        chances[:rank] /= 2
    return chances


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method (Holm 1979, *stated*).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none becomes smaller than the one before.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    stepped = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors))
    corrected = np.empty(len(order))
    corrected[order] = stepped
    return [float(p) for p in corrected]


def images_needed(comparisons: int) -> int:
    """Return the smallest number of images with which one of several comparisons can be significant.

    If all n differences have one sign, the p-value is 2^(1 - n) (*derived*).
    """
    return math.floor(1 + math.log2(comparisons / ALPHA)) + 1


def p_text(p: float, *, sign: str = "=") -> str:
    """Return a p-value in words, such as "p = .003"."""
    return "p < .001" if p < 0.001 else f"p {sign} {p:.3f}".replace(" 0.", " .")
