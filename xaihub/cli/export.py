"""`xaihub export` and `xaihub merge`."""

from __future__ import annotations

from pathlib import Path

import click

from xaihub.cli._output import put, say


@click.command()
@click.argument("run")
@click.option(
    "--format",
    "format_",
    type=click.Choice(("csv", "parquet", "json")),
    default="csv",
    show_default=True,
    help="File format ('parquet' needs xaihub[parquet]).",
)
@click.option("--partitioned", is_flag=True, help="For parquet: a folder with one file per model and metric.")
@click.option("-o", "--output", metavar="FILE", help="Output file; default: stdout, for csv and json.")
def export(run: str, format_: str, partitioned: bool, output: str | None) -> None:
    """Export a run's scores.

    The table has one row per score, plus one row per failed image.

    \b
    Examples:
      xaihub export runs/first --format csv > scores.csv
      xaihub export runs/first --format parquet -o scores.parquet
      xaihub export runs/first --format parquet --partitioned -o scores/
    """
    from xaihub.evaluation.export import export as write
    from xaihub.evaluation.store import RunStore

    if partitioned and format_ != "parquet":
        raise click.UsageError("--partitioned requires --format parquet")
    with RunStore(run) as store:
        text = write(store, format_, Path(output) if output else None, partitioned=partitioned)
    put(text.rstrip("\n") if text is not None else str(output))


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("-o", "--output", required=True, metavar="FOLDER", help="Output folder; must not exist yet.")
def merge(runs: tuple[str, ...], output: str) -> None:
    """Merge runs into a new run.

    Duplicate results are kept once; conflicting results are hidden until the merged run is resumed.

    \b
    Examples:
      xaihub merge runs/a runs/b -o runs/ab
    """
    from xaihub.evaluation.merge import merge as join

    merged, aside = join(runs, output)
    with merged:
        say(f"{merged.count()} scores from {len(runs)} runs")
    if aside:
        say(
            f"note: {aside} conflicting scores are hidden, because the runs differ in images, masks, boxes, seed,"
            f" target or version; xaihub evaluate --resume {output} measures them again where needed"
        )
    put(output)
