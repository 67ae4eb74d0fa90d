"""`xaihub reproduce scores-activation`."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import Any

import click
import torch

from xaihub_scores_activation import experiments
from xaihub_scores_activation.report import PAPER, UNKNOWN, markdown
from xaihub_scores_activation.tables import MADE, REAL

__all__ = ["command", "run"]

TABLES = (*(name for name in MADE if not name.startswith("parity")), *REAL)
QUICK_TABLES = ("classification_16", "wine")
QUICK_SEEDS, QUICK_EPOCHS = 2, 20
CONTROL = "classification_16"


@click.command("scores-activation")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="Seeds of data, split and network.")
@click.option("--epochs", type=click.IntRange(1), default=100, show_default=True, help="Epochs of each small network.")
@click.option("--quick", is_flag=True, help="Two tables, two seeds, 20 epochs: does it run? Its figures say little.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure of every seed as JSON.")
def command(*, seeds: int, epochs: int, quick: bool, as_json: bool) -> None:
    """Rankings of the ScoresActivation gate on tables: accuracy, agreement with SHAP, truth, cost.

    The paper's data and settings are unknown; this is a reconstruction, with its figures beside ours.

    \b
    Examples:
      xaihub reproduce scores-activation --quick
      xaihub reproduce scores-activation --seeds 5 > report.md
    """  # noqa: D301 - click keeps the layout of a paragraph that begins with a backspace
    record = run(QUICK_SEEDS if quick else seeds, QUICK_EPOCHS if quick else epochs, quick=quick)
    click.echo(json.dumps(record, indent=1) if as_json else markdown(record))


def run(seeds: int, epochs: int, *, quick: bool = False) -> dict[str, Any]:
    """Measure everything and return it as JSON types; one line a step goes to stderr."""
    torch.set_num_threads(1)  # more threads only slow such small networks down, and CPU times compare
    numbers = list(range(seeds))
    tables: list[experiments.Row] = []
    for name in QUICK_TABLES if quick else TABLES:
        _say(name)
        tables += experiments.table_rows(name, numbers, epochs)
    _say("control")
    control = experiments.table_rows(CONTROL, numbers, epochs, shuffled=True)
    _say("parity")
    parity = experiments.parity(numbers, epochs)
    found: list[experiments.Row] = []
    if not quick:
        _say("transformer")
        found = experiments.hosts(numbers, max(1, epochs * 6 // 10))
    _say("cost")
    return {
        "settings": {
            "seeds": numbers,
            "epochs": epochs,
            "quick": quick,
            "machine": platform.machine(),
            "versions": {name: metadata.version(name) for name in ("torch", "scikit-learn", "shap")},
        },
        "tables": [row.to_dict() for row in tables],
        "control": [row.to_dict() for row in control],
        "parity": [row.to_dict() for row in parity],
        "hosts": [row.to_dict() for row in found],
        "cost": experiments.cost(epochs, rows=10 if quick else experiments.COST_ROWS),
        "paper": PAPER,
        "unknown": UNKNOWN,
    }


def _say(what: str) -> None:
    click.echo(f"measuring: {what}", err=True)
