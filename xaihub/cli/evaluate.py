"""`xaihub evaluate`."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xaihub.cli._app import App
from xaihub.cli._options import SEED, json_option, pairs
from xaihub.cli._output import progress, put, put_board, put_json, say
from xaihub.errors import ParameterError

if TYPE_CHECKING:
    from xaihub.evaluation.config import Config
    from xaihub.evaluation.plan import Plan
    from xaihub.evaluation.results import ScoreRow
    from xaihub.models.model import Model

__all__ = ["evaluate"]


@click.command()
@click.argument("images", nargs=-1, metavar="[PICTURE]...")
@click.option("-m", "--model", "models", multiple=True, help="A model; may be repeated.")
@click.option("-e", "--explainer", "explainers", multiple=True, help="An explainer; may be repeated.")
@click.option("-k", "--metric", "metrics", multiple=True, help="A metric of 'xaihub list metrics'; may be repeated.")
@click.option(
    "-p", "--param", "values", multiple=True, metavar="OWNER.NAME=VALUE", help="A parameter of one explainer or metric."
)
@click.option("-t", "--target", metavar="CLASS", help="What is explained; by default each predicted class.")
@click.option("--labels", metavar="FILE", help="CSV with file,class_index: explain the labelled class.")
@click.option("--masks", metavar="FOLDER", help="Mask images (white on black) with the photos' names.")
@click.option("--boxes", metavar="FILE", help="CSV with file,left,top,right,bottom in pixels.")
@click.option("--seed", type=SEED, help="Fixes every random choice.  [default: 0]")
@click.option("--device", help="auto, cpu, cuda, cuda:N or mps.  [default: auto]")
@click.option("--batch-size", type=click.IntRange(1), help="Rows a forward pass; by default as memory allows.")
@click.option("--limit", type=click.IntRange(1), help="Take only the first so many images.")
@click.option("--no-controls", is_flag=True, help="Leave out the random map, the edge filter and the centre prior.")
@click.option("-o", "--output", metavar="FOLDER", help="The run's folder, new.")
@click.option("--config", "config_file", metavar="FILE", help="A YAML file with all of the above.")
@click.option("--resume", metavar="FOLDER", help="Continue a run; may add images, models, explainers and metrics.")
@click.option("--only-missing", is_flag=True, help="With --resume: do not try again what failed.")
@click.option(
    "--dry-run", is_flag=True, help="Print the plan and its cost, measured on the first image; store nothing."
)
@json_option
@click.option("-q", "--quiet", is_flag=True, help="No progress; only the table and errors.")
@click.pass_obj
def evaluate(
    app: App, /, *, resume: str | None, config_file: str | None, only_missing: bool, dry_run: bool, **options: Any
) -> None:
    """Judge explainers by metrics over many images: a leaderboard that survives anything.

    Every explanation is made once and every score measured once; an interrupted run continues with --resume.

    \b
    Examples:
      xaihub evaluate photos/ -e gradcam -e rise -k insertion -k deletion -k grid_pointing -o runs/first
      xaihub evaluate --config bench.yaml --dry-run
      xaihub evaluate --resume runs/first -e shap
    """
    from xaihub.evaluation.config import read_config
    from xaihub.evaluation.plan import load_models, make_plan

    if only_missing and not resume:
        raise click.UsageError("--only-missing goes with --resume")
    if resume and config_file:
        raise click.UsageError("--resume takes the plan from the run; leave --config out")
    file = None
    if resume:
        config = _stored(resume)
    elif config_file:
        config, file = read_config(config_file)
    else:
        if not options["images"]:
            raise click.UsageError("give images to evaluate on, --config or --resume")
        config = _blank()
    config = _updated(config, options, add=bool(resume))
    if not dry_run and not resume and not config.output:
        raise click.UsageError("say where the run goes: -o FOLDER")
    plan = make_plan(app.hub, config, file)
    models = load_models(app.hub, plan, file)
    if dry_run:
        _estimate(app, plan, models, options)
        return
    from xaihub.evaluation.charts import plot
    from xaihub.evaluation.leaderboard import boards
    from xaihub.evaluation.run import evaluate as run
    from xaihub.evaluation.store import RunStore

    with RunStore(resume or config.output, create=not resume) as store:
        with progress(quiet=options["quiet"]) as bar:
            totals = run(app.hub, plan, store, models, retry=not only_missing, watch=bar.report)
        rows = store.rows()
        tables = boards(rows, app.hub)
        charts = plot(tables, rows, store.folder / "charts")
        failures = store.failed_images()
    if options["as_json"]:
        put_json({"totals": totals.__dict__, "boards": [b.to_dict() for b in tables], "failed": failures})
    else:
        for board in tables:
            put_board(board)
        say(
            f"{totals.scores} scores and {totals.explanations} explanations made, {totals.kept} scores kept;"
            f" {totals.forward_passes} forward passes, {totals.backward_passes} backward passes, {totals.seconds:.1f} s"
        )
        if charts:
            say(f"{len(charts)} charts in {charts[0].parent}")
    for source, reason in failures.items():
        # An error of reading an image names it already.
        say(f"error: {reason}" if source in reason else f"error: {source}: {reason}")
    if totals.failed:
        reasons = _reasons(rows)
        for line in reasons:
            say(f"error: {line}")
        which = f"; which ones: xaihub export {resume or config.output} --format json" if reasons else ""
        say(f"{totals.failed} failed{which}")
        raise click.exceptions.Exit(1)


def _reasons(rows: Sequence[ScoreRow]) -> list[str]:
    """Say once why each metric or explainer failed, and how often."""
    failed = {(row.metric if row.record else row.explainer, row.error, row.key): None for row in rows if row.error}
    counts = Counter(pair[:2] for pair in failed)
    return [f"{who}: {reason} ({count} {'map' if count == 1 else 'maps'})" for (who, reason), count in counts.items()]


def _blank() -> Config:
    from xaihub.evaluation.config import Config

    return Config(images=[])


def _stored(folder: str) -> Config:
    from xaihub.evaluation.store import RunStore

    with RunStore(folder) as store:
        return store.config


def _updated(config: Config, options: dict[str, Any], *, add: bool) -> Config:
    """Lay the command line's options over a plan; with `add` its lists grow instead of being replaced."""
    from xaihub.evaluation.config import Choice

    values = pairs(options["values"])
    used: set[str] = set()

    def choices(names: tuple[str, ...]) -> list[str | Choice]:
        made: list[str | Choice] = []
        for name in dict.fromkeys(names):
            own = {key.partition(".")[2]: value for key, value in values.items() if key.partition(".")[0] == name}
            used.update(f"{name}.{key}" for key in own)
            made.append(Choice(name, dict(own)) if own else name)
        return made

    lists: dict[str, list[Any]] = {
        "images": [path if path == "-" else os.path.abspath(path) for path in options["images"]],  # noqa: PTH100 - globs stay
        "models": list(options["models"]),
        "explainers": choices(options["explainers"]),
        "metrics": choices(options["metrics"]),
    }
    for name, fresh in lists.items():
        if fresh:
            old = getattr(config, name) if add else []
            setattr(config, name, old + [item for item in fresh if item not in old])
    unused = sorted(set(values) - used)
    if unused:
        raise ParameterError(
            f"-p {unused[0]}: no explainer or metric of that name is asked for", hint="write OWNER.NAME=VALUE"
        )
    for name in ("target", "labels", "masks", "boxes", "seed", "device", "batch_size", "limit", "output"):
        if options[name] is not None:
            setattr(config, name, options[name])
    if options["no_controls"]:
        config.controls = False
    _rooted(config)
    return config


