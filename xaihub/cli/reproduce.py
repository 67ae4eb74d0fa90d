"""`xaihub reproduce`: published experiments, registered by the plugins of the methods."""

from __future__ import annotations

import click

from xaihub.cli._app import App
from xaihub.cli._output import clean
from xaihub.errors import PluginError, UnknownName
from xaihub.specs import ReproductionSpec


class _Reproductions(click.Group):
    """A group whose commands are imported when they run; its help uses only their registered metadata."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ctx.ensure_object(App).hub.reproductions.names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        spec = ctx.ensure_object(App).hub.reproductions.find(cmd_name)
        if spec is None:
            return None
        command = spec.load()
        if not isinstance(command, click.Command):
            raise PluginError(f"plugin {spec.plugin!r}: {spec.target!r} is not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            ctx.ensure_object(App).hub.reproductions.get(args[0])
        except UnknownName as error:
            raise click.UsageError(str(error), ctx) from error
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(spec.name, _line(spec)) for spec in ctx.ensure_object(App).hub.reproductions]
        if rows:
            with formatter.section("Experiments"):
                formatter.write_dl(rows)


def _line(spec: ReproductionSpec) -> str:
    source = f" ({spec.paper.title}, {spec.paper.year})" if spec.paper else ""
    return clean(spec.summary + source)


@click.group(cls=_Reproductions)
def reproduce() -> None:
    """Re-run a published experiment.

    Prints our results next to the paper's.

    \b
    Examples:
      xaihub reproduce                  list the experiments
      xaihub reproduce NAME --help      options of one
    """
