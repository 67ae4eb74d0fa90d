"""Charts of a run: mean curves, and scores against cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from xaihub.errors import OutputError
from xaihub.evaluation.leaderboard import Board, labelled
from xaihub.evaluation.results import ScoreRow
from xaihub.files import decoding, write_file
from xaihub.images.marking import marked_png
from xaihub.images.naming import file_names


def plot(boards: Sequence[Board], rows: Sequence[ScoreRow], folder: Path) -> list[Path]:
    """Write PNG charts of mean curves and of score against cost; return their paths.

    Raises:
        OutputError: A file cannot be written, or the scores cannot be drawn.
    """
    written, names = [], file_names(board.model for board in boards)
    with decoding(OutputError(f"the charts in {str(folder)!r} cannot be drawn from these scores")):
        for board in boards:
            for name, figure in [*curve_chart(board, rows), *cost_chart(board, rows)]:
                file = folder / f"{name}__{names[board.model]}.png"
                written.append(write_file(file, marked_png(partial(figure.savefig, format="png", dpi=120))))
    return written


def curve_chart(board: Board, rows: Sequence[ScoreRow]) -> Iterator[tuple[str, Figure]]:
    """Yield one chart per curve metric: the mean curve of each explainer, controls dashed."""
    curves: dict[str, dict[str, list[Any]]] = {}
    for row, explainer, metric in labelled(rows):
        if row.model == board.model and row.curve:
            curves.setdefault(metric, {}).setdefault(explainer, []).append(row.curve)
    for metric, found in curves.items():
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for explainer, several in found.items():
            if len({len(curve[0]) for curve in several}) == 1:
                x = np.mean([curve[0] for curve in several], axis=0)
                y = np.mean([curve[1] for curve in several], axis=0)
                dashed = explainer in board.controls
                axes.plot(x, y, label=_text(explainer), linestyle="--" if dashed else "-", alpha=0.5 if dashed else 1)
        axes.set(
            title=_text(f"{metric} on {board.model}"),
            **dict(zip(("xlabel", "ylabel"), board.axes[metric], strict=True)),
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncols=2)
        yield f"curve_{_fit(metric)}", figure


def cost_chart(board: Board, rows: Sequence[ScoreRow]) -> Iterator[tuple[str, Figure]]:
    """Yield one chart per metric: each explainer's mean with its interval, over passes per map."""
    spent: dict[str, list[float]] = {}
    for row, explainer, _ in labelled(rows):
        if row.model == board.model and row.record:
            spent.setdefault(explainer, []).append(
                row.record.get("forward_passes", 0) + row.record.get("backward_passes", 0)
            )
    for metric in board.metrics:
        if board.directions[metric] is None or metric.startswith("cost_"):
            continue
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for name in board.explainers:
            entry, passes = board.entries.get((name, metric)), spent.get(name)
            if entry is None or not passes:
                continue
            x, colour = float(np.mean(passes)), "0.6" if name in board.controls else "tab:blue"
            errors = [[entry.mean - entry.low], [entry.high - entry.mean]]
            axes.errorbar(max(x, 0.5), entry.mean, yerr=errors, fmt="o", color=colour, capsize=3)
            axes.annotate(_text(name), (max(x, 0.5), entry.mean), xytext=(5, 4), textcoords="offset points", fontsize=7)
        better = "higher" if board.directions[metric] else "lower"
        axes.set(
            xscale="log", xlabel="forward + backward passes per map", ylabel=_text(f"{metric} ({better} is better)"),
            title=_text(f"{metric} against cost on {board.model}"),
        )  # fmt: skip
        axes.margins(x=0.18)  # room for the names on the right
        axes.grid(alpha=0.3)
        yield f"cost_{_fit(metric)}", figure


def _fit(name: str) -> str:
    """Make a name safe for file names; parameters may contain paths."""
    return re.sub(r"[^\w.=-]+", "_", name)[:100]


def _text(name: str) -> str:
    """Return a name for a chart, which takes a dollar sign for the start of a formula."""
    return name[:200].replace("$", r"\$")
