"""`xaihub train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import msgspec

from xaihub.api.parameters import Setting, assign
from xaihub.api.train import finished
from xaihub.cli._app import App
from xaihub.cli._options import DEVICE, NEW_FOLDER, PARAM, Opt, options
from xaihub.cli._output import progress, put, put_json, say, some, table
from xaihub.cli._training import PlanCommand, PlanOptions, gathered, on_interrupt, plan_options, typed

if TYPE_CHECKING:
    from xaihub.training.comparison import Comparison
    from xaihub.training.config import Config
    from xaihub.training.run import Estimate, Outcome


@dataclass(frozen=True, kw_only=True)
class TrainOptions(PlanOptions):
    """How to run a plan, and where its results go."""

    output: Annotated[str | None, NEW_FOLDER] = None
    settings: Annotated[tuple[Setting, ...], PARAM] = ()
    resume: Annotated[
        str | None, Opt("Resume a run; with a larger --epochs, train on. No other option changes it.", metavar="FOLDER")
    ] = None
    dry_run: Annotated[bool, Opt("Check everything, run three steps and print the cost; nothing is stored.")] = False
    compare: Annotated[bool, Opt("Train without the objective as well, and print both results.")] = False
    held_out: Annotated[
        str | None, Opt("Copy held-out images and labels.csv there, for 'xaihub evaluate'.", metavar="FOLDER")
    ] = None
    device: Annotated[str, DEVICE] = "auto"


WITH_RESUME = {"resume", "epochs", "compare", "device", "held_out", "as_json", "quiet"}


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
      xaihub train photos/ --objective shapley --compare -o runs/s   with an objective, and without it
      xaihub train photos/ --freeze --epochs 50 -o runs/probe        the classifier head only, seconds on a CPU
      xaihub train --resume runs/first                               after an interruption
      xaihub explain cat.jpg -m runs/first/card.yaml                 use the result like any other model
    """
    app = ctx.ensure_object(App)
    from xaihub.training import run as service
    from xaihub.training.memory import keep_freed_memory

    keep_freed_memory()
    if given.resume:
        extra = [item for item in ctx.command.params if item.name not in WITH_RESUME and typed(ctx, str(item.name))]
        if extra:
            raise click.UsageError(f"--resume takes its plan from the run; remove {_shown(extra[0])}")
        config = service.read_config(given.resume)
        if typed(ctx, "epochs"):
            config = msgspec.structs.replace(config, epochs=plan["epochs"])
    else:
        values = gathered(ctx, data, plan, given)
        objective = app.hub.objectives.get(values["objective"])
        config = finished(values, assign(given.settings, [objective])[0] if given.settings else {})
    for option, chosen in (("--held-out", given.held_out), ("--compare", given.compare)):
        if chosen and given.dry_run:
            raise click.UsageError(f"--dry-run stores nothing; remove {option}")
    if not given.resume and not given.dry_run and not given.output:
        raise click.UsageError("no output folder for the run; add -o FOLDER")
    folder = given.resume or str(given.output)
    report = (lambda _text: None) if given.quiet else say
    resume = f"continue with: xaihub train --resume {folder}{' --compare' if given.compare else ''}"
    with on_interrupt(resume, Path(folder) / "checkpoint.safetensors"), progress(quiet=given.quiet) as bar:
        if given.dry_run:
            found = service.estimate(app.hub, config, device=given.device, watch=bar.report)
            _show(found, config, as_json=given.as_json)
            return
        more: dict[str, Any] = {"device": given.device, "held_out": given.held_out, "watch": bar.report, "tell": report}
        both = None
        if given.compare:
            from xaihub.training.comparison import train_both

            both = train_both(app.hub, config, folder, resume=bool(given.resume), **more)
        outcome = both.trained if both else service.train(app.hub, config, folder, resume=bool(given.resume), **more)
    if given.as_json:
        compared = {"baseline": str(both.baseline.card), "compared": both.figures} if both else {}
        put_json({**_record(outcome), **compared})
        return
    _conclude(outcome, config, report)
    if both is not None:
        _put_comparison(both, config, report)
    put(str(outcome.card))


def _record(outcome: Outcome) -> dict[str, Any]:
    return {
        "card": str(outcome.card),
        "best": outcome.best,
        "history": outcome.history,
        "early": outcome.early,
    }


def _conclude(outcome: Outcome, config: Config, report: Callable[[str], None]) -> None:
    """Report the epoch that was saved, its scores, and how to explain an image with it."""
    from xaihub.training.run import scores

    best = outcome.best
    early = f" (stopped early: no improvement in {config.patience} epochs)" if outcome.early else ""
    known = scores(best) if "val_accuracy" in best else "no image was held out to measure its accuracy"
    kind = "last" if config.keep == "last" else "best"
    pairs = zip(best.get("val_class_accuracy", ()), outcome.classes, strict=False)
    lowest = min((pair for pair in pairs if pair[0] is not None), default=None)
    worst = f"; lowest of a class: {lowest[0]:.3f} ({lowest[1]})" if lowest else ""
    report(f"{kind} epoch {best['epoch']} of {len(outcome.history)}{early}: {known}{worst}")
    report(f"explain an image with: xaihub explain IMAGE -m {outcome.card}")


def _put_comparison(both: Comparison, config: Config, report: Callable[[str], None]) -> None:
    names = ("figure", "baseline", config.objective)
    rows = [
        (name, *("-" if value is None else f"{value:.4g}" for value in pair)) for name, pair in both.figures.items()
    ]
    put(table([dict(zip(names, row, strict=True)) for row in rows], names))
    put(f"baseline: {both.baseline.card}; explanations are scored on {both.images} images")
    for name, reason in both.reasons.items():
        report(f"note: {name}: {reason}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


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
