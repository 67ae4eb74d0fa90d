"""The measure that is best for a metric, where the paper solves it: recall of the features of a linear model.

For f(y) = w.y a probability measure counts by its centre m_j alone: phi_j = w.m_j. Feature j is true if |w_j| > tau and
found if |phi_j| >= alpha. Features that are not true may have any centre (S). D: the best centre is the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Found", "best_centres", "feasible", "found"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """Recall and precision of the features found; 1 where there are none to find, or none found."""

    recall: float
    precision: float


def best_centres(w: Tensor) -> Tensor:
    """Return (d, d) centres in [0, 1]^d with the largest |w.m_j| there is: one and the same corner for each j."""
    positive, negative = w.clamp(min=0).sum(), (-w).clamp(min=0).sum()
    corner = (w > 0) if positive >= negative else (w < 0)
    return corner.to(w).expand(len(w), len(w))


def feasible(w: Tensor, alpha: float) -> bool:
    """Whether any measures reach recall 1: alpha is at most the larger of the sums of positive and negative weights."""
    return alpha <= max(float(w.clamp(min=0).sum()), float((-w).clamp(min=0).sum()))


def found(w: Tensor, centres: Tensor, *, tau: float, alpha: float) -> Found:
    """Score (d, d) centres, row j of feature j. Recall alone is degenerate, so precision stands beside it."""
    true, chosen = w.abs() > tau, (centres @ w).abs() >= alpha
    hits = int((true & chosen).sum())

    def share(of: Tensor) -> float:
        return hits / int(of.sum()) if bool(of.any()) else 1.0

    return Found(recall=share(true), precision=share(chosen))
