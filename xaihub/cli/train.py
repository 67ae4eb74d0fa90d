"""`xaihub train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from xaihub.cli._app import App
from xaihub.cli._options import json_option, pairs
from xaihub.cli._output import progress, put, put_json, say
from xaihub.cli._sweep import SWEEP, run_sweep, sweep_options
from xaihub.hub import DEFAULT_MODEL

__all__ = ["train"]


@click.command()
@click.argument("data", required=False, metavar="[DATA]")
@click.option(
    "-m",
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    help="A zoo model, a card, or a timm or torchvision name.",
)
@click.option("--checkpoint", metavar="FILE", help="Weights to start from (.safetensors, .pt, .pth).")
@click.option("--scratch", is_flag=True, help="Start from random weights.")
@click.option("--size", type=click.IntRange(8), help="A side of the input in pixels; by default the model's own.")
@click.option(
    "--objective", default="cross_entropy", show_default=True, help="What is minimised: 'xaihub list objectives'."
)
@click.option(
    "-p",
    "--param",
    "values",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the objective; may be repeated.",
)
@click.option("--classes", metavar="FILE", help="Class names by index, one a line.")
@click.option(
    "--val", type=float, default=0.2, show_default=True, help="Share of each class held out, if the data have no split."
)
@click.option("--epochs", type=int, default=5, show_default=True, help="Passes over the images.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="Rows at once, over all processes.")
@click.option("--accumulate", type=int, default=1, show_default=True, help="Batches an optimiser step.")
@click.option("--lr", type=float, default=1e-4, show_default=True, help="The highest learning rate.")
@click.option("--head-lr-scale", type=float, default=10.0, show_default=True, help="Factor on it for the classifier.")
@click.option("--weight-decay", type=float, help="Not on norms and biases.  [default: 0.05, for sgd 0.0005]")
@click.option("--optimizer", type=click.Choice(("adamw", "sgd")), default="adamw", show_default=True, help="Of timm.")
@click.option(
    "--schedule",
    type=click.Choice(("cosine", "step", "constant")),
    default="cosine",
    show_default=True,
    help="How the learning rate falls.",
)
@click.option("--warmup", type=float, default=0.05, show_default=True, help="Share of steps in which it rises first.")
@click.option("--clip", type=float, default=1.0, show_default=True, help="Largest norm of the gradient; 0: none.")
@click.option(
    "--ema", type=float, metavar="DECAY", help="Average the weights, for instance with 0.99; the average is the result."
)
@click.option("--freeze", is_flag=True, help="Train the classifier only; features are computed once where they can be.")
@click.option("--freeze-norm", is_flag=True, help="Keep the statistics of batch norms.")
@click.option("--augment/--no-augment", default=None, help="Random crops and flips.  [default: unless --freeze]")
@click.option("--min-crop", type=float, default=0.5, show_default=True, help="Smallest share of the area a crop keeps.")
@click.option(
    "--monitor",
    type=click.Choice(("loss", "accuracy")),
    default="loss",
    show_default=True,
    help="What the best epoch is judged by.",
)
@click.option("--patience", type=int, help="Stop after so many epochs without improvement.")
@click.option(
    "--keep",
    type=click.Choice(("best", "last")),
    default="best",
    show_default=True,
    help="The epoch whose weights are the result.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Fixes every random choice.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option(
    "--precision",
    type=click.Choice(("fp32", "bf16", "fp16")),
    default="fp32",
    show_default=True,
    help="Of forward passes.",
)
@click.option("--workers", type=int, default=0, show_default=True, help="Processes that read images.")
@click.option("--skip-unreadable", is_flag=True, help="Leave out images that cannot be read.")
@click.option(
    "--save-every", type=float, default=60.0, show_default=True, help="Seconds between checkpoints within an epoch."
)
@click.option(
    "--logger",
    type=click.Choice(("csv", "tensorboard")),
    default="csv",
    show_default=True,
    help="Figures besides log.csv; tensorboard needs an extra.",
)
@click.option(
    "--held-out", metavar="FOLDER", help="Copy the images held out there, with labels.csv, for 'xaihub evaluate'."
)
@click.option("-o", "--output", metavar="FOLDER", help="The run's folder, new.")
@click.option("--resume", metavar="FOLDER", help="Go on with a run after an interruption; takes no other plan.")
@click.option(
    "--dry-run", is_flag=True, help="Check everything, do three steps, print what a run would do; store nothing."
)
@sweep_options
@json_option
@click.option("-q", "--quiet", is_flag=True, help="No progress, no notes; only results and errors.")
@click.pass_context
def train(ctx: click.Context, /, *, output: str | None, resume: str | None, dry_run: bool, **options: Any) -> None:
    """Train a model so that it can be explained; the result is a model card.

    DATA is a folder of class folders (or train/ and val/ of such), a CSV file with the columns file, label and perhaps
    split, hf:NAME, or a built-in set: digits, evidence.

    \b
    Examples:
      xaihub train photos/ -o runs/first                             the default model, plain cross-entropy
      xaihub train photos/ --objective cross_entropy -p smoothing=0.1 --epochs 10 -o runs/smooth
      xaihub train photos/ --freeze --epochs 50 -o runs/probe        the classifier only, seconds on a CPU
      xaihub train photos/ --objective expo-stability --sweep c=0,0.1,0.5 -o runs/expo   accuracy against c
      xaihub train --resume runs/first                               after an interruption
      xaihub explain cat.jpg -m runs/first/card.yaml                 the result is a model like any other
    """
    app = ctx.ensure_object(App)
    device, held_out, quiet, as_json = (options.pop(name) for name in ("device", "held_out", "quiet", "as_json"))
    sweep = {name: options.pop(name) for name in SWEEP}
    from xaihub.training import run as service
    from xaihub.training.memory import keep_freed_memory

    keep_freed_memory()
    if resume:
        fixed = {*options, *SWEEP}
        given = [_shown(one) for one in ctx.command.params if one.name in fixed and _typed(ctx, str(one.name))]
        if given or output or dry_run:
            more = given or (["-o"] if output else ["--dry-run"])
            raise click.UsageError(f"--resume takes the plan from the run; leave {more[0]} out")
        config = service.read_config(resume)
    else:
        config = _config(options)
    if held_out and dry_run:
        raise click.UsageError("--dry-run stores nothing; leave --held-out out")
    if not resume and not dry_run and not output:
        raise click.UsageError("say where the run goes: -o FOLDER")
    tell = (lambda _text: None) if quiet else say
    unused = [flag for name, flag in SWEEP.items() if _typed(ctx, name)]
    if unused and not sweep["sweep"]:
        raise click.UsageError(f"{unused[0]} goes with --sweep")
    if sweep["sweep"] and (held_out or dry_run):
        raise click.UsageError(f"--sweep trains several models; leave {'--dry-run' if dry_run else '--held-out'} out")
    with progress(quiet=quiet) as bar:
        if sweep["sweep"]:
            extra: dict[str, Any] = {"device": device, "watch": bar.report, "tell": tell}
            run_sweep(app, config, str(output), sweep, as_json=as_json, **extra)
            return
        if dry_run:
            _show(service.estimate(app.hub, config, device=device, watch=bar.report), config, as_json=as_json)
            return
        outcome = service.train(
            app.hub,
            config,
            resume or str(output),
            resume=bool(resume),
            device=device,
            held_out=held_out,
            watch=bar.report,
            tell=tell,
        )
    if as_json:
        put_json({"card": str(outcome.card), "best": outcome.best, "history": outcome.history, "early": outcome.early})
        return
    if outcome.early:
        tell(f"stopped early: no improvement in {config.patience} epochs")
    put(str(outcome.card))


def _typed(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _shown(one: click.Parameter) -> str:
    """Return a parameter as users type it."""
    return max(one.opts, key=len) if isinstance(one, click.Option) else str(one.name).upper()


def _config(options: dict[str, Any]) -> Any:
    from xaihub.training.config import checked

    if not options["data"]:
        raise click.UsageError("give data to train on (a folder, a CSV file, hf:NAME, digits or evidence) or --resume")
    values = {name: value for name, value in options.items() if name != "values"}
    # The run may be resumed from another folder.
    for name in ("data", "checkpoint", "classes", "model"):
        path = values[name]
        if path and (name != "model" or path.lower().endswith((".yaml", ".yml"))) and Path(path).exists():
            values[name] = str(Path(path).resolve())
    return checked({**values, "parameters": pairs(options["values"])})


def _show(found: Any, config: Any, *, as_json: bool) -> None:
    names = list(found.classes)
    record = {
        "data": config.data,
        "classes": names,
        "train": found.train,
        "held_out": found.val,
        "steps": found.steps,
        "rows_an_image": found.rows,
        "cost": found.cost,
        "weights_that_learn": found.trainable,
        "seconds_a_step": round(found.seconds, 3),
        "minutes": round(found.seconds * found.steps / 60, 1),
    }
    if as_json:
        put_json({**record, "notes": list(found.notes)})
        return
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    put(
        f"data        {config.data}: {found.train} images to learn from, {found.val} held out\n"
        f"classes     {len(names)}: {shown}\n"
        f"objective   {config.objective}: {found.rows:.3g} rows an image pass through the network"
        f"{f' ({found.cost})' if found.cost else ''}\n"
        f"weights     {found.trainable:,} learn\n"
        f"steps       {found.steps}, about {found.seconds:.2f} s each (one of the last epoch, measured):"
        f" {record['minutes']} minutes"
    )
    for note in found.notes:
        say(f"note: {note}")
