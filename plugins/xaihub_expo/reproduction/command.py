"""`xaihub reproduce expo`: the paper's tables, measured and published side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xaihub.errors import OutputError
from xaihub.files import write_file

if TYPE_CHECKING:
    from xaihub_expo.reproduction.experiment import Result


_ROWS = {
    "loss": "test loss",
    "lime_point": "LIME PF",
    "lime_neighbourhood": "LIME NF",
    "lime_stability_as_coded": "LIME S, as coded",
    "lime_stability_fresh": "LIME S, fresh draws",
    "lime_stability": "LIME S, common draws",
    "lime_variance": "Var f",
    "lime_relative_neighbourhood": "LIME NF / Var f",
    "lime_relative_stability": "LIME S / |beta|^2",
    "maple_point": "MAPLE PF",
    "maple_neighbourhood": "MAPLE NF",
    "maple_stability_fresh": "MAPLE S",
    "maple_relative_neighbourhood": "MAPLE NF / Var f",
    "maple_relative_stability": "MAPLE S / |beta|^2",
}


@click.command("expo")
@click.option(
    "--data",
    type=click.Choice(["diabetes", "breast_cancer", "autompg", "housing"]),
    default="diabetes",
    show_default=True,
    help="Data set; the last two need mlxtend ('xaihub[tables]').",
)
@click.option(
    "--splits", type=click.IntRange(1), default=5, show_default=True, help="Number of random splits (paper: 20)."
)
@click.option(
    "-p",
    "--penalty",
    "penalties",
    multiple=True,
    default=("none", "fidelity", "1d"),
    show_default=True,
    metavar="NAME[=C]",
    help="none, fidelity, 1d, stability, l1 or l2, with its fraction of the loss at the start; may be repeated.",
)
@click.option(
    "--points", type=click.IntRange(1), default=40, show_default=True, help="Number of test points explained."
)
@click.option("--maple", is_flag=True, help="Assess MAPLE as well as LIME.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the first split.")
@click.option("-o", "--output", metavar="FILE", help="Write all results as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress line per network.")
def reproduce_expo(
    *,
    data: str,
    splits: int,
    penalties: tuple[str, ...],
    points: int,
    maple: bool,
    seed: int,
    output: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train the paper's networks on tables with and without ExpO, and assess their local explanations.

    All penalties share the splits and the initial weights. PF: point fidelity, NF: neighbourhood fidelity, S:
    stability; lower is better. "change" compares means with "none"; "decreased" counts the splits with a lower value.

    \b
    Examples:
      xaihub reproduce expo --data housing --splits 20
      xaihub reproduce expo --data autompg -p none -p fidelity=0.005 -p fidelity=0.05 --maple
    """  # noqa: D301 - click keeps the layout of a paragraph that begins with a backspace
    from xaihub_expo.reproduction.datasets import TABLES
    from xaihub_expo.reproduction.experiment import contenders, run, summary

    table = TABLES[data]
    chosen = contenders(table, penalties)
    if output and not Path(output).resolve().parent.is_dir():
        raise OutputError(f"cannot write {output!r}: the folder does not exist")
    if output and Path(output).is_dir():
        raise OutputError(f"cannot write {output!r}: it is a folder", hint="name a file")

    def report(result: Result) -> None:
        if not quiet:
            click.echo(
                f"split {result.split + 1}/{splits}  {result.contender:<16} {result.epochs:4} epochs,"
                f" gamma {result.gamma:.3g}, {sum(result.seconds):.1f} s",
                err=True,
            )

    results = run(table, chosen, splits=splits, points=points, maple=maple, seed=seed, report=report)
    records = summary(table, chosen, results)
    text = json.dumps(
        {
            "data": data,
            "splits": splits,
            "points": points,
            "seed": seed,
            "summary": records,
            "results": [vars(result) for result in results],
        },
        indent=2,
    )
    if output:
        write_file(output, text + "\n")
    if as_json:
        click.echo(text)
        return
    click.echo(f"{data}: {table.depth} x {table.width}, {splits} splits, {points} test points; mean (sd) over splits")
    click.echo(_table(records))


def _table(records: list[dict[str, Any]]) -> str:
    lines = [("", "penalty", "measured", "published", "change", "published", "decreased")]
    for metric, label in _ROWS.items():
        for number, record in enumerate(record for record in records if record["metric"] == metric):
            lines.append(
                (
                    "" if number else label,
                    record["model"],
                    _spread(record, ""),
                    _spread(record, "published_"),
                    _percent(record["change"]),
                    _percent(record["published_change"]),
                    "" if record["decreased"] is None else f"{record['decreased']}/{record['splits']}",
                )
            )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _spread(record: Mapping[str, Any], kind: str) -> str:
    if record[f"{kind}mean"] is None:
        return ""
    sd = record[f"{kind}sd"]
    return f"{record[f'{kind}mean']:.3g}" + (f" ({sd:.2g})" if sd is not None else "")


def _percent(change: float | None) -> str:
    return "" if change is None else f"{change:+.0%}"
