"""Rankings of the features that a model as a whole relies on: global explainers, results and statistics."""

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
