"""`xaihub train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import click

from xaihub.api.parameters import Setting, assign
from xaihub.cli._app import App
from xaihub.cli._options import DEVICE, JSON, PARAM, QUIET, Opt, options
from xaihub.cli._output import progress, put, put_json, say
from xaihub.cli._training import PlanCommand, plan_options, read_plan

if TYPE_CHECKING:
    from xaihub.training.config import Config
    from xaihub.training.run import Estimate

__all__ = ["train"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to run a plan, and where its results go."""

    output: Annotated[
        str | None, Opt("-o", "--output", metavar="FOLDER", help="Output folder of the run; must not exist yet.")
    ]
    settings: Annotated[tuple[Setting, ...], PARAM]
    resume: Annotated[
        str | None,
        Opt("--resume", metavar="FOLDER", help="Resume an interrupted run; no other option may change its plan."),
    ]
    dry_run: Annotated[
        bool,
        Opt("--dry-run", is_flag=True, help="Check everything, run three steps and print the cost; nothing is stored."),
    ]
    held_out: Annotated[
        str | None,
        Opt("--held-out", metavar="FOLDER", help="Copy held-out images and labels.csv there, for 'xaihub evaluate'."),
    ]
    device: Annotated[str, DEVICE]
    as_json: Annotated[bool, JSON]
    quiet: Annotated[bool, QUIET]


WITH_RESUME = {"resume", "device", "held_out", "as_json", "quiet"}


@click.command(cls=PlanCommand)
@click.argument("data", required=False, metavar="[DATA]")
@options(TrainOptions, "how")
@plan_options
@click.pass_context
def train(ctx: click.Context, /, data: str | None, how: TrainOptions, **plan: Any) -> None:
    """Train or fine-tune a model with a training objective; the result is a model card.

    DATA is a folder with one sub-folder per class (or train/ and val/ with such sub-folders), a CSV file with the
    columns file, label and optionally split, hf:NAME, or a built-in data set: digits, evidence.

    \b
    Examples:
      xaihub train photos/ -o runs/first                             the default model, plain cross-entropy
      xaihub train photos/ --objective cross_entropy -p smoothing=0.1 --epochs 10 -o runs/smooth
      xaihub train photos/ --freeze --epochs 50 -o runs/probe        the classifier head only, seconds on a CPU
      xaihub train --resume runs/first                               after an interruption
      xaihub explain cat.jpg -m runs/first/card.yaml                 use the result like any other model
    """
    app = ctx.ensure_object(App)
    from xaihub.training import run as service
    from xaihub.training.memory import keep_freed_memory

    keep_freed_memory()
    if how.resume:
        given = [item for item in ctx.command.params if item.name not in WITH_RESUME and _typed(ctx, item)]
        if given:
            raise click.UsageError(f"--resume takes its plan from the run; remove {_shown(given[0])}")
        config = service.read_config(how.resume)
    else:
        settings = assign(how.settings, [app.hub.objectives.get(plan["objective"])])[0] if how.settings else {}
        config = read_plan(data, plan, settings)
    if how.held_out and how.dry_run:
        raise click.UsageError("--dry-run stores nothing; remove --held-out")
    if not how.resume and not how.dry_run and not how.output:
        raise click.UsageError("no output folder for the run; add -o FOLDER")
    report = (lambda _text: None) if how.quiet else say
    with progress(quiet=how.quiet) as bar:
        if how.dry_run:
            found = service.estimate(app.hub, config, device=how.device, watch=bar.report)
            _show(found, config, as_json=how.as_json)
            return
        outcome = service.train(
            app.hub,
            config,
            how.resume or str(how.output),
            resume=bool(how.resume),
            device=how.device,
            held_out=how.held_out,
            watch=bar.report,
            tell=report,
        )
    if how.as_json:
        put_json({"card": str(outcome.card), "best": outcome.best, "history": outcome.history, "early": outcome.early})
        return
    if outcome.early:
        report(f"stopped early: no improvement in {config.patience} epochs")
    put(str(outcome.card))


def _typed(ctx: click.Context, item: click.Parameter) -> bool:
    return ctx.get_parameter_source(str(item.name)) is click.core.ParameterSource.COMMANDLINE


def _shown(item: click.Parameter) -> str:
    """Return a parameter as users type it."""
    return max(item.opts, key=len) if isinstance(item, click.Option) else str(item.name).upper()


def _show(found: Estimate, config: Config, *, as_json: bool) -> None:
    names = list(found.classes)
    record = {
        "data": config.data,
        "classes": names,
        "train": found.train,
        "held_out": found.val,
        "steps": found.steps,
        "rows_per_image": found.rows,
        "cost": found.cost,
        "trainable_weights": found.trainable,
        "seconds_per_step": round(found.seconds, 3),
        "minutes": round(found.seconds * found.steps / 60, 1),
    }
    if as_json:
        put_json({**record, "notes": list(found.notes)})
        return
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    put(
        f"data        {config.data}: {found.train} images for training, {found.val} held out\n"
        f"classes     {len(names)}: {shown}\n"
        f"objective   {config.objective}: {found.rows:.3g} rows per image through the network"
        f"{f' ({found.cost})' if found.cost else ''}\n"
        f"weights     {found.trainable:,} trainable\n"
        f"steps       {found.steps}, about {found.seconds:.2f} s each (measured on a step of the last epoch):"
        f" {record['minutes']} minutes"
    )
    for note in found.notes:
        say(f"note: {note}")
