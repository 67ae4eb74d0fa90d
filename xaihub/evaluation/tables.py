"""Leaderboards as pages show them: tables, sentences, controls, failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xaihub.evaluation.board import Board, Entry
from xaihub.evaluation.results import ScoreRow
from xaihub.explainers.page.document import document

FEW = 3  # images that a failure names
ENOUGH = 5  # images, below which overlapping intervals mean nothing
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
        "caption": f"{most} image{'' if most == 1 else 's'}{accuracy}",
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
        "few": "" if entry.count == most else f"of {entry.count}",
    }


def findings(boards: Sequence[Board]) -> list[str]:
    """Return in words which method is best by each metric, and how clearly, then the notes of the leaderboards."""
    found = []
    for board in boards:
        where = f"On {board.model}, " if len(boards) > 1 else ""
        texts = [*_winners(board), *board.notes]
        # The name of a method keeps its spelling, also at the beginning of a sentence.
        named = {text for text in texts if text.split()[0] in board.explainers}
        found += [f"{where}{text}" if where or text in named else text[:1].upper() + text[1:] for text in texts]
    return [f"{text}." for text in found] or ["There is no score."]


def _winners(board: Board) -> list[str]:
    texts = []
    for metric in board.metrics:
        scored = {name: entry for name in board.explainers if (entry := board.entries.get((name, metric)))}
        methods = [name for name in scored if name not in board.controls]
        best = next((name for name in methods if scored[name].best), None)
        if best is None or metric.startswith("cost_") or len(methods) < 2:
            continue
        ours = scored[best]
        close = [n for n in methods if n != best and scored[n].high >= ours.low and scored[n].low <= ours.high]
        tail = f"its interval overlaps {f'those of {_listed(close)}' if close else 'no other'}"
        if ours.count < ENOUGH:
            tail = f"of {ours.count} image{'' if ours.count == 1 else 's'}, which shows little"
        texts.append(f"{best} has the best mean {metric} ({ours.mean:.3g}); {tail}")
    return texts


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