def _rooted(config: Config) -> None:
    """Make paths absolute, so that the run can be resumed from any folder."""
    config.images = [path if path == "-" else os.path.abspath(path) for path in config.images]  # noqa: PTH100 - globs stay
    config.models = [os.path.abspath(m) if m.lower().endswith((".yaml", ".yml")) else m for m in config.models]  # noqa: PTH100
    for name in ("labels", "masks", "boxes"):
        path = getattr(config, name)
        setattr(config, name, path and os.path.abspath(path))  # noqa: PTH100


def _estimate(app: App, plan: Plan, models: Sequence[Model], options: dict[str, Any]) -> None:
    from xaihub.cli._output import table
    from xaihub.evaluation.estimate import estimate
    from xaihub.evaluation.store import RunStore

    with tempfile.TemporaryDirectory() as folder, RunStore(Path(folder) / "run", create=True) as store:
        cost = estimate(app.hub, plan, store, models)
    names = ("model", "what", "forward_passes", "backward_passes", "seconds")
    rows = [{**part._asdict(), "seconds": f"{part.seconds:.2f}"} for part in cost.parts]
    if options["as_json"]:
        put_json({"images": cost.images, "forward_passes": cost.forward_passes, "backward_passes": cost.backward_passes,
                  "seconds": cost.seconds, "for_one_image": rows, "not_counted": cost.unknown})  # fmt: skip
        return
    put(table(rows, names))
    put(
        f"\n{cost.images} images, {len(plan.explainers)} explainers, {len(plan.metrics)} metrics,"
        f" {len(plan.config.models)} models: about {cost.forward_passes} forward passes,"
        f" {cost.backward_passes} backward passes,"
        f" {cost.seconds / 60:.1f} minutes (the first image, measured, times {cost.images})"
    )
    for who, reason in cost.unknown.items():
        say(f"note: {who} is not counted: {reason}")
