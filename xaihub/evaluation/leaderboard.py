"""Leaderboards: mean scores with intervals, compared with controls, with notes on contradictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xaihub.errors import OutputError
from xaihub.evaluation.board import Board, Entry, labelled
from xaihub.evaluation.results import ScoreRow
from xaihub.files import write_file
from xaihub.hub import Hub
from xaihub.records import plain
from xaihub.specs import MetricSpec

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RESAMPLES = 2000


class Leaderboard(Board):
    """The leaderboard of one model; `Board` documents the attributes."""

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas table with one row per explainer and metric: mean, low, high, count, failed, best."""
        import pandas as pd

        return pd.DataFrame([{"model": self.model, **row} for row in self.to_dict()["rows"]])

    def html(self) -> str:
        """Return a self-contained HTML page: the sortable table, what it says in words, and the controls."""
        from xaihub.evaluation.tables import board_page

        return board_page(self)

    def plot(self) -> Figure:
        """Return a matplotlib figure: each explainer's mean with its interval, one panel per metric."""
        from xaihub.evaluation.charts import board_chart

        return board_chart(self)

    def save(self, path: str | Path) -> Path:
        """Write the leaderboard as the suffix of `path` says: .html (page), .png (figure), .csv (table) or .json.

        Raises:
            OutputError: The suffix is another one, or the file cannot be written.
        """
        from xaihub.evaluation.charts import figure_png

        made: dict[str, Callable[[], str | bytes]] = {
            ".html": self.html,
            ".png": lambda: figure_png(self.plot()),
            ".csv": lambda: self.to_frame().to_csv(index=False),
            ".json": lambda: json.dumps(plain(self.to_dict()), indent=2, ensure_ascii=False) + "\n",
        }
        if (suffix := Path(path).suffix) not in made:
            raise OutputError(f"cannot save a leaderboard as {str(path)!r}", hint=f"end it in {', '.join(made)}")
        return write_file(path, made[suffix]())

    def _repr_html_(self) -> str:
        from xaihub.explainers.page.document import framed

        return framed(self.html())


