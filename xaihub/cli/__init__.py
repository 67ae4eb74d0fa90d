"""The command line: parse the options, call a function of `xaihub.api` or another package, show the result."""

from __future__ import annotations

import click

from xaihub import __version__
from xaihub.cli._app import App, Group
from xaihub.cli.compare import compare
from xaihub.cli.evaluate import evaluate
from xaihub.cli.explain import explain
from xaihub.cli.export import export, merge
from xaihub.cli.info import info
from xaihub.cli.list import list_
from xaihub.cli.models import models
from xaihub.cli.plugins import plugins
from xaihub.cli.rank import rank
from xaihub.cli.report import report
from xaihub.cli.reproduce import reproduce
from xaihub.cli.show import show
from xaihub.cli.sweep import sweep
from xaihub.cli.train import train


def _register_files(ctx: click.Context, _option: click.Parameter, files: tuple[str, ...]) -> None:
    """Register each file as a plugin, before `--help` and the command read what is registered."""
    if files:
        from xaihub.plugin_tools.onefile import register_file

        for file in dict.fromkeys(files):
            register_file(ctx.ensure_object(App).hub.host, file)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="xaihub %(version)s")
@click.option(
    "--plugin",
    "plugin_files",
    multiple=True,
    is_eager=True,
    expose_value=False,
    callback=_register_files,
    metavar="FILE.py",
    help="Register the explainers, metrics and so on in a Python file; goes before the command; repeatable.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Explain the predictions of vision models.

    \b
    Examples:
      xaihub explain                                   the sample photo, default model and explainer
      xaihub explain cat.jpg -m resnet50 -e rise       another model and explainer
      xaihub compare cat.jpg -e gradcam -e rise        several explainers in one figure
      xaihub evaluate photos/ -k insertion -o runs/a   a leaderboard over many images
      xaihub report runs/a                             the run as one HTML file to share
      xaihub train photos/ -o runs/mine                fine-tune a model on your own classes
      xaihub list explainers                           all explainers
      xaihub show rise                                 parameters, cost and limits of one
      xaihub plugins new my-method                     start your own explainer

    Shell completion: run  eval "$(_XAIHUB_COMPLETE=bash_source xaihub)"  (or zsh_source, fish_source).
    """
    ctx.ensure_object(App)


for command in (
    explain, compare, rank, evaluate, report, export, merge, train, sweep, reproduce, list_, show, models, plugins, info
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Run the command line."""
    cli(prog_name="xaihub")
