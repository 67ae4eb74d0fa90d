"""`xaihub sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import click

from xaihub.api.parameters import Setting, assign
from xaihub.cli._app import App
from xaihub.cli._options import DEVICE, JSON, PARAM, QUIET, Opt, named_option, options
from xaihub.cli._output import progress, put, put_json, say
from xaihub.cli._training import PlanCommand, plan_options, read_plan
from xaihub.hub import DEFAULT_EXPLAINER, Hub
from xaihub.specs import Judged, ObjectiveSpec

__all__ = ["sweep"]


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What to report on, and where it goes."""

    output: Annotated[
        str,
        Opt("-o", "--output", required=True, metavar="FOLDER", help="Output folder; an interrupted sweep is resumed."),
    ]
    settings: Annotated[tuple[Setting, ...], PARAM]
    explainers: Annotated[
        tuple[str, ...],
        named_option("-e/--explainer", "explainers", "Explainer to report; default: those the objective names; repeatable."),
    ]
    metrics: Annotated[tuple[str, ...], named_option("-k/--metric", "metrics", "Metric to report; repeatable.")]
    images: Annotated[
        int,
        Opt("--images", type=click.IntRange(1), default=8, show_default=True, help="Number of images to explain."),
    ]
    device: Annotated[str, DEVICE]
    as_json: Annotated[bool, JSON]
    quiet: Annotated[bool, QUIET]


@click.command(cls=PlanCommand)
@click.argument("data")
@click.argument("values", metavar="NAME=V1,V2,...")
@options(SweepOptions, "how")
@plan_options
@click.pass_obj
def sweep(app: App, /, data: str, values: str, how: SweepOptions, **plan: Any) -> None:
    """Train once for each value of a parameter of the objective, and compare the results.

    DATA is as for 'xaihub train'. NAME=V1,V2,... names the parameter and its values, weakest first. The report has the
    accuracy, the loss, explanation metrics, and images explained before and after, and recommends a value.

    \b
    Examples:
      xaihub sweep photos/ c=0,0.1,0.5 --objective expo-stability -o runs/expo
      xaihub sweep photos/ smoothing=0,0.1 -e gradcam -k deletion -p deletion.steps=20 -o runs/smooth
    """
    from xaihub.training.memory import keep_freed_memory
    from xaihub.training.sweep import markdown, parse
    from xaihub.training.sweep import sweep as run

    keep_freed_memory()
    name, listed = parse(values)
    parameters, judged = _selected(app.hub, app.hub.objectives.get(plan["objective"]), how)
    config = read_plan(data, plan, parameters)
    report = (lambda _text: None) if how.quiet else say
    with progress(quiet=how.quiet) as bar:
        found = run(
            app.hub,
            config,
            name,
            listed,
            how.output,
            judged=judged,
            images=how.images,
            device=how.device,
            watch=bar.report,
            tell=report,
        )
    if how.as_json:
        put_json({**vars(found), "trials": [vars(trial) for trial in found.trials]})
        return
    put(markdown(found).partition("![")[0].rstrip())
    put("\n".join(str(file) for file in found.files))


def _selected(hub: Hub, objective: ObjectiveSpec, how: SweepOptions) -> tuple[dict[str, str], list[Judged]]:
    """Return the objective's parameters, and the explainers and metrics to report with theirs."""
    judged: Sequence[Judged] = objective.judged
    if how.explainers or how.metrics:
        metrics = tuple(dict.fromkeys(how.metrics))
        names = dict.fromkeys(how.explainers or (DEFAULT_EXPLAINER,))
        judged = [Judged(explainer=name, metrics=metrics) for name in names]
    metrics = tuple(dict.fromkeys(name for item in judged for name in item.metrics))
    explainers = [hub.explainers.get(item.explainer) for item in judged]
    own, *shares = assign(how.settings, [objective, *explainers, *map(hub.metrics.get, metrics)])
    measured = dict(zip(metrics, shares[len(judged) :], strict=True))
    return own, [
        replace(item, parameters={**item.parameters, **share}, metric_parameters=measured)
        for item, share in zip(judged, shares, strict=False)
    ]
