"""The command line: parse, call one service, show the result."""

from __future__ import annotations

import click

from xaihub import __version__
from xaihub.cli._app import App, Group
from xaihub.cli.compare import compare
from xaihub.cli.evaluate import evaluate
from xaihub.cli.explain import explain
from xaihub.cli.export import export, merge
from xaihub.cli.list import list_
from xaihub.cli.show import show

__all__ = ["cli", "main"]


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="xaihub %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Explain what vision models see.

    \b
    Examples:
      xaihub explain                                   the sample photo, the default model and explainer
      xaihub explain cat.jpg -m resnet50 -e rise       another model, another explainer
      xaihub compare cat.jpg -e gradcam -e rise        several explainers in one picture
      xaihub evaluate photos/ -k insertion -o runs/a   a leaderboard over many pictures
      xaihub list explainers                           what there is
      xaihub show rise                                 what one does, its parameters and limits

    Shell completion: run  eval "$(_XAIHUB_COMPLETE=bash_source xaihub)"  (or zsh_source, fish_source).
    """
    ctx.ensure_object(App)


for command in (explain, compare, evaluate, export, merge, list_, show):
    cli.add_command(command)


def main() -> None:
    """Run the command line."""
    cli(prog_name="xaihub")
