"""Scores as columns: for each model and metric, one number per explainer and image."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xaihub.evaluation.results import ScoreRow
from xaihub.records import canonical

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)", re.ASCII)
Curve = tuple[Sequence[float], Sequence[float]]
Which = Literal["predicted", "target"]
Method = tuple[str, str]  # a name, and parameters in their canonical form


class Column(NamedTuple):
    """The scores of one metric.

    Attributes:
        metric: Its label.
        name: Its registered name.
        values: (E, I) float64, one row per explainer and one column per image, in order of their names; NaN where there
            is no score.
        scored: (E,) number of scores, those that failed included.
        images: The I names.
    """

    metric: str
    name: str
    values: NDArray[np.float64]
    scored: NDArray[np.int64]
    images: Sequence[str]


class ModelScores(ABC):
    """The scores of one model; only one metric is in memory at a time.

    Attributes:
        model: The model.
        explainers: The labels of its explainers, controls last.
        controls: Which of them are controls.
    """

    model: str
    explainers: list[str]
    controls: frozenset[str]

    @abstractmethod
    def columns(self, only: str | None = None) -> Iterator[Column]:
        """Yield each metric, or `only` that of this label."""

    @abstractmethod
    def classes(self, which: Which = "predicted") -> Iterator[tuple[str, int]]:
        """Yield images with the class that the model predicts for them, or with that which is explained."""

    @abstractmethod
    def curves(self) -> Iterator[tuple[str, Iterator[tuple[str, Curve]]]]:
        """Yield each metric that has curves, with the curves and the explainers they belong to."""

    @abstractmethod
    def passes(self) -> dict[str, float]:
        """Return the mean number of forward and backward passes per map, by explainer."""


def labels(methods: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Return short names: the name alone, or with the parameters in which items of that name differ."""
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, parameters in methods:
        groups.setdefault(name, {})[method_id(name, parameters)] = parameters
    short = {}
    for name, members in groups.items():
        for key, parameters in members.items():
            others = [other for other in members.values() if other is not parameters]
            differ = [k for k, v in parameters.items() if any(other.get(k) != v for other in others)]
            short[key] = " ".join([name, *(f"{k}={parameters[k]}" for k in differ)])
    return short


def method_id(name: str, parameters: Mapping[str, Any]) -> str:
    """Return what identifies a method with its parameters in `labels`."""
    return canonical([name, parameters])


def ordered(explainers: Iterable[str], controls: Iterable[str]) -> list[str]:
    """Return the order of the rows of a leaderboard: controls last, then by name, numbers by size."""
    last = set(controls)
    return sorted(set(explainers), key=lambda name: (name in last, _natural(name)))


def _natural(name: str) -> list[tuple[float, str]]:
    return [(float(part), "") if part[:1].isdecimal() else (0.0, part) for part in _NUMBER.split(name)]


class ListedScores(ModelScores):
    """The scores of one model from rows in memory."""

    def __init__(self, model: str, rows: Sequence[tuple[ScoreRow, str, str]]) -> None:
        """Take each row with the labels of its explainer and its metric."""
        self.model, self._rows = model, rows
        self.controls = frozenset(explainer for row, explainer, _ in rows if row.control)
        self.explainers = ordered((explainer for _, explainer, _ in rows), self.controls)

    @classmethod
    def of(cls, rows: Sequence[ScoreRow]) -> list[ModelScores]:
        """Return the scores of each model."""
        explainers = labels((row.explainer, row.explainer_parameters) for row in rows)
        metrics = labels((row.metric, row.metric_parameters) for row in rows)
        models: dict[str, list[tuple[ScoreRow, str, str]]] = {}
        for row in rows:
            explainer = explainers[method_id(row.explainer, row.explainer_parameters)]
            metric = metrics[method_id(row.metric, row.metric_parameters)]
            models.setdefault(row.model, []).append((row, explainer, metric))
        return [cls(model, found) for model, found in models.items()]

    def columns(self, only: str | None = None) -> Iterator[Column]:
        """Yield each metric, or `only` that of this label."""
        images = {image: place for place, image in enumerate(sorted({row.image for row, _, _ in self._rows}))}
        places = {explainer: place for place, explainer in enumerate(self.explainers)}
        names = {metric: row.metric for row, _, metric in self._rows}
        for metric, name in names.items():
            if only not in (None, metric):
                continue
            values = np.full((len(places), len(images)), np.nan)
            scored = np.zeros(len(places), dtype=np.int64)
            for row, explainer, own in self._rows:
                if own == metric:
                    scored[places[explainer]] += 1
                    values[places[explainer], images[row.image]] = np.nan if row.value is None else row.value
            yield Column(metric, name, values, scored, [*images])

    def classes(self, which: Which = "predicted") -> Iterator[tuple[str, int]]:
        """Yield images with a class; see `ModelScores.classes`."""
        for row, _, _ in self._rows:
            found = row.record.get(which)
            if isinstance(found, Mapping) and found.get("index") is not None:
                yield row.image, found["index"]

    def curves(self) -> Iterator[tuple[str, Iterator[tuple[str, Curve]]]]:
        """Yield each metric that has curves, with the curves and the explainers they belong to."""
        for metric in dict.fromkeys(metric for row, _, metric in self._rows if row.curve):
            yield metric, ((who, row.curve) for row, who, own in self._rows if own == metric and row.curve)

    def passes(self) -> dict[str, float]:
        """Return the mean number of forward and backward passes per map, by explainer."""
        spent: dict[str, dict[str, float]] = {}
        for row, explainer, _ in self._rows:
            if row.record:
                counts = (row.record.get(name) or 0 for name in ("forward_passes", "backward_passes"))
                spent.setdefault(explainer, {})[row.key] = float(sum(counts))
        return {explainer: float(np.mean([*counts.values()])) for explainer, counts in spent.items()}
