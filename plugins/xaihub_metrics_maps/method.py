"""Concentration of a map; the model is not run.

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
    """Entropy of the pixels' relative magnitudes: 0 for a single pixel, log n if all n are equal."""

    def score(self, case: Case) -> Measurement:
        """Return the entropy in nats; the details hold its maximum.

        Raises:
            MetricRefused: The map is zero everywhere.
        """
        values = _magnitudes(case)
        fractions = values / values.sum()
        return Measurement(value=float(torch.special.entr(fractions).sum()), details={"maximum": math.log(len(values))})


class EffectiveComplexity(Metric):
    """Number of pixels above a fraction of the peak (our choice; the paper counts features the model needs)."""

    threshold: Annotated[
        float, Meta(ge=0, lt=1, description="A pixel counts if it exceeds this fraction of the largest absolute value.")
    ] = 0.01

    def score(self, case: Case) -> Measurement:
        """Return the count, from 1 to the number of pixels; the details hold it as a fraction.

        Raises:
            MetricRefused: The map is zero everywhere.
        """
        values = _magnitudes(case)
        count = int((values > self.threshold * values.max()).sum())
        return Measurement(value=float(count), details={"fraction": count / len(values)})


def _magnitudes(case: Case) -> Tensor:
    """Return the absolute values of the map as (n,) float64, scaled to a peak of 1 to avoid overflow."""
    values = case.heat.double().abs().flatten()
    peak = values.max()
    if not peak > 0:
        raise MetricRefused("the map is zero everywhere, so it has no concentration")
    return values / peak
