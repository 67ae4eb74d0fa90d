"""`xaihub evaluate`."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import click

from xaihub.api.parameters import Setting
from xaihub.cli._app import App
from xaihub.cli._options import (
    ADDRESS,
    BACKEND,
    BATCH_SIZE,
    BOXES,
    BUDGETS,
    DEVICE,
    ENGINE,
    EXPLAINER,
    FIRST,
    HEAD,
    INPUT,
    LABELS,
    LIKE,
    LIMIT,
    MASKS,
    METRIC,
    MODEL,
    NEW_FOLDER,
    OUTPUTS,
    PAGE,
    PARAM,
    PRECISION,
    SEED,
    TARGET,
    TEXT,
    THREADS,
    WORKERS,
    Display,
    Opt,
    options,
)
from xaihub.cli._output import note, passes, progress, put, put_board, put_checkpoints, put_json, say, table
from xaihub.cli._prepare import TEMPLATE
from xaihub.hub import DEFAULT_TIMEOUT
from xaihub.params import Precision

if TYPE_CHECKING:
    from xaihub.evaluation.plan import Plan
    from xaihub.evaluation.results import ScoreRow
    from xaihub.hub import Hub
    from xaihub.models.model import Model


def _has_plan(ctx: click.Context, _param: click.Parameter, given: str | None) -> str | None:
    """Let a plan that exists win over the user's defaults; this option is read before those that have any."""
    if given is not None:
        ctx.default_map = {}
    return given


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Display):
    """The plan, of which options that are None or empty change nothing, and what to do with it."""

    models: Annotated[tuple[str, ...], MODEL] = ()
    explainers: Annotated[tuple[str, ...], EXPLAINER] = ()
    metrics: Annotated[tuple[str, ...], METRIC] = ()
    settings: Annotated[tuple[Setting, ...], PARAM] = ()
    target: Annotated[str | None, TARGET] = None
    outputs: Annotated[str | None, OUTPUTS] = None
    like: Annotated[tuple[str, ...], LIKE] = ()
    text: Annotated[tuple[str, ...], TEXT] = ()
    head: Annotated[str, HEAD] = ""
    inputs: Annotated[tuple[Setting, ...], INPUT] = ()
    page: Annotated[int | None, PAGE] = None
    labels: Annotated[str | None, LABELS] = None
    masks: Annotated[str | None, MASKS] = None
    boxes: Annotated[str | None, BOXES] = None
    seed: Annotated[int | None, SEED] = None
    device: Annotated[str | None, DEVICE] = None
    batch_size: Annotated[int | None, BATCH_SIZE] = None
    threads: Annotated[int | None, THREADS] = None
    backend: Annotated[str | None, BACKEND] = None
    precision: Annotated[Precision | None, PRECISION] = None
    budget: Annotated[tuple[str, ...], BUDGETS] = ()
    timeout: Annotated[float, LIMIT] = DEFAULT_TIMEOUT
    limit: Annotated[int | None, FIRST] = None
    shard: Annotated[str | None, Opt("Use only part I of N of the images, by their checksums.", metavar="I/N")] = None
    maps: Annotated[
        Literal["f32", "f16", "none"] | None,
        Opt("Precision of stored maps, or none; default: f32. Scores never depend on it.", show_default=False),
    ] = None
    engine: Annotated[str, ENGINE] = "local"
    jobs: Annotated[int | None, WORKERS] = None
    address: Annotated[str, ADDRESS] = ""
    no_controls: Annotated[bool, Opt("Skip the controls: random map, edge filter and centre prior.")] = False
    output: Annotated[str | None, NEW_FOLDER] = None
    template: Annotated[str | None, TEMPLATE] = None
    config: Annotated[
        str | None,
        Opt("YAML file with the plan; options override its keys.", metavar="FILE", is_eager=True, callback=_has_plan),
    ] = None
    resume: Annotated[
        str | None,
        Opt(
            "Resume a run; may add images, models, explainers and metrics.",
            metavar="FOLDER",
            is_eager=True,
            callback=_has_plan,
        ),
    ] = None
    only_missing: Annotated[bool, Opt("With --resume: do not retry what failed.")] = False
    dry_run: Annotated[bool, Opt("Print the plan and its cost, measured on one image; nothing is stored.")] = False


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@options(EvaluateOptions)
@click.pass_obj
def evaluate(app: App, /, images: tuple[str, ...], given: EvaluateOptions) -> None:
    """Score explainers with metrics over many images.

    Prints a leaderboard. Each explanation and score is computed once and stored; --resume continues an interrupted run.

    \b
    Examples:
      xaihub evaluate photos/ -e gradcam -e rise -k insertion -k deletion -k grid_pointing -o runs/first
      xaihub evaluate photos/ -e rise -k insertion -p masks=500 -p insertion.steps=20 -o runs/second
      xaihub evaluate --config bench.yaml --dry-run
      xaihub evaluate --resume runs/first -e shap
    """
    from xaihub.api.evaluate import planned
    from xaihub.evaluation.engine import make_engine
    from xaihub.evaluation.plan import load_models, make_plan
    from xaihub.evaluation.store import RunStore

    if given.only_missing and not given.resume:
        raise click.UsageError("--only-missing requires --resume")
    if given.template and (given.resume or given.config):
        raise click.UsageError("--template cannot be combined with --config or --resume, which have a plan")
    if given.resume and given.config:
        raise click.UsageError("--resume takes its plan from the run; remove --config")
    if not (images or given.resume or given.config):
        raise click.UsageError("no images to evaluate on; name some, or use --config or --resume")
    config, file = planned(
        app.hub,
        images,
        lists={"models": given.models, "explainers": given.explainers, "metrics": given.metrics},
        params=given.settings,
        scalars={**vars(given), "input": {setting.name: setting.value for setting in given.inputs}},
        no_controls=given.no_controls,
        config=given.config,
        resume=given.resume,
    )
    if not given.dry_run and not given.resume and not config.output:
        raise click.UsageError("no output folder for the run; add -o FOLDER")
    engine = make_engine(app.hub, given.engine, jobs=given.jobs, address=given.address, device=config.device)
    plan = make_plan(app.hub, config, file)
    for reason in plan.notes:
        note(given.quiet)(reason)
    models = load_models(app.hub, plan, file)
    if given.dry_run:
        _estimate(app.hub, plan, models, given)
        return
    from xaihub.evaluation.charts import plot
    from xaihub.evaluation.checkpoints import checkpoints
    from xaihub.evaluation.leaderboard import boards
    from xaihub.evaluation.run import evaluate as run

    with RunStore(given.resume or config.output, create=not given.resume) as store:
        with progress(quiet=given.quiet, unit="explanations") as bar:
            retry = not given.only_missing
            totals = run(
                app.hub, plan, store, models, retry=retry, timeout=given.timeout, engine=engine, watch=bar.report
            )
        scores = store.scores()
        tables = boards(scores, app.hub, plan.labels)
        compared = checkpoints(scores, store.structures, app.hub)
        charts = plot(tables, scores, store.folder / "charts")
        failures = store.failed_images()
        reasons = _reasons(store.stream(failed=True)) if totals.failed else []
    if given.as_json:
        put_json({"totals": totals.__dict__, "boards": [board.to_dict() for board in tables],
                  "checkpoints": [one.to_dict() for one in compared], "failed": failures})  # fmt: skip
    else:
        for board in tables:
            put_board(board)
        for one in compared:
            put_checkpoints(one)
        say(
            f"{totals.scores} scores and {totals.explanations} explanations computed, {totals.kept} scores reused;"
            f" {passes(totals.forward_passes, 'forward')}, {passes(totals.backward_passes, 'backward')},"
            f" {totals.seconds:.1f} s"
        )
        if charts:
            say(f"{len(charts)} charts in {charts[0].parent}")
    for source, reason in failures.items():
        # An error about reading an image already names it.
        say(f"error: {reason}" if source in reason else f"error: {source}: {reason}")
    if totals.failed:
        for line in reasons:
            say(f"error: {line}")
        which = f"; list them: xaihub export {given.resume or config.output} --format json" if reasons else ""
        say(f"{totals.failed} failed{which}")
        raise click.exceptions.Exit(1)


