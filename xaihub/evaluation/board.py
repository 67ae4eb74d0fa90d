"""The data of a leaderboard, and what a run's scores are summed up to: names, mean curves, mean passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xaihub.evaluation.columns import Curve, ModelScores, labels, method_id
from xaihub.evaluation.results import ScoreRow
from xaihub.evaluation.significance import ALPHA, Difference


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One explainer's result on one metric.

    Attributes:
        mean: The mean over images.
        low: The lower end of the 95 % bootstrap interval of the mean.
        high: The upper end.
        count: Number of images with a score.
        failed: Number of images without a score.
        best: Best of all methods except controls, on the images for which all of them have a score.
        p: Corrected p-value of the paired difference from the best method, see `Difference`; None for the best one.
    """

    mean: float
    low: float
    high: float
    count: int
    failed: int
    best: bool = False
    p: float | None = None

    @property
    def near_best(self) -> bool:
        """Whether the paired test does not distinguish it from the best method."""
        return self.p is not None and self.p >= ALPHA


@dataclass(frozen=True, kw_only=True)
class Board:
    """The data of a `Leaderboard`, which adds tables, charts and pages; it has the same attributes.

    Attributes:
        model: The model.
        metrics: Column names, with parameters where a metric occurs more than once.
        directions: True if higher is better, False if lower is better, None if neither.
        axes: The axis labels of a metric's curve.
        explainers: Row names, controls last.
        controls: The names of the controls.
        entries: By (explainer, metric).
        differences: The paired difference of each two explainers on each metric, costs excepted.
        accuracy: The fraction of the labelled images whose label the model predicts, or None without labels.
        labelled: Number of these images.
        notes: Metrics on which methods were scored on different images or a control beats every method, pairs of
            metrics that contradict each other, and too few images for any difference to be significant.
    """

    model: str
    metrics: list[str]
    directions: Mapping[str, bool | None]
    axes: Mapping[str, tuple[str, str]]
    explainers: list[str]
    controls: frozenset[str]
    entries: Mapping[tuple[str, str], Entry]
    differences: Sequence[Difference] = ()
    notes: list[str] = field(default_factory=list)
    accuracy: float | None = None
    labelled: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON types."""
        return {
            "model": self.model,
            "accuracy": self.accuracy,
            "labelled": self.labelled,
            "rows": [
                {
                    "explainer": name,
                    "control": name in self.controls,
                    "metric": metric,
                    **self.entries[name, metric].__dict__,
                }
                for name in self.explainers
                for metric in self.metrics
                if (name, metric) in self.entries
            ],
            "differences": [one.__dict__ for one in self.differences],
            "notes": self.notes,
        }


def labelled(rows: Sequence[ScoreRow]) -> list[tuple[ScoreRow, str, str]]:
    """Return each score with the labels of its explainer and its metric."""
    names = labels((row.explainer, row.explainer_parameters) for row in rows)
    columns = labels((row.metric, row.metric_parameters) for row in rows)
    return [
        (
            row,
            names[method_id(row.explainer, row.explainer_parameters)],
            columns[method_id(row.metric, row.metric_parameters)],
        )
        for row in rows
    ]


def mean_curves(scores: ModelScores) -> dict[str, dict[str, Curve]]:
    """Return the mean curve of each explainer by metric; explainers whose curves differ in length have none."""
    found = {}
    for metric, curves in scores.curves():
        means = {explainer: _Mean() for explainer in scores.explainers}
        for explainer, curve in curves:
            means[explainer].add(curve)
        found[metric] = {explainer: mean.curve for explainer, mean in means.items() if mean.curve is not None}
    return found


class _Mean:
    """The mean of curves as they come; None if there is none, or if they have different numbers of points."""

    def __init__(self) -> None:
        self._sum: Any = None
        self._count = 0

    def add(self, curve: Curve) -> None:
        points = np.array(curve, dtype=float)
        if self._count and (self._sum is None or self._sum.shape != points.shape):
            self._sum = None
        else:
            self._sum = points if self._sum is None else self._sum + points
        self._count += 1

    @property
    def curve(self) -> Curve | None:
        if self._sum is None:
            return None
        x, y = (self._sum / self._count).tolist()
        return x, y
