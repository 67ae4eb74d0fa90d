"""How good is a ranking of features? Plain functions on (d,) weights, larger meaning more important."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from xaihub.errors import MetricRefused, ParameterError

__all__ = [
    "Agreement",
    "Interval",
    "agreement",
    "deletion_curve",
    "order_of",
    "relevance_auc",
    "seed_interval",
    "stability",
    "top_k_precision",
]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How much two rankings agree.

    Attributes:
        pearson: Correlation of the weights.
        spearman: Correlation of the ranks; equal weights share their mean rank.
        top_k: Share of the first's k most important features that are among the second's.
        k: That k.
    """

    pearson: float
    spearman: float
    top_k: float
    k: int


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over runs with its 95 % interval (Student's t); the ends are None for a single run."""

    mean: float
    low: float | None
    high: float | None
    count: int

    def __str__(self) -> str:
        """Mean and interval, three digits."""
        return f"{self.mean:.3f}" if self.low is None else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def order_of(weights: Tensor) -> Tensor:
    """Return (d,) indices, the largest weight first; of equals the lower index is first."""
    return torch.argsort(weights, descending=True, stable=True)


def agreement(first: Tensor, second: Tensor, *, k: int = 5) -> Agreement:
    """Compare two rankings of the same features.

    Agreement with another explainer of the same model shows that both describe that model. It does not show that
    either is true of the data: a model that was trained on shuffled labels agrees as well.

    Raises:
        ParameterError: They do not have the same number of features, or k is out of range.
        MetricRefused: One of them is constant.
    """
    a, b = _flat(first), _flat(second)
    if len(a) != len(b):
        raise ParameterError(f"rankings of {len(a)} and of {len(b)} features cannot be compared")
    if not 1 <= k <= len(a):
        raise ParameterError(f"k cannot be {k}", hint=f"1 to {len(a)}")
    same = set(order_of(a)[:k].tolist()) & set(order_of(b)[:k].tolist())
    return Agreement(pearson=_pearson(a, b), spearman=_pearson(_ranks(a), _ranks(b)), top_k=len(same) / k, k=k)


def relevance_auc(weights: Tensor, relevant: Tensor) -> float:
    """Return the chance that a relevant feature outweighs an irrelevant one: 1 is perfect, 0.5 is chance.

    Args:
        weights: (d,) weights.
        relevant: (d,) truth values, known from how the data were made.

    Raises:
        MetricRefused: All features are relevant, or none.
    """
    flat, known = _flat(weights), relevant.flatten().bool()
    inside, outside = flat[known], flat[~known]
    if not len(inside) or not len(outside):
        raise MetricRefused("the area needs both relevant and irrelevant features")
    ahead = inside.unsqueeze(1) - outside  # (relevant, irrelevant)
    return float((ahead > 0).double().mean() + 0.5 * (ahead == 0).double().mean())


def top_k_precision(weights: Tensor, relevant: Tensor, k: int) -> float:
    """Return the share of the k most important features that are relevant."""
    return float(relevant.flatten().bool()[order_of(_flat(weights))[:k]].double().mean())


def stability(runs: Sequence[Tensor] | Tensor) -> float:
    """Return the mean pairwise Pearson correlation of the (d,) weights of several runs.

    Raises:
        MetricRefused: There is one run only, or one is constant.
    """
    flat = [_flat(run) for run in runs]
    if len(flat) < 2:
        raise MetricRefused("stability needs at least two runs")
    pairs = [_pearson(a, b) for a, b in combinations(flat, 2)]
    return sum(pairs) / len(pairs)


def deletion_curve(
    score: Callable[[Tensor], float],
    features: Tensor,
    order: Tensor,
    *,
    counts: Sequence[int],
    fill: Tensor | None = None,
) -> list[float]:
    """Return the score of a model after its first `counts` features of an order were deleted.

    Args:
        score: Maps (N, d) features to one figure, such as the accuracy.
        features: (N, d) rows.
        order: (d,) indices; those named first are deleted first.
        counts: How many to delete.
        fill: (d,) what a deleted feature becomes; by default its mean over the rows.

    Raises:
        ParameterError: A count is out of range, or `order` does not name each feature once.
    """
    width = features.shape[1]
    if sorted(order.tolist()) != list(range(width)):
        raise ParameterError(f"an order of {width} features must name each of them once")
    bad = [count for count in counts if not 0 <= count <= width]
    if bad:
        raise ParameterError(f"{bad[0]} of {width} features cannot be deleted")
    filling = features.mean(0) if fill is None else fill
    values = []
    for count in counts:
        changed = features.clone()
        gone = order[:count]
        changed[:, gone] = filling[gone].to(changed)
        values.append(float(score(changed)))
    return values


def seed_interval(values: Sequence[float]) -> Interval:
    """Return the mean over runs with its 95 % interval by Student's t.

    Raises:
        MetricRefused: There is no value.
    """
    if not values:
        raise MetricRefused("there is nothing to average")
    sample = torch.tensor(list(values), dtype=torch.float64)
    mean, count = float(sample.mean()), len(sample)
    if count < 2:
        return Interval(mean=mean, low=None, high=None, count=count)
    half = half_width(sample.unsqueeze(1)).item()
    return Interval(mean=mean, low=mean - half, high=mean + half, count=count)


def half_width(runs: Tensor) -> Tensor:
    """Return (d,) half widths of the 95 % t intervals of the means of (S, d) runs, S > 1."""
    from scipy.stats import t

    count = len(runs)
    half: Tensor = runs.std(0, unbiased=True) * (float(t.ppf(0.975, count - 1)) / math.sqrt(count))
    return half


def _flat(weights: Tensor) -> Tensor:
    return weights.detach().flatten().double().cpu()


def _pearson(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    if not size > 0:
        raise MetricRefused("a constant ranking has no correlation with another")
    return float(a @ b) / size


def _ranks(values: Tensor) -> Tensor:
    """Return the rank of each value from 1, equal values sharing their mean rank."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = (last - (counts.double() - 1) / 2)[place]
    return ranks
