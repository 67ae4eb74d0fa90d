"""Ranking what a model as a whole relies on: global explainers, their results, and statistics of rankings."""

from xaihub.ranking.statistics import (
    Agreement,
    Interval,
    agreement,
    average_ranks,
    correlation,
    is_constant,
    order_of,
    relevance_auc,
    seed_interval,
    stability,
    top_k_precision,
)

__all__ = [
    "Agreement",
    "Interval",
    "agreement",
    "average_ranks",
    "correlation",
    "is_constant",
    "order_of",
    "relevance_auc",
    "seed_interval",
    "stability",
    "top_k_precision",
]
