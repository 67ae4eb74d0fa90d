"""`xaihub train`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import click

from xaihub.api.parameters import Setting, assign
from xaihub.cli._app import App
from xaihub.cli._options import DEVICE, NEW_FOLDER, PARAM, Display, Opt, options
from xaihub.cli._output import progress, put, put_json, say, some
from xaihub.cli._training import PlanCommand, plan_options, read_plan

if TYPE_CHECKING:
    from xaihub.training.config import Config
    from xaihub.training.run import Estimate


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Display):
    """How to run a plan, and where its results go."""

    output: Annotated[str | None, NEW_FOLDER] = None
    settings: Annotated[tuple[Setting, ...], PARAM] = ()
    resume: Annotated[
        str | None, Opt("Resume an interrupted run; no other option may change its plan.", metavar="FOLDER")
    ] = None
    dry_run: Annotated[bool, Opt("Check everything, run three steps and print the cost; nothing is stored.")] = False
    held_out: Annotated[
        str | None, Opt("Copy held-out images and labels.csv there, for 'xaihub evaluate'.", metavar="FOLDER")
    ] = None
    device: Annotated[str, DEVICE] = "auto"


WITH_RESUME = {"resume", "device", "held_out", "as_json", "quiet"}


@click.command(cls=PlanCommand)
@click.argument("data", required=False, metavar="[DATA]")
@options(TrainOptions)
@plan_options
@click.pass_context
def train(ctx: click.Context, /, data: str | None, given: TrainOptions, **plan: Any) -> None:
    """Train or fine-tune a model.

    The result is a model card, which -m of every command accepts. DATA is a folder with one sub-folder per class (or
    train/ and val/ with such sub-folders), a CSV file with the columns file, label and optionally split, hf:NAME, or a
    built-in data set: digits, evidence.

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
    if given.resume:
        extra = [item for item in ctx.command.params if item.name not in WITH_RESUME and _typed(ctx, item)]
        if extra:
            raise click.UsageError(f"--resume takes its plan from the run; remove {_shown(extra[0])}")
        config = service.read_config(given.resume)
    else:
        settings = assign(given.settings, [app.hub.objectives.get(plan["objective"])])[0] if given.settings else {}
        config = read_plan(data, plan, settings)
    if given.held_out and given.dry_run:
        raise click.UsageError("--dry-run stores nothing; remove --held-out")
    if not given.resume and not given.dry_run and not given.output:
        raise click.UsageError("no output folder for the run; add -o FOLDER")
    report = (lambda _text: None) if given.quiet else say
    with progress(quiet=given.quiet) as bar:
        if given.dry_run:
            found = service.estimate(app.hub, config, device=given.device, watch=bar.report)
            _show(found, config, as_json=given.as_json)
            return
        outcome = service.train(
            app.hub,
            config,
            given.resume or str(given.output),
            resume=bool(given.resume),
            device=given.device,
            held_out=given.held_out,
            watch=bar.report,
            tell=report,
        )
    if given.as_json:
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
    if as_json:
        put_json({"data": config.data, **asdict(found)})
        return
    put(
        f"data        {config.data}: {found.train} images for training, {found.held_out} held out\n"
        f"classes     {len(found.classes)}: {some(found.classes)}\n"
        f"objective   {config.objective}: {found.rows_per_image:.3g} rows per image through the network"
        f"{f' ({found.cost})' if found.cost else ''}\n"
        f"weights     {found.trainable_weights:,} trainable\n"
        f"steps       {found.steps}, about {found.seconds_per_step:.2f} s each (measured on a step of the last epoch):"
        f" {found.minutes} minutes"
    )
    for note in found.notes:
        say(f"note: {note}")
