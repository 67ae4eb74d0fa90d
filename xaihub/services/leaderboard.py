"""From scores to a table that can be trusted: means with intervals, controls beside, contradictions named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xaihub.hub import Hub
from xaihub.results import ScoreRow, canonical

__all__ = ["Board", "Entry", "boards", "interval", "labels"]

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One explainer's result on one metric.

    Attributes:
        mean: The mean over pictures.
        low: The lower end of the 95 % bootstrap interval of the mean.
        high: Its upper end.
        count: Number of pictures with a score.
        failed: Number of pictures without one.
        best: The best mean of all methods that are no controls.
    """

    mean: float
    low: float
    high: float
    count: int
    failed: int
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Board:
    """One model's table.

    Attributes:
        model: The model.
        metrics: Column names, with parameters where one metric occurs twice.
        directions: True where higher is better, False where lower is, None where neither.
        explainers: Row names, methods first, controls last.
        controls: The names of the controls.
        entries: By (explainer, metric).
        notes: Where metrics contradict each other, and where a control beats every method.
    """

    model: str
    metrics: list[str]
    directions: Mapping[str, bool | None]
    explainers: list[str]
    controls: frozenset[str]
    entries: Mapping[tuple[str, str], Entry]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON types."""
        return {
            "model": self.model,
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


def boards(rows: Sequence[ScoreRow], hub: Hub) -> list[Board]:
    """Make one table a model."""
    names, columns = labels(rows)
    found = []
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        found.append(_board(model, own, names, columns, hub))
    return found


def labels(rows: Sequence[ScoreRow]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the tables' row names by explainer and parameters, and their column names by metric and parameters."""
    names = _names((row.explainer, row.explainer_parameters) for row in rows)
    return names, _names((row.metric, row.metric_parameters) for row in rows)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, and the ends of its 95 % percentile bootstrap interval (2000 resamples, fixed seed)."""
    sample = np.asarray(values, dtype=float)
    picks = np.random.default_rng(0).integers(0, len(sample), size=(RESAMPLES, len(sample)))
    means = sample[picks].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(sample.mean()), float(low), float(high)


def _board(
    model: str, rows: Sequence[ScoreRow], names: Mapping[str, str], columns: Mapping[str, str], hub: Hub
) -> Board:
    values: dict[tuple[str, str], list[ScoreRow]] = {}
    for row in rows:
        pair = (names[_id(row.explainer, row.explainer_parameters)], columns[_id(row.metric, row.metric_parameters)])
        values.setdefault(pair, []).append(row)
    controls = frozenset(names[_id(row.explainer, row.explainer_parameters)] for row in rows if row.control)
    metrics = list(dict.fromkeys(pair[1] for pair in values))
    directions = {columns[_id(row.metric, row.metric_parameters)]: _direction(hub, row.metric) for row in rows}
    entries: dict[tuple[str, str], Entry] = {}
    for pair, scored in values.items():
        known = [row.value for row in scored if row.value is not None]
        if known:
            mean, low, high = interval(known)
            entries[pair] = Entry(mean=mean, low=low, high=high, count=len(known), failed=len(scored) - len(known))
    explainers = sorted(dict.fromkeys(pair[0] for pair in values), key=lambda name: (name in controls, name))
    for metric in metrics:
        best = _best(entries, metric, [name for name in explainers if name not in controls], directions[metric])
        if best is not None:
            entries[best, metric] = Entry(**{**entries[best, metric].__dict__, "best": True})
    board = Board(
        model=model, metrics=metrics, directions=directions, explainers=explainers, controls=controls, entries=entries
    )
    board.notes.extend([*_beaten(board), *_contradictions(board)])
    return board


def _best(
    entries: Mapping[tuple[str, str], Entry], metric: str, names: Iterable[str], higher: bool | None
) -> str | None:
    known = {name: entries[name, metric].mean for name in names if (name, metric) in entries}
    if not known or higher is None:
        return None
    return max(known, key=lambda name: known[name] if higher else -known[name])


def _beaten(board: Board) -> Iterable[str]:
    """Name the metrics on which a control, which knows nothing of the model, beats every method."""
    for metric in board.metrics:
        higher = board.directions[metric]
        methods = [name for name in board.explainers if name not in board.controls]
        best = _best(board.entries, metric, methods, higher)
        if best is None or metric.partition(" ")[0] in ("cost_forwards", "cost_seconds"):
            continue
        top = board.entries[best, metric].mean
        for control in sorted(board.controls):
            entry = board.entries.get((control, metric))
            if entry is not None and (entry.mean > top if higher else entry.mean < top):
                yield (
                    f"{control} beats every method on {metric} ({entry.mean:.3g} against {top:.3g} of {best}):"
                    " this metric alone proves nothing here"
                )


def _contradictions(board: Board) -> Iterable[str]:
    """Name the pairs of metrics that rank the methods the opposite way, by Kendall's tau."""
    from scipy.stats import kendalltau

    methods = [name for name in board.explainers if name not in board.controls]
    ranked = [
        (metric, [board.entries[name, metric].mean * (1 if board.directions[metric] else -1) for name in methods])
        for metric in board.metrics
        if board.directions[metric] is not None and all((name, metric) in board.entries for name in methods)
        if not metric.startswith("cost_")
    ]
    if len(methods) < 3:
        return
    for number, (first, ours) in enumerate(ranked):
        for second, theirs in ranked[number + 1 :]:
            tau = kendalltau(ours, theirs).statistic
            if tau < -0.3:
                yield f"{first} and {second} rank the methods the opposite way (Kendall's tau {tau:.2f})"


def _direction(hub: Hub, metric: str) -> bool | None:
    spec = hub.metrics.find(metric)
    return None if spec is None else spec.higher_is_better


def _id(name: str, parameters: Mapping[str, Any]) -> str:
    return canonical([name, parameters])


def _names(things: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Name things shortly: by name alone, or with the parameters in which namesakes differ."""
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
