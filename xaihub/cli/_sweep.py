"""What `xaihub train --sweep` adds to `xaihub train`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xaihub.cli._app import App
from xaihub.cli._output import put, put_json

if TYPE_CHECKING:
    from xaihub.specs import Judged

__all__ = ["SWEEP", "run_sweep", "sweep_options"]

# The options by name, and as they are typed.
SWEEP = {"sweep": "--sweep", "explainers": "--explainer", "metrics": "--metric", "images": "--images"}
F = TypeVar("F", bound=Callable[..., Any])


def sweep_options(function: F) -> F:
    """Add the options of a sweep."""
    options = [
        click.option(
            "--sweep",
            metavar="NAME=V1,V2,...",
            help="Train once for each value of a parameter of the objective, weakest first, and report on all of them.",
        ),
        click.option(
            "-e",
            "--explainer",
            "explainers",
            multiple=True,
            help="With --sweep: an explainer to report on, by default those that suit the objective; may be repeated.",
        ),
        click.option(
            "-k", "--metric", "metrics", multiple=True, help="With --sweep: a metric of each of them; may be repeated."
        ),
        click.option(
            "--images",
            type=click.IntRange(1),
            default=8,
            show_default=True,
            help="With --sweep: how many to explain.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def run_sweep(app: App, config: Any, folder: str, options: Mapping[str, Any], *, as_json: bool, **more: Any) -> None:
    """Run the sweep that `options` ask for and print its report."""
    from xaihub.training.sweep import markdown, parse, sweep

    name, values = parse(options["sweep"])
    judged = _judged(app, options["explainers"], options["metrics"])
    report = sweep(app.hub, config, name, values, folder, judged=judged, images=options["images"], **more)
    if as_json:
        put_json({**vars(report), "trials": [vars(trial) for trial in report.trials]})
        return
    put(markdown(report).partition("![")[0].rstrip())
    put("\n".join(str(file) for file in report.files))


def _judged(app: App, explainers: Sequence[str], metrics: Sequence[str]) -> list[Judged] | None:
    from xaihub.hub import DEFAULT_EXPLAINER
    from xaihub.specs import Judged

    if not explainers and not metrics:
        return None
    names = explainers or (DEFAULT_EXPLAINER,)
    made = [Judged(explainer=name, metrics=tuple(dict.fromkeys(metrics))) for name in dict.fromkeys(names)]
    for item in made:
        app.hub.explainers.get(item.explainer)
    for metric in metrics:
        app.hub.metrics.get(metric)
    return made
