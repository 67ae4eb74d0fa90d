"""Statistics of rankings: functions of (d,) feature weights, where larger means more important."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from xaihub.errors import MetricRefused, ParameterError


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of two rankings.

    Attributes:
        pearson: Correlation of the weights.
        spearman: Correlation of the ranks; equal weights share their mean rank.
        top_k: Fraction of the k most important features that the rankings share.
        k: The k of `top_k`.
    """

    pearson: float
    spearman: float
    top_k: float
    k: int


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over runs with its 95 % interval (Student's t); its ends are None for a single run."""

    mean: float
    low: float | None
    high: float | None
    count: int

    def __str__(self) -> str:
        """Mean and interval with three decimals."""
        return f"{self.mean:.3f}" if self.low is None else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def order_of(weights: Tensor) -> Tensor:
    """Return (d,) indices, the largest weight first; ties are ordered by index."""
    return torch.argsort(weights, descending=True, stable=True)


def agreement(first: Tensor, second: Tensor, *, k: int = 5) -> Agreement:
    """Compare two rankings of the same features.

    Agreement of two explainers of one model shows that both describe that model, not that either is true of the data:
    they also agree on a model trained on shuffled labels.

    Raises:
        ParameterError: The numbers of features differ, or k is out of range.
        MetricRefused: One of the rankings is constant.
    """
    a, b = _flat(first), _flat(second)
    if len(a) != len(b):
        raise ParameterError(f"rankings of {len(a)} and {len(b)} features cannot be compared")
    if not 1 <= k <= len(a):
        raise ParameterError(f"k cannot be {k}", hint=f"use 1 to {len(a)}")
    same = set(order_of(a)[:k].tolist()) & set(order_of(b)[:k].tolist())
    return Agreement(pearson=_pearson(a, b), spearman=_pearson(a, b, ranks=True), top_k=len(same) / k, k=k)


def correlation(first: Tensor, second: Tensor, *, ranks: bool = False, rounding: float = 0.0) -> Tensor:
    """Return Pearson's correlation, or with `ranks` Spearman's, of matching rows.

    Args:
        first: (..., n) values.
        second: (..., n) values.
        ranks: Correlate average ranks instead of values.
        rounding: Values of a row that differ by no more than this fraction of its largest magnitude are equal.

    Returns:
        (...) float64 in [-1, 1]; NaN where a row is constant.
    """
    first, second = first.double(), second.double()
    constant = is_constant(first, rounding) | is_constant(second, rounding)
    if ranks:
        first, second = average_ranks(first, rounding), average_ranks(second, rounding)
    first, second = _centred(first), _centred(second)
    lengths = first.norm(dim=-1) * second.norm(dim=-1)
    found: Tensor = ((first * second).sum(-1) / lengths).clamp(-1, 1)
    return found.masked_fill(constant | (lengths == 0), torch.nan)


def average_ranks(values: Tensor, rounding: float = 0.0) -> Tensor:
    """Rank each row of (..., n) values from 1 as float64; equal values share their mean rank. See `correlation`."""
    from scipy.stats import rankdata

    values = values.double()
    if rounding:
        values = (values / _magnitude(values) / rounding).round()
    return torch.from_numpy(rankdata(values.cpu().numpy(), axis=-1)).to(values.device)


def is_constant(values: Tensor, rounding: float = 0.0) -> Tensor:
    """Whether each row of (..., n) values has equal values only: (...) bool. See `correlation`."""
    spread: Tensor = values.amax(-1) - values.amin(-1)
    return spread <= rounding * values.abs().amax(-1)


def _magnitude(rows: Tensor) -> Tensor:
    return rows.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


def _centred(rows: Tensor) -> Tensor:
    rows = rows - rows.mean(-1, keepdim=True)
    return rows / _magnitude(rows)  # so that squares neither vanish nor overflow


def relevance_auc(weights: Tensor, relevant: Tensor) -> float:
    """Return the probability that a relevant feature outweighs an irrelevant one: 1 is perfect, 0.5 is chance.

    Args:
        weights: (d,) weights.
        relevant: (d,) booleans, known from how the data were generated.

    Raises:
        MetricRefused: All features are relevant, or none is.
    """
    flat, known = _flat(weights), relevant.flatten().bool()
    inside, outside = flat[known], flat[~known]
    if not len(inside) or not len(outside):
        raise MetricRefused("the AUC needs both relevant and irrelevant features")
    ahead = inside.unsqueeze(1) - outside  # (relevant, irrelevant)
    return float((ahead > 0).double().mean() + 0.5 * (ahead == 0).double().mean())


def top_k_precision(weights: Tensor, relevant: Tensor, k: int) -> float:
    """Return the fraction of the k most important features that are relevant."""
    return float(relevant.flatten().bool()[order_of(_flat(weights))[:k]].double().mean())


def stability(runs: Sequence[Tensor] | Tensor) -> float:
    """Return the mean pairwise Pearson correlation of the (d,) weights of several runs.

    Raises:
        MetricRefused: There is only one run, or a run is constant.
    """
    flat = [_flat(run) for run in runs]
    if len(flat) < 2:
        raise MetricRefused("stability needs at least two runs")
    pairs = [_pearson(a, b) for a, b in combinations(flat, 2)]
    return sum(pairs) / len(pairs)


def seed_interval(values: Sequence[float]) -> Interval:
    """Return the mean over runs with its 95 % interval by Student's t.

    Raises:
        MetricRefused: There are no values.
    """
    if not values:
        raise MetricRefused("there are no values to average")
    sample = torch.tensor(list(values), dtype=torch.float64)
    mean, count = float(sample.mean()), len(sample)
    if count < 2:
        return Interval(mean=mean, low=None, high=None, count=count)
    half = half_width(sample.unsqueeze(1)).item()
    return Interval(mean=mean, low=mean - half, high=mean + half, count=count)


def half_width(runs: Tensor) -> Tensor:
    """Return the (d,) half-widths of the 95 % t intervals of the means of (S, d) runs, S > 1."""
    from scipy.stats import t

    count = len(runs)
    half: Tensor = runs.std(0, unbiased=True) * (float(t.ppf(0.975, count - 1)) / math.sqrt(count))
    return half


def _flat(weights: Tensor) -> Tensor:
    return weights.detach().flatten().double().cpu()


def _pearson(a: Tensor, b: Tensor, *, ranks: bool = False) -> float:
    found = float(correlation(a, b, ranks=ranks))
    if math.isnan(found):
        raise MetricRefused("the correlation with a constant ranking is undefined")
    return found
