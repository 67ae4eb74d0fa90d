"""`xaihub optimise-measure`: parsing and printing only; heavy imports wait until the command runs."""

from __future__ import annotations

import json
import os
import sys
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec import to_builtins

from xaihub import Hub, ParameterError
from xaihub.errors import InputError, OutputError

if TYPE_CHECKING:
    from xaihub import Metric
    from xaihub_first_principles.optimise import Found


@click.command("optimise-measure")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-o", "--output", required=True, metavar="FILE", help="Output file (.safetensors).")
@click.option("-m", "--model", default="efficientnet_lite0", show_default=True, help="Model to explain.")
@click.option(
    "-k",
    "--metric",
    "names",
    multiple=True,
    default=("insertion", "deletion"),
    show_default=True,
    help="Metric in the objective, subtracted if lower is better; may be repeated.",
)
@click.option("-p", "--param", "values", multiple=True, metavar="METRIC.NAME=VALUE", help="Parameter of a metric.")
@click.option(
    "--choose",
    type=click.Choice(["p", "sizes", "weights"]),
    default="weights",
    show_default=True,
    help="What to optimise: p of keep-p, a mixture of keep-p measures, or weights over one fixed set of masks.",
)
@click.option("--features", help="Regions.  [default: grid:14 for weights, else grid:7]")
@click.option(
    "--block",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="For weights: side of masked squares in cells.",
)
@click.option("--baseline", default="blur", show_default=True, help="Replacement of masked regions.")
@click.option("--logit", is_flag=True, help="Integrate the logit instead of the probability.")
@click.option("--budget", type=click.IntRange(50), default=400, show_default=True, help="Masks per image.")
@click.option("--trials", type=click.IntRange(2), default=30, show_default=True, help="Number of candidates.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random choices.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--json", "as_json", is_flag=True, help="Print the search as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Only results and errors, no progress.")
@click.pass_context
def optimise_measure(
    ctx: click.Context,
    /,
    images: tuple[str, ...],
    output: str,
    model: str,
    device: str,
    names: tuple[str, ...],
    values: tuple[str, ...],
    *,
    logit: bool,
    as_json: bool,
    quiet: bool,
    **search: Any,
) -> None:
    """Choose the measure that maximises a metric, and report its gain on unused images.

    IMAGE is a file or a folder. Half of the images are used to choose, a quarter to validate, and a quarter to test:
    the gain over keep-p at 0.5 is reported there with a bootstrap interval. Candidates share the forward passes on
    masked images; only the metrics need further passes for each.

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
    metrics = _metrics(hub, names, values)
    sources = _sources(images)
    from xaihub_first_principles.optimise import Settings
    from xaihub_first_principles.optimise import optimise_measure as optimise

    search["features"] = search["features"] or ("grid:14" if search["choose"] == "weights" else "grid:7")
    settings = Settings(output="logit" if logit else "probability", **search)
    watch = None if quiet or not sys.stderr.isatty() else _progress
    found = optimise(hub.load_model(model, device=device), sources, metrics, settings, watch=watch)
    found.measure.save(file)
    click.echo(json.dumps(_record(found, file), indent=2) if as_json else _report(found, file))
    if not quiet:
        for name, reason in found.skipped.items():
            click.echo(f"note: {name} was skipped: {reason}", err=True)


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
            raise ParameterError(f"metric {name!r} has no better direction, so it cannot be maximised")
        metric = hub.get_metric(name, **values[name])
        if metric.needs_truth or metric.needs_pool:
            raise ParameterError(f"metric {name!r} needs more than one image and its map, so it cannot be used here")
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
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write {str(file)!r}")


def _record(found: Found, file: Path) -> dict[str, Any]:
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


def _report(found: Found, file: Path) -> str:
    header = found.measure.header
    choosing, validating, testing = header.images
    objective = " ".join(f"{'+' if sign > 0 else '-'} {name}" for name, sign in header.metrics.items()).lstrip("+ ")
    parameters = ", ".join(f"{name} {value:.3g}" for name, value in found.parameters.items())
    if header.gain[2] is None or header.interval is None:
        test = "no images were left to test on"
    else:
        low, high = header.interval
        test = f"gain on {testing} unused images {header.gain[2]:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
    return "\n".join(
        [
            f"{file}  {header.kind}: {parameters}",
            f"{objective}, keep-p at 0.5: {found.tried[0][1]:.4f} on {choosing} images for choosing",
            f"gain there {header.gain[0]:+.4f}, on {validating} for validation {header.gain[1]:+.4f}",
            test,
        ]
    )


def _progress(stage: str, done: int, total: int) -> None:
    click.echo(f"\r{stage} {done}/{total}      ", nl=False, err=True)
