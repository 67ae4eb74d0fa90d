"""The command line: parse the options, call a function of `xaihub.api` or another package, show the result."""

from __future__ import annotations

import click

from xaihub import __version__
from xaihub.cli._app import App, Commands, Group
from xaihub.cli._defaults import Lazy
from xaihub.notices.leaving import leave

# Where each command is defined, which is imported when the command is used, and its line in `xaihub --help`.
COMMANDS = {
    "cache": ("cache:cache", "Show or delete what is kept between commands."),
    "compare": ("compare:compare", "Compare explainers and models on one image."),
    "config": ("config:config", "Show or set your own defaults and templates of options."),
    "evaluate": ("evaluate:evaluate", "Score explainers with metrics over many images."),
    "explain": ("explain:explain", "Explain images: which pixels support a class?"),
    "export": ("export:export", "Export a run's scores."),
    "info": ("info:info", "Report versions, devices and plugins, for bug reports."),
    "list": ("list:list_", "List explainers, metrics, models and so on."),
    "merge": ("export:merge", "Merge runs into a new run."),
    "models": ("models:models", "Download models for machines without a network."),
    "plugins": ("plugins:plugins", "Create, install, check and remove plugins."),
    "rank": ("rank:rank", "Rank the features that a model as a whole relies on."),
    "recommend": ("recommend:recommend", "Recommend explainers for a model and a time."),
    "report": ("report:report", "Write a run as one HTML file to share."),
    "reproduce": ("reproduce:reproduce", "Re-run a published experiment."),
    "show": ("show:show", "Show an explainer, metric, model and so on."),
    "sweep": ("sweep:sweep", "Train with several values of a parameter and compare."),
    "train": ("train:train", "Train or fine-tune a model."),
    "tune": ("tune:tune", "Search an explainer's parameters by metrics."),
}
_COMMANDS = Commands(COMMANDS)


def _register_files(ctx: click.Context, _option: click.Parameter, files: tuple[str, ...]) -> None:
    """Register each file as a plugin, before `--help` and the command read what is registered."""
    if files:
        from xaihub.plugin_tools.onefile import register_file

        for file in dict.fromkeys(files):
            register_file(ctx.ensure_object(App).hub.host, file)


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "default_map": Lazy(_COMMANDS)},
)
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
      xaihub recommend -m resnet50 --time 5s           which explainers to try first
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


cli.commands = _COMMANDS


def main() -> None:
    """Run the command line."""
    try:
        cli(prog_name="xaihub")
    except SystemExit as end:
        leave(end.code if isinstance(end.code, int) else 1)
        raise
