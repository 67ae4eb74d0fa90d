"""Bootstrap intervals, which are computed for many samples at once."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from xaihub.evaluation.bootstrap import intervals


def plain(sample: NDArray[np.float64]) -> tuple[float, float, float]:
    """Whole resamples of one sample, drawn at once."""
    picks = np.random.default_rng(0).integers(0, len(sample), size=(2000, len(sample)))
    low, high = np.percentile(sample[picks].mean(axis=1), [2.5, 97.5])
    return float(sample.mean()), float(low), float(high)


@pytest.mark.parametrize("count", [1, 2, 7, 40, 777, 2500])
def test_intervals_are_those_of_whole_resamples_of_one_sample_at_a_time(count: int) -> None:
    generator = np.random.default_rng(2)
    samples = [generator.normal(size=size) for size in (count, 30, count)]  # more than fit into a block at a time, too

    np.testing.assert_allclose(intervals(samples), [plain(sample) for sample in samples], rtol=1e-12, atol=1e-12)
