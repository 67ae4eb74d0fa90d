"""Writes what `xaihub recommend` knows of the explainers' scores, and the table in docs/how-to/choose-an-explainer.md.

`python docs/measured.py RUN` takes the folder of a run of `xaihub evaluate` with one model and a budget of passes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from xaihub import Hub
from xaihub.api.measured import FILE, Measurement, Measurements
from xaihub.evaluation.leaderboard import boards
from xaihub.evaluation.report.commands import evaluate_command
from xaihub.evaluation.store import RunStore


def read(run: str | Path) -> Measurements:
    """Return the scores of a run."""
    with RunStore(run) as store:
        (board,), (budget,) = boards(store.scores(), Hub()), store.config.budgets or [0]
        return Measurements(
            command=evaluate_command(store.config),
            model=board.model,
            images=len(store.images()),
            budget=int(budget),
            rows=[
                Measurement(
                    explainer=name,
                    metric=metric,
                    higher_is_better=bool(board.directions[metric]),
                    **{key: round(getattr(entry, key), 4) for key in ("mean", "low", "high")},
                    count=entry.count,
                    best=entry.best,
                )
                for (name, metric), entry in board.entries.items()
            ],
        )


def table(found: Measurements) -> str:
    """Return the table of the page, the best mean rank first."""
    metrics = list(dict.fromkeys(row.metric for row in found.rows))
    arrows = {row.metric: "higher" if row.higher_is_better else "lower" for row in found.rows}
    lines = [f"| explainer | {' | '.join(f'{name} ({arrows[name]} is better)' for name in metrics)} |"]
    lines.append(f"|---|{'---|' * len(metrics)}")
    ranks = found.ranks()
    for name in sorted(ranks, key=lambda name: (ranks[name], name)):
        rows = {row.metric: row for row in found.of(name)}
        scores = [f"{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in map(rows.__getitem__, metrics)]
        lines.append(f"| `{name}` | {' | '.join(scores)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    measured = read(sys.argv[1])
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(measured), indent=1) + b"\n")
    sys.stdout.write(table(measured) + "\n")
