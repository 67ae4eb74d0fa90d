"""Leaderboards: mean scores with intervals, compared with controls, with notes on contradictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xaihub.errors import OutputError
from xaihub.evaluation.board import Board, Entry
from xaihub.evaluation.bootstrap import intervals
from xaihub.evaluation.columns import Column, ListedScores, ModelScores
from xaihub.evaluation.reading import StoredScores
from xaihub.evaluation.results import ScoreRow
from xaihub.evaluation.significance import COSTS, Difference, differences, images_needed
from xaihub.files import write_file
from xaihub.hub import Hub
from xaihub.records import plain
from xaihub.specs import MetricSpec

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Leaderboard(Board):
    """The leaderboard of one model; `Board` documents the attributes."""

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas table with one row per explainer and metric: mean, low, high, count, failed, best, p."""
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


def boards(
    scores: StoredScores | Sequence[ScoreRow], hub: Hub, labels: Mapping[str, int] | None = None
) -> list[Leaderboard]:
    """Return one leaderboard per model; with the class of each labelled image, also the models' accuracy.

    Of stored scores, one metric at a time is read.
    """
    models = ListedScores.of(scores) if isinstance(scores, Sequence) else scores.models()
    return [_board(one, hub, labels or {}) for one in models]


def _board(scores: ModelScores, hub: Hub, known: Mapping[str, int]) -> Leaderboard:
    methods = [place for place, name in enumerate(scores.explainers) if name not in scores.controls]
    entries: dict[tuple[str, str], Entry] = {}
    compared: list[_Compared] = []
    paired: list[Difference] = []
    axes, used = {}, np.zeros(len(scores.explainers), dtype=np.int64)
    for column in scores.columns():
        spec = hub.metrics.find(column.name) or MetricSpec(name=column.name, target="")
        axes[column.metric] = spec.axes
        used += column.scored
        there = [place for place, row in enumerate(column.values) if not np.isnan(row).all()]
        found = intervals([row[~np.isnan(row)] for row in column.values[there]])
        for place, (mean, low, high) in zip(there, found, strict=True):
            count = int((~np.isnan(column.values[place])).sum())
            failed = int(column.scored[place]) - count
            pair = scores.explainers[place], column.metric
            entries[pair] = Entry(mean=mean, low=low, high=high, count=count, failed=failed)
        compared.append(_Compared.of(column, scores, methods, spec.higher_is_better))
        own = [] if column.name in COSTS else differences(column, scores.explainers)
        paired += own
        best = compared[-1].best
        if best is not None:
            entries[best, column.metric] = replace(entries[best, column.metric], best=True)
            for one in own:
                if best in (one.first, one.second):
                    pair = one.second if one.first == best else one.first, column.metric
                    entries[pair] = replace(entries[pair], p=one.p)
    explainers = [name for name, count in zip(scores.explainers, used, strict=True) if count]
    pairs = scores.classes() if known else ()
    right = [index == known[image] for image, index in dict(pairs).items() if image in known]
    methods = [place for place in methods if used[place]]
    return Leaderboard(
        model=scores.model,
        accuracy=sum(right) / len(right) if right else None,
        labelled=len(right),
        metrics=[one.metric for one in compared],
        directions={one.metric: one.better for one in compared},
        axes=axes,
        explainers=explainers,
        controls=scores.controls & set(explainers),
        entries=entries,
        differences=paired,
        notes=[
            *_uneven(compared),
            *(note for one in compared for note in one.beaten),
            *_contradictions(compared, len(methods)),
            *_undecidable(paired),
        ],
    )


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """What a comparison of the methods on one metric gives, each on the images for which all compared have a score.

    Attributes:
        metric: The metric.
        better: Whether higher is better, or None.
        means: The mean of each method.
        best: The best method.
        shared: Number of images that the methods share, if they were scored on different ones.
        beaten: What is to be said about controls.
    """

    metric: str
    better: bool | None
    means: Mapping[str, float]
    best: str | None
    shared: int | None
    beaten: Sequence[str]

    @property
    def sign(self) -> int:
        return 1 if self.better else -1

    @classmethod
    def of(cls, column: Column, scores: ModelScores, methods: Sequence[int], better: bool | None) -> _Compared:
        def means(places: Sequence[int]) -> dict[str, float]:
            there = [place for place in places if not np.isnan(column.values[place]).all()]
            common = ~np.isnan(column.values[there]).any(axis=0)
            if not there or not common.any():
                return {}
            return {scores.explainers[place]: float(column.values[place][common].mean()) for place in there}

        sign, own = 1 if better else -1, means(methods)
        shared, beaten = None, list[str]()
        if better is not None:
            shared = _shared(column, methods)
            if column.name not in COSTS:
                for place, control in enumerate(scores.explainers):
                    if control in scores.controls:
                        others = means([*methods, place])
                        beaten += _beaten(column.metric, others.pop(control, None), others, control, sign)
        best = max(own, key=lambda name: sign * own[name]) if own and better is not None else None
        return cls(metric=column.metric, better=better, means=own, best=best, shared=shared, beaten=beaten)


