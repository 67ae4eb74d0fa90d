"""`xaihub reproduce`: published experiments, registered by the plugins of the methods."""

from __future__ import annotations

import click

from xaihub.cli._app import App
from xaihub.cli._output import clean
from xaihub.errors import PluginError


class _Reproductions(click.Group):
    """A group whose commands are imported when they run; its help uses only their registered metadata."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ctx.ensure_object(App).hub.reproductions.names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        spec = ctx.ensure_object(App).hub.reproductions.get(cmd_name)
        command = spec.load()
        if not isinstance(command, click.Command):
            raise PluginError(f"plugin {spec.plugin!r}: {spec.target!r} is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for spec in ctx.ensure_object(App).hub.reproductions:
            source = f" ({spec.paper.title}, {spec.paper.year})" if spec.paper else ""
            rows.append((spec.name, clean(spec.summary + source)))
        if rows:
            with formatter.section("Experiments"):
                formatter.write_dl(rows)


@click.group(cls=_Reproductions)
def reproduce() -> None:
    """Re-run a published experiment.

    Prints our results next to the paper's.

    \b
    Examples:
      xaihub reproduce                  list the experiments
      xaihub reproduce NAME --help      options of one
    """