def _reasons(rows: Iterable[ScoreRow]) -> list[str]:
    """Return why each metric or explainer failed, how often, and on which image first."""
    failed = {(row.metric if row.record else row.explainer, row.error, row.key): row.image for row in rows if row.error}
    counts = Counter(pair[:2] for pair in failed)
    first: dict[tuple[str, str | None], str] = {}
    for (who, reason, _), image in failed.items():
        first.setdefault((who, reason), Path(image).name)
    return [
        f"{who}: {reason} ({first[who, reason] if count == 1 else f'{count} maps, the first of {first[who, reason]}'})"
        for (who, reason), count in counts.items()
    ]


def _estimate(hub: Hub, plan: Plan, models: Sequence[Model], given: EvaluateOptions) -> None:
    from xaihub.evaluation.estimate import estimate
    from xaihub.evaluation.store import RunStore

    with tempfile.TemporaryDirectory() as folder, RunStore(Path(folder) / "run", create=True) as store:
        cost = estimate(hub, plan, store, models, timeout=given.timeout)
    names = ("model", "what", "forward_passes", "backward_passes", "seconds")
    rows = [part._asdict() for part in cost.parts]
    if given.as_json:
        put_json({"images": cost.images, "forward_passes": cost.forward_passes, "backward_passes": cost.backward_passes,
                  "seconds": cost.seconds, "record_bytes": cost.record_bytes, "map_bytes": cost.map_bytes,
                  "for_one_image": rows, "not_counted": cost.unknown})  # fmt: skip
        return
    put(table([{**row, "seconds": f"{row['seconds']:.2f}"} for row in rows], names))
    put(
        f"\n{cost.images} images, {len(plan.explainers)} explainers, {len(plan.metrics)} metrics,"
        f" {len(plan.config.models)} models: about {passes(cost.forward_passes, 'forward')},"
        f" {passes(cost.backward_passes, 'backward')}, {cost.seconds / 60:.1f} minutes"
        f" (measured on the first image, times {cost.images});"
        f" {cost.record_bytes / 2**20:,.1f} MiB of records, {cost.map_bytes / 2**20:,.1f} MiB of maps"
    )
    for who, reason in cost.unknown.items():
        say(f"note: {who} is not included: {reason}")