def boards(rows: Sequence[ScoreRow], hub: Hub, labels: Mapping[str, int] | None = None) -> list[Leaderboard]:
    """Return one leaderboard per model; with the class of each labelled image, also the models' accuracy."""
    models: dict[str, list[tuple[ScoreRow, str, str]]] = {}
    for one in labelled(rows):
        models.setdefault(one[0].model, []).append(one)
    return [_board(found, hub, labels or {}) for found in models.values()]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and the ends of its 95 % percentile bootstrap interval (2000 resamples, fixed seed)."""
    sample = np.asarray(values, dtype=float)
    picks = np.random.default_rng(0).integers(0, len(sample), size=(RESAMPLES, len(sample)))
    means = sample[picks].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(sample.mean()), float(low), float(high)


def _board(rows: Sequence[tuple[ScoreRow, str, str]], hub: Hub, labels: Mapping[str, int]) -> Leaderboard:
    values: dict[tuple[str, str], list[ScoreRow]] = {}
    for row, explainer, metric in rows:
        values.setdefault((explainer, metric), []).append(row)
    controls = frozenset(explainer for row, explainer, _ in rows if row.control)
    explainers = sorted({explainer for explainer, _ in values}, key=lambda name: (name in controls, name))
    specs = {metric: _spec(hub, row.metric) for row, _, metric in rows}
    directions = {metric: spec.higher_is_better for metric, spec in specs.items()}
    entries: dict[tuple[str, str], Entry] = {}
    for pair, scored in values.items():
        known = [row.value for row in scored if row.value is not None]
        if known:
            mean, low, high = interval(known)
            entries[pair] = Entry(mean=mean, low=low, high=high, count=len(known), failed=len(scored) - len(known))
    table = _Table(values, [name for name in explainers if name not in controls], directions)
    for metric in directions:
        best = table.best(metric)
        if best is not None:
            entries[best, metric] = replace(entries[best, metric], best=True)
    # Every record of an image has the class that the model predicts for it.
    predicted = {row.image: index for row, _, _ in rows if (index := _predicted(row.record)) is not None}
    right = [index == labels[image] for image, index in predicted.items() if image in labels]
    return Leaderboard(
        model=rows[0][0].model,
        accuracy=sum(right) / len(right) if right else None,
        labelled=len(right),
        metrics=list(directions),
        directions=directions,
        axes={metric: spec.axes for metric, spec in specs.items()},
        explainers=explainers,
        controls=controls,
        entries=entries,
        notes=[*table.uneven(), *table.beaten(sorted(controls)), *table.contradictions()],
    )


def _predicted(record: Mapping[str, Any]) -> int | None:
    found = record.get("predicted")
    return found.get("index") if isinstance(found, Mapping) else None


class _Table:
    """Comparisons of methods, each on the images for which all compared methods have a score."""

    def __init__(
        self,
        rows: Mapping[tuple[str, str], Sequence[ScoreRow]],
        methods: Sequence[str],
        directions: Mapping[str, bool | None],
    ) -> None:
        self._scores = {
            pair: {row.image: row.value for row in scored if row.value is not None} for pair, scored in rows.items()
        }
        self._methods, self._directions = methods, directions

    def _means(self, metric: str, names: Sequence[str]) -> dict[str, float]:
        """Return the means over common images, of the methods that have any score."""
        found = {name: scores for name in names if (scores := self._scores.get((name, metric)))}
        common = set.intersection(*map(set, found.values())) if found else set()
        return {
            name: float(np.mean([scores[image] for image in sorted(common)]))
            for name, scores in found.items()
            if common
        }

    def _sign(self, metric: str) -> int:
        return 1 if self._directions[metric] else -1

    def best(self, metric: str) -> str | None:
        means = {} if self._directions[metric] is None else self._means(metric, self._methods)
        return max(means, key=lambda name: self._sign(metric) * means[name]) if means else None

    def uneven(self) -> Iterator[str]:
        """Report metrics for which methods were scored on different images."""
        found: dict[int, list[str]] = {}
        for metric in self._directions:
            sets = [set(scores) for name in self._methods if (scores := self._scores.get((name, metric)))]
            if self._directions[metric] is not None and sets and any(one != sets[0] for one in sets):
                found.setdefault(len(set.intersection(*sets)), []).append(metric)
        for common, metrics in found.items():
            best = f'"best" uses the {common} images they share' if common else "they share none, so none is best"
            yield f"methods were scored on different images for {', '.join(metrics)}; {best}"

    def beaten(self, controls: Sequence[str]) -> Iterator[str]:
        """Report metrics on which a control, which does not look at the model, beats every method."""
        for metric in self._directions:
            if self._directions[metric] is None or metric.partition(" ")[0] in ("cost_forward_passes", "cost_seconds"):
                continue
            for control in controls:
                means, sign = self._means(metric, [*self._methods, control]), self._sign(metric)
                mean = means.pop(control, None)
                if mean is None or not means:
                    continue
                best = max(means, key=lambda name: sign * means[name])
                if sign * mean > sign * means[best]:
                    yield (
                        f"{control} beats every method on {metric} ({mean:.3g}, best method {best} {means[best]:.3g});"
                        " this metric alone demonstrates nothing here"
                    )

    def contradictions(self) -> Iterator[str]:
        """Report pairs of metrics that rank the methods in opposite orders, by Kendall's tau."""
        from scipy.stats import kendalltau

        if len(self._methods) < 3:
            return
        ranked = [
            (metric, [self._sign(metric) * mean for mean in means.values()])
            for metric in self._directions
            if self._directions[metric] is not None and not metric.startswith("cost_")
            if len(means := self._means(metric, self._methods)) == len(self._methods)
        ]
        for number, (first, ours) in enumerate(ranked):
            for second, theirs in ranked[number + 1 :]:
                tau = kendalltau(ours, theirs).statistic
                if tau < -0.3:
                    best = f"the best is {self.best(first)} by {first}, {self.best(second)} by {second}"
                    yield f"{first} and {second} rank the methods in opposite orders (Kendall's tau {tau:.2f}): {best}"


def _spec(hub: Hub, metric: str) -> MetricSpec:
    """Return a metric's record; that of a plugin that is not installed has no direction."""
    return hub.metrics.find(metric) or MetricSpec(name=metric, target="")
