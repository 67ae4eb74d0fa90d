"""`xaihub reproduce scores-activation`."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import torch

from xaihub.errors import OutputError
from xaihub.files import write_file
from xaihub_scores_activation.reproduction import experiments
from xaihub_scores_activation.reproduction.report import PAPER, UNKNOWN, markdown
from xaihub_scores_activation.reproduction.tables import REAL, SYNTHETIC

TABLES = (*(name for name in SYNTHETIC if not name.startswith("parity")), *REAL)
QUICK_TABLES = ("classification_16", "wine")
SEEDS, QUICK_SEEDS = 5, 3
CONTROL = "classification_16"


@click.command("scores-activation")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    help=f"Seeds of data, split and network [default: {SEEDS}; with --quick {QUICK_SEEDS}].",
)
@click.option("--epochs", type=click.IntRange(1), default=100, show_default=True, help="Epochs per network.")
@click.option("--quick", is_flag=True, help="Two tables and the control only; training is the same.")
@click.option("--keep", metavar="FILE", help="Save finished parts to this file, and resume from it.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure of every seed as JSON.")
def command(*, seeds: int | None, epochs: int, quick: bool, keep: str | None, as_json: bool) -> None:
    """Measure rankings of the ScoresActivation gate on tables: accuracy, agreement with SHAP, relevance, cost.

    The paper's data and settings are unknown, so this is a reconstruction; its figures are printed next to ours.

    \b
    Examples:
      xaihub reproduce scores-activation --quick
      xaihub reproduce scores-activation --seeds 5 --keep parts.json > report.md
    """  # noqa: D301 - click keeps the layout of a paragraph that begins with a backspace
    # A shorter training would give other results than those we report; a trial run measures less of the same.
    plan = Plan(list(range(seeds or (QUICK_SEEDS if quick else SEEDS))), epochs, quick=quick)
    record = plan.run(None if keep is None else Path(keep))
    click.echo(json.dumps(record, indent=1) if as_json else markdown(record))


class Plan:
    """The measurements, in parts that stand alone."""

    def __init__(self, seeds: list[int], epochs: int, *, quick: bool = False) -> None:
        self.settings = {
            "seeds": seeds,
            "epochs": epochs,
            "quick": quick,
            "machine": platform.machine(),
            "versions": {name: metadata.version(name) for name in ("torch", "scikit-learn", "shap")},
        }
        self.parts: dict[str, Callable[[], Any]] = {
            f"table {name}": partial(experiments.table_rows, name, seeds, epochs)
            for name in (QUICK_TABLES if quick else TABLES)
        }
        self.parts["control"] = partial(experiments.table_rows, CONTROL, seeds, epochs, shuffled=True)
        self.parts["cost"] = partial(experiments.cost, epochs)
        if not quick:
            self.parts["parity"] = partial(experiments.parity, seeds, epochs)
            self.parts["transformer"] = partial(experiments.hosts, seeds, max(1, epochs * 6 // 10))

    def run(self, keep: Path | None = None, *, at_most: int | None = None) -> dict[str, Any]:
        """Measure what is missing in `keep`, and return everything as JSON types; stderr reports each part.

        Raises:
            OutputError: `keep` cannot be written, or holds parts of another plan.
        """
        torch.set_num_threads(1)  # more threads slow down such small networks, and CPU times stay comparable
        done = self._kept(keep)
        for name in [name for name in self.parts if name not in done][:at_most]:
            click.echo(f"measuring: {name}", err=True)
            done[name] = self.parts[name]()
            if keep is not None:
                write_file(keep, json.dumps({"settings": self.settings, "parts": done}))
        return {
            "settings": self.settings,
            "tables": [row for name, rows in done.items() if name.startswith("table ") for row in rows],
            "control": done.get("control", []),
            "parity": done.get("parity", []),
            "hosts": done.get("transformer", []),
            "cost": done.get("cost", {}),
            "paper": PAPER,
            "unknown": UNKNOWN,
        }

    def _kept(self, keep: Path | None) -> dict[str, Any]:
        if keep is None or not keep.exists():
            return {}
        try:
            record = json.loads(keep.read_text(encoding="utf-8"))
            settings, parts = record["settings"], dict(record["parts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{str(keep)!r} does not hold parts of this reproduction", hint="name another file"
            ) from error
        if settings != self.settings:
            raise OutputError(f"{str(keep)!r} holds parts measured with other settings", hint="name another file")
        return parts
