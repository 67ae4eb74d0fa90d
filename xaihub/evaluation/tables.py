"""Leaderboards as pages show them: tables, sentences, controls, failures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from xaihub.evaluation.board import Board, Entry
from xaihub.evaluation.checkpoints import Checkpoints
from xaihub.evaluation.results import ScoreRow
from xaihub.evaluation.significance import Difference, p_text
from xaihub.explainers.page.document import document

FEW = 3  # images that a failure names
ARROWS = {True: "↑", False: "↓", None: ""}
BETTER = {True: "higher", False: "lower", None: ""}
NO_SUMMARY: Mapping[str, str] = {}


def board_table(board: Board, summaries: Mapping[str, str] = NO_SUMMARY) -> dict[str, Any]:
    """Return a leaderboard as the template shows it; `summaries` describe explainers and metrics by name."""
    counts = [entry.count for entry in board.entries.values()]
    most = max(counts, default=0)
    accuracy = "" if board.accuracy is None else f", accuracy {board.accuracy:.3f} on {board.labelled} labelled images"
    return {
        "model": board.model,
        "caption": f"{_count(most, 'image')}{accuracy}",
        "pairs": pair_rows(board),
        "metrics": [metric_facts(board, metric, summaries) for metric in ordered(board)],
        "rows": [
            {
                "explainer": name,
                "control": name in board.controls,
                "summary": summaries.get(name.partition(" ")[0], ""),
                "cells": [_cell(board.entries.get((name, metric)), most) for metric in ordered(board)],
            }
            for name in board.explainers
        ],
    }


def board_page(board: Board) -> str:
    """Return a leaderboard alone as a page."""
    return document(
        f"Leaderboard of {board.model}",
        boards=[board_table(board)],
        findings=findings([board]),
        controls=control_rows([board]),
    )


def ordered(board: Board) -> list[str]:
    """Return the metrics, those of cost last."""
    return sorted(board.metrics, key=lambda metric: metric.startswith("cost_"))


def metric_facts(board: Board, metric: str, summaries: Mapping[str, str] = NO_SUMMARY) -> dict[str, Any]:
    """Return what a page shows of a metric: name, direction, axes of its curve, summary."""
    direction = board.directions[metric]
    return {
        "name": metric,
        "arrow": ARROWS[direction],
        "better": BETTER[direction],
        "axes": list(board.axes[metric]),
        "summary": summaries.get(metric.partition(" ")[0], ""),
    }


def _cell(entry: Entry | None, most: int) -> dict[str, Any] | None:
    if entry is None:
        return None
    return {
        "mean": entry.mean,
        "text": f"{entry.mean:.3g}",
        "interval": f"[{entry.low:.3g}, {entry.high:.3g}]",
        "best": entry.best,
        "near": entry.near_best,
        "few": "" if entry.count == most else f"of {entry.count}",
    }


def findings(boards: Sequence[Board]) -> list[str]:
    """Return in words which method is best by each metric, and how clearly, then the notes of the leaderboards."""
    found = []
    for board in boards:
        where = f"On {board.model}, " if len(boards) > 1 else ""
        texts = [*_winners(board), *board.notes]
        # The name of a method keeps its spelling, also at the beginning of a sentence.
        named = {text for text in texts if text.startswith(tuple(f"{name} " for name in board.explainers))}
        found += [f"{where}{text}" if where or text in named else text[:1].upper() + text[1:] for text in texts]
    return [f"{text}." for text in found] or ["There is no score."]


def _winners(board: Board) -> list[str]:
    """Return which method is best by each metric, and from which explainers the paired test distinguishes it."""
    texts = []
    for metric in board.metrics:
        scored = {name: entry for name in board.explainers if (entry := board.entries.get((name, metric)))}
        best = next((name for name in scored if scored[name].best), None)
        paired = [one for one in board.differences if one.metric == metric and best in (one.first, one.second)]
        if best is None or not paired:
            continue
        worse, near, better = _apart(best, paired, higher=bool(board.directions[metric]))
        parts = [f"better than {_listed([*worse])} ({_largest(worse.values())})"] if worse else []
        parts += [f"not distinguishable from {_listed([*near])}"] if near else []
        parts += [f"worse than {_listed([*better])} ({_largest(better.values())})"] if better else []
        texts.append(
            f"{best} has the best mean {metric} ({scored[best].mean:.3g}); it is {' and '.join(parts)}"
            f" (paired by image, corrected for {_count(paired[0].comparisons, 'comparison')})"
        )
    return texts


def checkpoint_table(compared: Checkpoints) -> dict[str, Any]:
    """Return the comparison of two checkpoints as the template shows it."""
    return {
        "first": compared.first, "second": compared.second, "notes": [f"{text}." for text in compared.notes],
        "rows": [
            {
                "explainer": one.explainer, "control": one.explainer in compared.controls, "metric": one.metric,
                "mean": one.mean, "mean_text": f"{one.mean:+.3g}", "interval": f"[{one.low:.3g}, {one.high:.3g}]",
                "p": one.p, "p_text": _bare(one.p), "count": one.count, "comparisons": one.comparisons,
                "verdict": "no difference found" if not one.significant else
                           {True: "better", False: "worse", None: "higher" if one.mean > 0 else "lower"}[one.better],
            }
            for one in compared.changes
        ],
    }  # fmt: skip


def _apart(best: str, paired: Sequence[Difference], *, higher: bool) -> tuple[dict[str, float], ...]:
    """Return, with their p-values, which explainers one is better than, not distinguishable from, and worse than."""
    worse, near, better = dict[str, float](), dict[str, float](), dict[str, float]()
    for one in paired:
        ahead = ((one.mean > 0) == (one.first == best)) == higher
        group = near if not one.significant else worse if ahead else better
        group[one.second if one.first == best else one.first] = one.p
    return worse, near, better


def _largest(values: Collection[float]) -> str:
    return p_text(max(values), sign="=" if len(values) == 1 else "≤")


def pair_rows(board: Board) -> list[dict[str, Any]]:
    """Return the paired comparisons of a leaderboard in words, metric by metric, the clearest first."""
    rows = []
    for metric in ordered(board):
        paired = sorted((one for one in board.differences if one.metric == metric), key=lambda one: one.p)
        rows += [
            {
                "metric": metric, "text": _compared(one, board.directions[metric]), "mean": one.mean, "p": one.p,
                "mean_text": f"{one.mean:+.3g}", "p_text": _bare(one.p),
                "count": one.count, "comparisons": one.comparisons,
            }
            for one in paired
        ]  # fmt: skip
    return rows


def _bare(p: float) -> str:
    """Return a p-value for a table, whose heading names it."""
    return p_text(p).removeprefix("p ").removeprefix("= ")


def _compared(one: Difference, direction: bool | None) -> str:
    """Return a paired comparison in words."""
    if not one.significant:
        return f"{one.first} and {one.second} are not distinguishable"
    if direction is None:
        return f"{one.first} is {'higher' if one.mean > 0 else 'lower'} than {one.second}"
    ahead, behind = (one.first, one.second) if (one.mean > 0) == direction else (one.second, one.first)
    return f"{ahead} is better than {behind}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    """Return names in words, of many only the first."""
    shown = [*names[:FEW], f"{len(names) - FEW} more"] if len(names) > FEW else [*names]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def control_rows(boards: Sequence[Board]) -> list[dict[str, Any]]:
    """Return how many methods score better than each control, by metric; costs are not compared."""
    rows = []
    for board in boards:
        for metric in board.metrics:
            direction = board.directions[metric]
            if direction is None or metric.startswith("cost_"):
                continue
            means = {n: entry.mean for n in board.explainers if (entry := board.entries.get((n, metric)))}
            methods = {name: mean for name, mean in means.items() if name not in board.controls}
            for control in (name for name in means if name in board.controls):
                worse = [
                    n for n, mean in methods.items() if (mean > means[control]) != direction or mean == means[control]
                ]
                rows.append({
                    "model": board.model, "metric": metric, "control": control, "mean": f"{means[control]:.3g}",
                    "better": len(methods) - len(worse), "methods": len(methods),
                    "worse": _listed(worse) if worse else "",
                })  # fmt: skip
    return rows


def failure_rows(
    labelled: Sequence[tuple[ScoreRow, str, str]],
    images: Mapping[str, str],
    names: Mapping[str, str],
    shown: Callable[[str], str],
) -> list[dict[str, Any]]:
    """Return what failed, each reason once with its number of maps and the first images.

    Args:
        labelled: Scores with the names of their explainer and metric.
        images: The images that could not be used, with the reason.
        names: The name of each image in the report.
        shown: What a report shows of an error's text.
    """
    groups: dict[tuple[str, str, str], dict[str, None]] = {}
    for row, explainer, metric in labelled:
        if row.error and (row.record or row.error != "there is no explanation to score"):
            who = f"{metric} of {explainer}" if row.record else explainer
            groups.setdefault((who, shown(row.error), row.model), {})[names.get(row.image, Path(row.image).name)] = None
    rows = [
        {"who": who, "reason": reason, "model": model, "count": len(found),
         "images": ", ".join([*found][:FEW]) + (f" and {len(found) - FEW} more" if len(found) > FEW else "")}
        for (who, reason, model), found in groups.items()
    ]  # fmt: skip
    return rows + [
        {"who": names.get(source, Path(source).name), "reason": shown(reason), "model": "", "count": 1, "images": ""}
        for source, reason in images.items()
    ]