def _shared(column: Column, methods: Sequence[int]) -> int | None:
    """Return how many images the methods share, if they were scored on different ones."""
    scored = ~np.isnan(column.values[list(methods)])
    scored = scored[scored.any(axis=1)]
    return None if not len(scored) or (scored == scored[0]).all() else int(scored.all(axis=0).sum())


def _uneven(compared: Sequence[_Compared]) -> Iterator[str]:
    """Report metrics for which methods were scored on different images."""
    found: dict[int, list[str]] = {}
    for one in compared:
        if one.shared is not None:
            found.setdefault(one.shared, []).append(one.metric)
    for common, metrics in found.items():
        best = f'"best" uses the {common} images they share' if common else "they share none, so none is best"
        yield f"methods were scored on different images for {', '.join(metrics)}; {best}"


def _beaten(metric: str, mean: float | None, others: Mapping[str, float], control: str, sign: int) -> Iterator[str]:
    """Report a metric on which a control, which does not look at the model, beats every method."""
    if mean is None or not others:
        return
    best = max(others, key=lambda name: sign * others[name])
    if sign * mean > sign * others[best]:
        yield (
            f"{control} beats every method on {metric} ({mean:.3g}, best method {best} {others[best]:.3g});"
            " this metric alone demonstrates nothing here"
        )


def _contradictions(compared: Sequence[_Compared], methods: int) -> Iterator[str]:
    """Report pairs of metrics that rank the methods in opposite orders, by Kendall's tau."""
    from scipy.stats import kendalltau

    if methods < 3:
        return
    ranked = [
        (one, [one.sign * mean for mean in one.means.values()])
        for one in compared
        if one.better is not None and not one.metric.startswith("cost_") and len(one.means) == methods
    ]
    for number, (first, ours) in enumerate(ranked):
        for second, theirs in ranked[number + 1 :]:
            tau = kendalltau(ours, theirs).statistic
            if tau < -0.3:
                best = f"the best is {first.best} by {first.metric}, {second.best} by {second.metric}"
                names = f"{first.metric} and {second.metric}"
                yield f"{names} rank the methods in opposite orders (Kendall's tau {tau:.2f}): {best}"


def _undecidable(paired: Sequence[Difference]) -> Iterator[str]:
    """Report that there are too few images for any paired difference to be significant."""
    needed = {one.metric: images_needed(one.comparisons) for one in paired}
    if paired and all(one.count < needed[one.metric] for one in paired):
        most = max(one.count for one in paired)
        yield (
            f"{most} image{'' if most == 1 else 's'} cannot distinguish any two explainers: of"
            f" {max(one.comparisons for one in paired)} paired comparisons, one is significant with"
            f" {max(needed.values())} images at the earliest"
        )
