"""Charts of a run: mean curves, and scores against cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from xaihub.errors import OutputError
from xaihub.evaluation.board import Board, mean_curves
from xaihub.evaluation.columns import ListedScores, ModelScores
from xaihub.evaluation.reading import StoredScores
from xaihub.evaluation.results import ScoreRow
from xaihub.files import decoding, write_file
from xaihub.images.marking import marked_png
from xaihub.images.naming import file_names


def plot(boards: Sequence[Board], scores: StoredScores | Sequence[ScoreRow], folder: Path) -> list[Path]:
    """Write PNG charts of mean curves and of score against cost; return their paths.

    Raises:
        OutputError: A file cannot be written, or the scores cannot be drawn.
    """
    written, names = [], file_names(board.model for board in boards)
    with decoding(OutputError(f"the charts in {str(folder)!r} cannot be drawn from these scores")):
        models = ListedScores.of(scores) if isinstance(scores, Sequence) else scores.models()
        own = {one.model: one for one in models}
        for board in boards:
            for name, figure in [*curve_chart(board, own[board.model]), *cost_chart(board, own[board.model])]:
                file = folder / f"{name}__{names[board.model]}.png"
                written.append(write_file(file, figure_png(figure)))
    return written


def figure_png(figure: Figure) -> bytes:
    """Return a chart as a PNG file."""
    return marked_png(partial(figure.savefig, format="png", dpi=120))


def board_chart(board: Board) -> Figure:
    """Return each explainer's mean with its interval, one panel per metric, controls grey."""
    count, names = max(1, len(board.metrics)), board.explainers
    size = (2 + 2.6 * count, 1.4 + 0.26 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, board.metrics, strict=False):
        for place, name in enumerate(names):
            if (entry := board.entries.get((name, metric))) is not None:
                colour = "0.6" if name in board.controls else "tab:blue"
                errors = [[entry.mean - entry.low], [entry.high - entry.mean]]
                axes.errorbar(entry.mean, place, xerr=errors, fmt="o", color=colour, capsize=2, markersize=4)
        better = {True: "higher is better", False: "lower is better", None: ""}[board.directions[metric]]
        axes.set_title(_text(metric), fontsize=9)
        axes.set_xlabel(better, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(names)), [_text(name) for name in names])
    panels[0].invert_yaxis()
    figure.suptitle(_text(f"{board.model}: means with 95 % intervals"), fontsize=10)
    return figure


def curve_chart(board: Board, scores: ModelScores) -> Iterator[tuple[str, Figure]]:
    """Yield one chart per curve metric: the mean curve of each explainer, controls dashed."""
    for metric, found in mean_curves(scores).items():
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for explainer, (x, y) in found.items():
            dashed = explainer in board.controls
            axes.plot(x, y, label=_text(explainer), linestyle="--" if dashed else "-", alpha=0.5 if dashed else 1)
        axes.set(
            title=_text(f"{metric} on {board.model}"),
            **dict(zip(("xlabel", "ylabel"), board.axes[metric], strict=True)),
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncols=2)
        yield f"curve_{_fit(metric)}", figure


def cost_chart(board: Board, scores: ModelScores) -> Iterator[tuple[str, Figure]]:
    """Yield one chart per metric: each explainer's mean with its interval, over passes per map."""
    spent = scores.passes()
    for metric in board.metrics:
        if board.directions[metric] is None or metric.startswith("cost_"):
            continue
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for name in board.explainers:
            entry = board.entries.get((name, metric))
            if entry is None or name not in spent:
                continue
            x, colour = spent[name], "0.6" if name in board.controls else "tab:blue"
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
