"""The data of a leaderboard, and what a run's scores are summed up to: names, mean curves, mean passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xaihub.evaluation.results import ScoreRow
from xaihub.records import canonical


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
    """

    mean: float
    low: float
    high: float
    count: int
    failed: int
    best: bool = False


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
        accuracy: The fraction of the labelled images whose label the model predicts, or None without labels.
        labelled: Number of these images.
        notes: Metrics on which methods were scored on different images or a control beats every method, and pairs of
            metrics that contradict each other.
    """

    model: str
    metrics: list[str]
    directions: Mapping[str, bool | None]
    axes: Mapping[str, tuple[str, str]]
    explainers: list[str]
    controls: frozenset[str]
    entries: Mapping[tuple[str, str], Entry]
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
            "notes": self.notes,
        }


def labelled(rows: Sequence[ScoreRow]) -> list[tuple[ScoreRow, str, str]]:
    """Return each score with the labels of its explainer and its metric."""
    names = _names((row.explainer, row.explainer_parameters) for row in rows)
    columns = _names((row.metric, row.metric_parameters) for row in rows)
    return [
        (row, names[_id(row.explainer, row.explainer_parameters)], columns[_id(row.metric, row.metric_parameters)])
        for row in rows
    ]


def mean_curves(model: str, rows: Sequence[ScoreRow]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Return the mean curve of each explainer by metric; explainers whose curves differ in length have none."""
    curves: dict[str, dict[str, list[Any]]] = {}
    for row, explainer, metric in labelled(rows):
        if row.model == model and row.curve:
            curves.setdefault(metric, {}).setdefault(explainer, []).append(row.curve)
    return {
        metric: {
            explainer: tuple(np.mean([curve[axis] for curve in several], axis=0).tolist() for axis in (0, 1))
            for explainer, several in found.items()
            if len({len(curve[0]) for curve in several}) == 1
        }
        for metric, found in curves.items()
    }


def mean_passes(model: str, rows: Sequence[ScoreRow]) -> dict[str, float]:
    """Return the mean number of forward and backward passes per map of each explainer."""
    spent: dict[str, dict[str, float]] = {}
    for row, explainer, _ in labelled(rows):
        if row.model == model and row.record:
            passes = [row.record.get(f"{way}_passes") or 0 for way in ("forward", "backward")]
            spent.setdefault(explainer, {})[row.key] = float(sum(passes))
    return {explainer: float(np.mean([*several.values()])) for explainer, several in spent.items()}


def _id(name: str, parameters: Mapping[str, Any]) -> str:
    return canonical([name, parameters])


def _names(things: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Return short names: the name alone, or with the parameters in which items of that name differ."""
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, parameters in things:
        groups.setdefault(name, {})[_id(name, parameters)] = parameters
    short = {}
    for name, members in groups.items():
        for key, parameters in members.items():
            others = [other for other in members.values() if other is not parameters]
            differ = [k for k, v in parameters.items() if any(other.get(k) != v for other in others)]
            short[key] = " ".join([name, *(f"{k}={parameters[k]}" for k in differ)])
    return short
