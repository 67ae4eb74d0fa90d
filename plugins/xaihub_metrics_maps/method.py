"""Concentration of a map; nothing is asked of the model.

Sparseness: Chalasani et al. 2020 (arXiv 1810.06583). Complexity: Bhatt, Weller, Moura 2020 (arXiv 2005.00631).
Effective complexity: Nguyen, Martinez 2020 (arXiv 2007.07584). None depends on the scale or the sign of the map.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from xaihub import Case, Measurement, Meta, Metric, MetricRefused


class Sparseness(Metric):
    """Gini index of the absolute values: 0 if all are equal, 1 - 1/n if one of n pixels holds everything."""

    def score(self, case: Case) -> float:
        """Return the index, in [0, 1 - 1/n].

        Raises:
            MetricRefused: The map is zero everywhere.
        """
        values = _magnitudes(case).sort().values
        n = len(values)
        ranks = torch.arange(1, n + 1, dtype=values.dtype)
        return float(((2 * ranks - n - 1) * values).sum() / (n * values.sum()))


class Complexity(Metric):
    """Entropy of the pixels' shares: 0 if one pixel holds everything, log n if all n are equal."""

    def score(self, case: Case) -> Measurement:
        """Return the entropy in nats; the details name its largest possible value.

        Raises:
            MetricRefused: The map is zero everywhere.
        """
        values = _magnitudes(case)
        shares = values / values.sum()
        return Measurement(
            value=float(torch.special.entr(shares).sum()), details={"largest_possible": math.log(len(shares))}
        )


class EffectiveComplexity(Metric):
    """Count the pixels above a share of the peak, in place of those that the model needs (see the card)."""

    threshold: Annotated[
        float, Meta(ge=0, lt=1, description="A pixel counts above this share of the largest absolute value.")
    ] = 0.01

    def score(self, case: Case) -> Measurement:
        """Return the count, from 1 to the number of pixels; the details give it as a share.

        Raises:
            MetricRefused: The map is zero everywhere.
        """
        values = _magnitudes(case)
        count = int((values > self.threshold * values.max()).sum())
        return Measurement(value=float(count), details={"share": count / len(values)})


def _magnitudes(case: Case) -> Tensor:
    """Return the absolute values of the map as one (n,) float64 row, scaled to a peak of 1 against overflow."""
    values = case.heat.double().abs().flatten()
    peak = values.max()
    if not peak > 0:
        raise MetricRefused("the map is zero everywhere, so it has no concentration")
    return values / peak
