"""`xaihub tune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import click

from xaihub.api.parameters import Setting
from xaihub.cli._app import App
from xaihub.cli._options import (
    ADDRESS,
    BACKEND,
    BATCH_SIZE,
    BOXES,
    BUDGET,
    DEVICE,
    ENGINE,
    EXPLAINER,
    FIRST,
    LABELS,
    LIMIT,
    MASKS,
    METRIC,
    MODEL,
    OUTPUTS,
    PRECISION,
    SEED,
    TARGET,
    THREADS,
    WORKERS,
    Display,
    Opt,
    options,
    parse_settings,
)
from xaihub.cli._output import note, passes, progress, put, put_json, say, some, table
from xaihub.cli._prepare import TEMPLATE
from xaihub.hub import DEFAULT_EXPLAINER, DEFAULT_MODEL, DEFAULT_TIMEOUT
from xaihub.params import Precision

if TYPE_CHECKING:
    from xaihub.api.tune import Tuning
    from xaihub.evaluation.search import Cost, Tried

SHOWN = 10  # settings


@dataclass(frozen=True, kw_only=True)
class TuneOptions(Display):
    """What is searched, by which metrics, at which cost."""

    models: Annotated[tuple[str, ...], MODEL] = (DEFAULT_MODEL,)
    explainers: Annotated[tuple[str, ...], EXPLAINER] = (DEFAULT_EXPLAINER,)
    metrics: Annotated[tuple[str, ...], METRIC] = ("insertion",)
    settings: Annotated[
        tuple[Setting, ...],
        Opt(
            "Fix a parameter of the explainer (NAME=V), list values to try (NAME=V1,V2) or give a range (NAME=4..16);"
            " METRIC.NAME=V sets a parameter of a metric; repeatable.",
            "-p", "--param", metavar="[METRIC.]NAME=VALUES", callback=parse_settings,
        ),
    ] = ()  # fmt: skip
    trials: Annotated[int, Opt("Maximum number of settings, the defaults included.", type=click.IntRange(2))] = 16
    target: Annotated[str | None, TARGET] = None
    outputs: Annotated[str | None, OUTPUTS] = None
    labels: Annotated[str | None, LABELS] = None
    masks: Annotated[str | None, MASKS] = None
    boxes: Annotated[str | None, BOXES] = None
    limit: Annotated[int | None, FIRST] = None
    timeout: Annotated[float, LIMIT] = DEFAULT_TIMEOUT
    engine: Annotated[str, ENGINE] = "local"
    jobs: Annotated[int | None, WORKERS] = None
    address: Annotated[str, ADDRESS] = ""
    template: Annotated[str | None, TEMPLATE] = None
    dry_run: Annotated[bool, Opt("Print the cost, measured on one image; nothing is stored.")] = False
    budget: Annotated[str | None, BUDGET] = None
    seed: Annotated[int, SEED] = 0
    device: Annotated[str, DEVICE] = "auto"
    batch_size: Annotated[int | None, BATCH_SIZE] = None
    threads: Annotated[int | None, THREADS] = None
    backend: Annotated[str, BACKEND] = "auto"
    precision: Annotated[Precision, PRECISION] = "f32"
    output: Annotated[
        str | None, Opt("Folder that keeps all results; run again to continue.", "-o", "--output", metavar="FOLDER")
    ] = None


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@options(TuneOptions)
@click.pass_obj
def tune(app: App, /, images: tuple[str, ...], given: TuneOptions) -> None:
    """Search an explainer's parameters by metrics.

    The settings are compared on one half of the images, at random. The best one is then compared with the defaults on
    the other half, which had no part in the choice: the gain there is reported with a 95 % interval, and the command
    that uses what was found. Parameters are searched over their declared choices, examples and bounds; those that set
    the number of passes keep their values, and --budget gives every setting the same number. Of several metrics the sum
    is searched by, in which those for which lower is better count negatively.

    \b
    Examples:
      xaihub tune photos/ -e rise -k insertion --budget 500 -o runs/tuned
      xaihub tune photos/ -e rise -p cell=4..16 -p baseline=blur,zero -p keep=0.5 --trials 12
      xaihub tune photos/ -m resnet50 -e lime -k insertion -k deletion -p insertion.steps=20 --dry-run
    """
    for name, several in (("-e", given.explainers), ("-m", given.models)):
        if len(set(several)) > 1:
            raise click.UsageError(f"tune takes one {name}, but there are {len(set(several))}: {', '.join(several)}")
    from xaihub.api.tune import Tuner, workplace

    tuner = Tuner(
        app.hub, images, explainer=given.explainers[0], metrics=given.metrics, model=given.models[0],
        params=given.settings, trials=given.trials, scalars=vars(given),
    )  # fmt: skip
    for reason in tuner.notes:
        note(given.quiet)(reason)
    with workplace(None if given.dry_run else given.output) as folder:
        with progress(quiet=given.quiet, unit="explanations") as bar:
            bar.watch("measuring the cost")
            cost = tuner.cost(folder)
        if given.dry_run:
            put_json(vars(cost)) if given.as_json else put(_cost(cost))
        elif not given.quiet:
            say(_cost(cost))
        for who, reason in cost.unknown.items():
            say(f"note: {who} is not included: {reason}")
        if given.dry_run:
            return
        with progress(quiet=given.quiet, unit="explanations") as bar:
            found = tuner.run(
                folder, timeout=given.timeout, engine=given.engine, jobs=given.jobs, address=given.address,
                watch=bar.report,
            )  # fmt: skip
    if given.as_json:
        put_json(found.to_dict())
    else:
        _show(found)
        if found.unsearched:
            note(given.quiet)(
                f"not searched, as nothing says what to try: {some(found.unsearched)}; give -p NAME=V1,V2"
            )
    for source, reason in found.failed.items():
        say(f"error: {reason}" if source in reason else f"error: {source}: {reason}")


def _cost(cost: Cost) -> str:
    development, test = cost.images
    return (
        f"{cost.settings} settings on {development} images, then the best one and the defaults on {test} others: about"
        f" {passes(cost.forward_passes, 'forward')}, {passes(cost.backward_passes, 'backward')},"
        f" {cost.seconds / 60:.1f} minutes (the defaults on one image, multiplied)"
    )


def _show(found: Tuning) -> None:
    ranked = sorted(
        found.tried, key=lambda one: -float("inf") if one.objective is None else one.objective, reverse=True
    )
    shown = list(dict.fromkeys(ranked.index(one) for one in [*ranked[:SHOWN], found.tried[0]]))
    signs = {1: " ^", -1: " v"}
    columns = {name: f"{name}{signs[sign]}" for name, sign in found.metrics.items()}
    rows = [_row(ranked[place], found, columns) for place in shown]
    put(f"{found.explainer} on {found.model}: {len(found.tried)} settings on {found.images} development images")
    put(table(rows, rows[0]))
    if len(ranked) > len(shown):
        put(f"and {len(ranked) - len(shown)} more settings")
    put(f"best setting: {_setting(found.best)}")
    put(found.verdict)
    put(found.command)


def _row(one: Tried, found: Tuning, columns: dict[str, str]) -> dict[str, str]:
    scores = {title: f"{one.scores[name]:.4g}" if name in one.scores else "-" for name, title in columns.items()}
    total = {} if len(columns) == 1 else {"sum": "-" if one.objective is None else f"{one.objective:.4g}"}
    first = one is found.tried[0]
    setting = _setting(one) + (f" ({one.reason})" if one.reason else "")
    return {**scores, **total, "passes": f"{one.passes:.0f}", "setting": f"{setting} *" if first else setting}


def _setting(one: Tried) -> str:
    return " ".join(f"{name}={value}" for name, value in one.parameters.items()) or "the defaults"
