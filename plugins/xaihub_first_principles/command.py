"""`xaihub optimise-measure`: parsing and printing only; heavy imports wait until the command runs."""

from __future__ import annotations

import json
import os
import sys
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xaihub import Hub, ParameterError
from xaihub.errors import InputError, OutputError

if TYPE_CHECKING:
    from xaihub import Metric
    from xaihub_first_principles.optimise import Found

__all__ = ["optimise_measure"]


@click.command("optimise-measure")
@click.argument("images", nargs=-1, required=True, metavar="PICTURE...")
@click.option("-o", "--output", required=True, metavar="FILE", help="The measure's file (.safetensors).")
@click.option("-m", "--model", default="efficientnet_lite0", show_default=True, help="The model that is explained.")
@click.option(
    "-k",
    "--metric",
    "names",
    multiple=True,
    default=("insertion", "deletion"),
    show_default=True,
    help="A metric that counts, with a minus if lower is better; may be repeated.",
)
@click.option("-p", "--param", "values", multiple=True, metavar="METRIC.NAME=VALUE", help="A parameter of a metric.")
@click.option(
    "--choose",
    type=click.Choice(["p", "sizes", "weights"]),
    default="weights",
    show_default=True,
    help="p of keep-p; a mixture of keep-p measures; or weights over one fixed set of masks.",
)
@click.option("--features", help="The regions.  [default: grid:14 for weights, else grid:7]")
@click.option(
    "--block", type=click.IntRange(1), help="For weights: masks hide squares of so many cells a side.  [default: 2]"
)
@click.option("--baseline", default="blur", show_default=True, help="What hidden regions become.")
@click.option("--logit", is_flag=True, help="Integrate the logit, not the probability.")
@click.option("--budget", type=click.IntRange(50), default=400, show_default=True, help="Masks of an image.")
@click.option("--trials", type=click.IntRange(2), default=30, show_default=True, help="Candidates that are judged.")
@click.option("--seed", type=int, default=0, show_default=True, help="Fixes every random choice.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--json", "as_json", is_flag=True, help="Print the search as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; only results and errors.")
@click.pass_context
def optimise_measure(ctx: click.Context, /, images: tuple[str, ...], output: str, **options: Any) -> None:
    """Choose the measure that is best for a metric, and report the gain on images that were not used.

    PICTURE is a file or a folder. Half of the images choose, a quarter validates, and a quarter only tests: the gain
    over keep-p at 0.5 is given there with a bootstrap interval. Candidates cost no masks, as all are sums of the same
    answers, but each is judged by the metrics.

    \b
    Examples:
      xaihub optimise-measure photos/ -o my.safetensors
      xaihub optimise-measure photos/ -o my.safetensors --choose sizes -k insertion -p insertion.steps=14
      xaihub explain cat.jpg -e first_principles -p measure=my.safetensors
    """  # noqa: D301 - click keeps the layout of a paragraph that begins with a backspace
    file = Path(output)
    if file.suffix != ".safetensors":
        raise ParameterError(f"the output must end in .safetensors, not {output!r}")
    _check_writable(file)
    hub: Hub = getattr(ctx.obj, "hub", None) or Hub()
    metrics = _metrics(hub, options["names"], options["values"])
    sources = _sources(images)
    from xaihub_first_principles.optimise import Settings
    from xaihub_first_principles.optimise import optimise_measure as optimise

    found = optimise(
        hub.load_model(options["model"], device=options["device"]),
        sources,
        metrics,
        Settings(
            choose=options["choose"],
            features=options["features"] or ("grid:14" if options["choose"] == "weights" else "grid:7"),
            block=options["block"] or 2,
            baseline=options["baseline"],
            output="logit" if options["logit"] else "probability",
            budget=options["budget"],
            trials=options["trials"],
            seed=options["seed"],
        ),
        watch=None if options["quiet"] or not sys.stderr.isatty() else _tell,
    )
    found.measure.save(file)
    if options["as_json"]:
        click.echo(json.dumps(_record(found, file), indent=2))
    else:
        _show(found, file)
    if not options["quiet"]:
        for name, reason in found.skipped.items():
            click.echo(f"note: {name} was left out: {reason}", err=True)


def _metrics(hub: Hub, names: tuple[str, ...], texts: tuple[str, ...]) -> dict[str, tuple[Metric, float]]:
    values: dict[str, dict[str, str]] = {name: {} for name in names}
    for text in texts:
        key, equals, value = text.partition("=")
        owner, dot, name = key.partition(".")
        if not equals or not dot or owner not in values:
            raise click.BadParameter(f"{text!r} is not METRIC.NAME=VALUE of {', '.join(names)}", param_hint="-p")
        values[owner][name] = value
    found = {}
    for name in names:
        better = hub.metrics.get(name).higher_is_better
        if better is None:
            raise ParameterError(f"metric {name!r} has no better direction, so no measure is best for it")
        metric = hub.get_metric(name, **values[name])
        if metric.needs_truth or metric.needs_pool:
            raise ParameterError(f"metric {name!r} needs more than one image and its map, so it cannot choose here")
        found[name] = (metric, 1.0 if better else -1.0)
    return found


def _sources(images: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for image in images:
        path = Path(image)
        if path.is_dir():
            found += sorted(str(file) for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        elif path.exists():
            found.append(image)
        else:
            raise InputError(f"no such image or folder: {image!r}")
    return found


def _check_writable(file: Path) -> None:
    folder = file.parent
    while not folder.exists():
        folder = folder.parent
    if file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write {str(file)!r}")


def _record(found: Found, file: Path) -> dict[str, Any]:
    from msgspec import to_builtins

    return {
        "file": str(file),
        "parameters": found.parameters,
        "header": to_builtins(found.measure.header),
        "tried": [
            {"parameters": parameters, "objective": score if isfinite(score) else None}
            for parameters, score in found.tried
        ],
        "tests": found.tests.tolist(),
        "skipped": found.skipped,
    }


def _show(found: Found, file: Path) -> None:
    header = found.measure.header
    choosing, validating, testing = header.images
    objective = " ".join(f"{'+' if sign > 0 else '-'} {name}" for name, sign in header.metrics.items()).lstrip("+ ")
    parameters = ", ".join(f"{name} {value:.3g}" for name, value in found.parameters.items())
    click.echo(f"{file}  {header.kind}: {parameters}")
    click.echo(f"{objective}, keep-p at 0.5: {found.tried[0][1]:.4f} on {choosing} images for choosing")
    click.echo(f"gain there {header.gain[0]:+.4f}, on {validating} for validation {header.gain[1]:+.4f}")
    if header.gain[2] is None or header.interval is None:
        click.echo("no images were left to test on")
    else:
        low, high = header.interval
        click.echo(
            f"gain on {testing} images that were not used {header.gain[2]:+.4f}, 95 % interval"
            f" {low:+.4f} to {high:+.4f}"
        )


def _tell(text: str, done: int, total: int) -> None:
    click.echo(f"\r{text} {done}/{total}      ", nl=False, err=True)
