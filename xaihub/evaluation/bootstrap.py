"""Bootstrap intervals of means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
DRAWS = 1_000_000  # that are in memory at a time


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and the ends of its 95 % percentile bootstrap interval (2000 resamples, fixed seed)."""
    ((mean, low, high),) = intervals([np.asarray(values, dtype=float)])
    return mean, low, high


def intervals(samples: Sequence[NDArray[np.float64]]) -> list[tuple[float, float, float]]:
    """Return the `interval` of each of several samples; those of one size share their resamples."""
    found: dict[int, tuple[float, float, float]] = {}
    for size in {len(sample) for sample in samples}:
        places = [place for place, sample in enumerate(samples) if len(sample) == size]
        stacked = np.stack([samples[place] for place in places], axis=1)
        means = np.concatenate([counts @ stacked for counts in _resamples(size)]) / size
        for place, (low, high) in zip(places, np.percentile(means, [2.5, 97.5], axis=0).T, strict=True):
            found[place] = (float(samples[place].mean()), float(low), float(high))
    return [found[place] for place in range(len(samples))]


def _resamples(size: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each resample draws each of `size` values, a block of resamples at a time."""
    generator = np.random.default_rng(0)
    step = max(1, DRAWS // size)
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        picks = generator.integers(0, size, size=(rows, size)) + size * np.arange(rows)[:, None]
        yield np.bincount(picks.ravel(), minlength=rows * size).reshape(rows, size).astype(float)
