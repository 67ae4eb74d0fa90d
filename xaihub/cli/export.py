"""`xaihub export` and `xaihub merge`."""

from __future__ import annotations

from pathlib import Path

import click

from xaihub.cli._output import put, say

__all__ = ["export", "merge"]


@click.command()
@click.argument("run")
@click.option(
    "--format",
    "format_",
    type=click.Choice(("csv", "parquet", "json")),
    default="csv",
    show_default=True,
    help="The form of the table; parquet needs an extra.",
)
@click.option("-o", "--output", metavar="FILE", help="The file; without it csv and json go to stdout.")
def export(run: str, format_: str, output: str | None) -> None:
    """Take the scores of a run elsewhere, one row a score, and one for each image that failed.

    \b
    Examples:
      xaihub export runs/first --format csv > scores.csv
      xaihub export runs/first --format parquet -o scores.parquet
    """
    from xaihub.evaluation.export import export as write
    from xaihub.evaluation.store import RunStore

    with RunStore(run) as store:
        text = write(store, format_, Path(output) if output else None)
    put(text.rstrip("\n") if text is not None else str(output))


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("-o", "--output", required=True, metavar="FOLDER", help="The merged run, new.")
def merge(runs: tuple[str, ...], output: str) -> None:
    """Merge runs into a new one; what several hold is kept once, and what they disagree on is set aside.

    \b
    Examples:
      xaihub merge runs/a runs/b -o runs/ab
    """
    from xaihub.evaluation.merge import merge as join

    merged, aside = join(runs, output)
    with merged:
        say(f"{len(merged.rows())} scores of {len(runs)} runs")
    if aside:
        say(
            f"note: {aside} scores are set aside, as the runs differ in what these depend on (photos, masks, boxes,"
            f" seed, target or version); xaihub evaluate --resume {output} settles them"
        )
    put(output)
