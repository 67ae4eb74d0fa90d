"""`xaihub report`."""

from __future__ import annotations

from pathlib import Path

import click

from xaihub.cli._app import App
from xaihub.cli._output import progress, put


@click.command()
@click.argument("run")
@click.option("-o", "--output", metavar="FILE", help="Output file (.html); default: report.html in the run's folder.")
@click.option("--no-images", is_flag=True, help="Leave out images, maps, pixel sets and file names.")
@click.option(
    "--colormap", metavar="NAME", help="Colour map of matplotlib for the maps; default: by the sign of a map."
)
@click.option("--force", is_flag=True, help="Replace an existing report.")
@click.option("-q", "--quiet", is_flag=True, help="Print only results and errors, no progress and no notes.")
@click.pass_obj
def report(
    app: App, /, run: str, *, output: str | None, no_images: bool, colormap: str | None, force: bool, quiet: bool
) -> None:
    """Write a run as one HTML file to share.

    The file opens offline, in any browser: leaderboards, curves, cost, the maps of every image side by side, failures,
    and the commands that repeat the run. It contains no metadata of the images and no absolute path. Above 50 MB, the
    images go into a folder next to it.

    \b
    Examples:
      xaihub report runs/first
      xaihub report runs/first -o first.html --no-images
    """
    from xaihub.evaluation.report.write import NAME, write_report
    from xaihub.evaluation.store import RunStore

    file = Path(output) if output else Path(run) / NAME
    if file.suffix.lower() != ".html":
        raise click.UsageError(f"cannot write {output!r}: a report is an HTML file; name a .html file")
    with RunStore(run) as store, progress(quiet=quiet) as bar:
        written = write_report(
            store, app.hub, file, images=not no_images, force=force, watch=bar.report, colormap=colormap
        )
    put("\n".join(map(str, written)))
