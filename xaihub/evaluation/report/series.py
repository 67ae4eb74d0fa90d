"""Explainers of a run that differ in their budget alone: the points of one curve of quality against budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from xaihub.errors import XaihubError
from xaihub.evaluation.columns import labels, method_id
from xaihub.evaluation.results import ScoreRow
from xaihub.explainers.budget import of_passes
from xaihub.hub import Hub


class Point(NamedTuple):
    """Which curve an explainer is a point of, and its budget in words."""

    series: str
    budget: str


def series(labelled: Iterable[tuple[ScoreRow, str, str]], hub: Hub) -> dict[str, Point]:
    """Return the curve of each explainer that ran with several budgets, by its label.

    Which parameters a budget sets is known from the explainer's class; explainers that are not installed any more are
    on no curve.
    """
    rows = {label: row for row, label, _ in labelled if row.record.get("budget")}
    by_name: dict[str, list[str]] = {}
    for label, row in rows.items():
        by_name.setdefault(row.explainer, []).append(label)
    chosen = {name: _chosen(hub, name) for name, several in by_name.items() if len(several) > 1}
    rest = {
        label: (row.explainer, _without(row.explainer_parameters, known))
        for label, row in rows.items()
        if (known := chosen.get(row.explainer)) is not None
    }
    names = labels(rest.values())
    found = {label: Point(names[method_id(*own)], str(rows[label].record["budget"])) for label, own in rest.items()}
    counts: dict[str, int] = {}
    for point in found.values():
        counts[point.series] = counts.get(point.series, 0) + 1
    return {label: point for label, point in found.items() if counts[point.series] > 1}


def _chosen(hub: Hub, name: str) -> set[str] | None:
    """Return the parameters of an explainer that a budget sets; None if its class is not known."""
    spec = hub.explainers.find(name)
    try:
        item = None if spec is None else of_passes(spec.load())
    except XaihubError:
        return None
    return None if item is None or item.passes is None else {"--budget", item.name, *item.passes.others}


def _without(parameters: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name not in names}
