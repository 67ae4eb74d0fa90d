"""`xaihub sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import click

from xaihub.api.parameters import Setting, assign
from xaihub.api.train import finished
from xaihub.cli._app import App
from xaihub.cli._options import DEVICE, EXPLAINER, METRIC, PARAM, Opt, options
from xaihub.cli._output import progress, put, put_json, say
from xaihub.cli._training import PlanCommand, PlanOptions, gathered, on_interrupt, plan_options
from xaihub.hub import DEFAULT_EXPLAINER, Hub
from xaihub.specs import Judged, ObjectiveSpec


@dataclass(frozen=True, kw_only=True)
class SweepOptions(PlanOptions):
    """What to report on, and where it goes."""

    output: Annotated[
        str,
        Opt(
            "Output folder; run again to resume an interrupted sweep.",
            "-o",
            "--output",
            metavar="FOLDER",
            required=True,
        ),
    ]
    settings: Annotated[tuple[Setting, ...], PARAM] = ()
    explainers: Annotated[tuple[str, ...], EXPLAINER] = ()
    metrics: Annotated[tuple[str, ...], METRIC] = ()
    images: Annotated[int, Opt("Number of images to explain.", type=click.IntRange(1))] = 8
    device: Annotated[str, DEVICE] = "auto"


@click.command(cls=PlanCommand)
@click.argument("data")
@click.argument("values", metavar="NAME=V1,V2,...")
@options(SweepOptions)
@plan_options
@click.pass_context
def sweep(ctx: click.Context, /, data: str, values: str, given: SweepOptions, **flags: Any) -> None:
    """Train with several values of a parameter and compare.

    DATA is as for 'xaihub train'. NAME=V1,V2,... names the parameter and its values, weakest first. The report has the
    accuracy, the loss, explanation metrics (by default those the objective names), and images explained before and
    after; and it recommends a value.

    \b
    Examples:
      xaihub sweep photos/ c=0,0.1,0.5 --objective expo-stability -o runs/expo
      xaihub sweep photos/ smoothing=0,0.1 -e gradcam -k deletion -p deletion.steps=20 -o runs/smooth
    """
    from xaihub.training.memory import keep_freed_memory
    from xaihub.training.sweep import markdown, parse
    from xaihub.training.sweep import sweep as run

    app = ctx.ensure_object(App)
    keep_freed_memory()
    name, listed = parse(values)
    plan = gathered(ctx, data, flags, given)
    parameters, judged = _selected(app.hub, app.hub.objectives.get(plan["objective"]), given)
    config = finished(plan, parameters)
    report = (lambda _text: None) if given.quiet else say
    with on_interrupt("run the same command again to continue"), progress(quiet=given.quiet) as bar:
        found = run(
            app.hub,
            config,
            name,
            listed,
            given.output,
            judged=judged,
            images=given.images,
            device=given.device,
            watch=bar.report,
            tell=report,
        )
    if given.as_json:
        put_json({**vars(found), "trials": [vars(trial) for trial in found.trials]})
        return
    put(markdown(found).partition("![")[0].rstrip())
    put("\n".join(str(file) for file in found.files))


def _selected(hub: Hub, objective: ObjectiveSpec, given: SweepOptions) -> tuple[dict[str, str], list[Judged]]:
    """Return the objective's parameters, and the explainers and metrics to report with theirs."""
    judged: Sequence[Judged] = objective.judged
    if given.explainers or given.metrics:
        metrics = tuple(dict.fromkeys(given.metrics))
        names = dict.fromkeys(given.explainers or (DEFAULT_EXPLAINER,))
        judged = [Judged(explainer=name, metrics=metrics) for name in names]
    metrics = tuple(dict.fromkeys(name for item in judged for name in item.metrics))
    explainers = [hub.explainers.get(item.explainer) for item in judged]
    own, *shares = assign(given.settings, [objective, *explainers, *map(hub.metrics.get, metrics)])
    measured = dict(zip(metrics, shares[len(judged) :], strict=True))
    return own, [
        replace(item, parameters={**item.parameters, **share}, metric_parameters=measured)
        for item, share in zip(judged, shares, strict=False)
    ]
