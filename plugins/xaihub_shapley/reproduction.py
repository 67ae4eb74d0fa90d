"""`xaihub reproduce shapley`: small self-explaining networks against exact Shapley values and post-hoc maps."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xaihub.errors import OutputError, ParameterError

if TYPE_CHECKING:  # torch is imported when the command runs
    from xaihub_shapley.experiment import Kind
    from xaihub_shapley.images import Task

__all__ = ["reproduce_shapley"]

DEFAULT = 4.5  # half of 9 patches
# One cell each of tables that we have not seen: backbone, images and masks behind them are unknown.
PUBLISHED = {
    "AOPC (ImageNet)": 0.806,
    "pixel accuracy of thresholded maps (ImageNet-Segmentation), %": 85.78,
}
_FIGURES = {
    "accuracy": "accuracy",
    "correlation": "r",
    "r2": "R2",
    "deletion": "deletion",
    "insertion": "insertion",
    "aopc": "AOPC",
    "hit": "pointing",
    "energy": "energy",
}


@click.command("shapley")
@click.option(
    "--data",
    type=click.Choice(["located", "digits", "xor"]),
    multiple=True,
    default=("located", "digits", "xor"),
    show_default=True,
    help="Digits in cells of noise, digits in full, whether two glyphs differ; may be repeated.",
)
@click.option(
    "--network", type=click.Choice(["vit", "resnet"]), multiple=True, default=("vit",), show_default=True,
    help="A ViT of 3 blocks with attention masks, or timm's test ResNet with pixel masks; may be repeated.",
)  # fmt: skip
@click.option(
    "-l", "--lambda", "lambdas", type=click.FloatRange(0), multiple=True,
    help="Weights of the Shapley loss besides 0, the plain twin [default: half the number of patches].",
)  # fmt: skip
@click.option(
    "--votes", type=click.FloatRange(0), default=0.0, show_default=True,
    help="Weight of the loss that teaches the votes only, in networks that are not plain.",
)  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), default=16, show_default=True)
@click.option(
    "--lr", type=click.FloatRange(0, min_open=True), default=3e-3, show_default=True, help="Highest learning rate."
)
@click.option("--images", type=click.IntRange(64), default=1400, show_default=True, help="For training.")
@click.option("--judged", type=click.IntRange(1), default=20, show_default=True, help="Test images for the maps.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Networks a row; means are shown.")
@click.option("--quick", is_flag=True, help="5 epochs on 640 images, 5 images judged: a trial, no result.")
@click.option("-o", "--output", metavar="FILE", help="Write every figure as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print records as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Do not tell about each network.")
def reproduce_shapley(
    *,
    data: tuple[Task, ...],
    network: tuple[Kind, ...],
    lambdas: tuple[float, ...],
    votes: float,
    epochs: int,
    lr: float,
    images: int,
    judged: int,
    seeds: int,
    quick: bool,
    output: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train small networks to vote with Shapley values, and compare their maps with the truth and with others.

    The paper's own experiments are not public to us; these are small ones whose exact Shapley values can be had by
    asking about all 512 coalitions of 9 patches. "plain" is the same network with lambda 0. r is the correlation of a
    network's votes with the exact values for the predicted class, R2 is over all classes. Deletion (lower is better),
    insertion and AOPC hide whole cells, as the network itself does, so compare methods within one network.

    \b
    Examples:
      xaihub reproduce shapley --quick
      xaihub reproduce shapley --data xor -l 3 -l 100 --seeds 3 -o figures.json
    """
    import torch

    from xaihub_shapley.experiment import Setting, run

    for name, given in (("lambda", lambdas), ("votes", (votes,))):
        if wrong := [value for value in given if not math.isfinite(value)]:
            raise ParameterError(f"{name} cannot be {wrong[0]}", hint="a number from 0")
    if output is not None and not Path(output).resolve().parent.is_dir():
        raise OutputError(f"cannot write {output!r}: there is no such folder")
    if output is not None and Path(output).is_dir():
        raise OutputError(f"cannot write {output!r}: it is a folder", hint="name a file")
    if quick:
        epochs, images, judged = 5, 640, 5
    weights = list(dict.fromkeys((0.0, *(lambdas or (DEFAULT,)))))  # the plain twin once, also when 0 is asked for
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only slows networks of this size down
    records: list[dict[str, Any]] = []
    try:
        for task, kind, weight in product(data, network, weights):
            setting = Setting(
                task=task,
                kind=kind,
                weight=weight,
                epochs=epochs,
                lr=lr,
                images=images,
                judged=judged,
                votes=votes if weight else 0.0,
            )
            runs = []
            for seed in range(seeds):
                runs.append(run(setting, seed=seed))
                if not quiet:
                    accuracy = runs[-1]["shapley"]["accuracy"]
                    click.echo(f"{task}, {kind}, lambda {weight:g}, seed {seed}: accuracy {accuracy:.3f}", err=True)
            head = {"data": task, "network": kind, "lambda": weight, "seeds": seeds}
            records += [head | {"method": method} | _mean([run[method] for run in runs]) for method in runs[0]]
    finally:
        torch.set_num_threads(threads)
    whole = {
        "setting": {"votes": votes, "epochs": epochs, "lr": lr, "images": images, "judged": judged},
        "published": PUBLISHED,
        "records": records,
    }
    if output is not None:
        _write(Path(output), whole)
    click.echo(json.dumps(whole, indent=2) if as_json else _report(records))


def _mean(runs: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Return the mean of each figure over seeds; None where a method refused."""
    return {key: sum(run[key] for run in runs) / len(runs) if key in runs[0] else None for key in _FIGURES}


def _report(records: list[dict[str, Any]]) -> str:
    lines = [("data", "network", "lambda", "method", *_FIGURES.values())]
    former: tuple[Any, ...] = ()
    for record in records:
        group = (record["data"], record["network"], record["lambda"])
        shown = (*group[:2], f"{group[2]:g}" if group[2] else "plain") if group != former else ("", "", "")
        former = group
        figures = ["" if record[key] is None else f"{record[key]:.3f}" for key in _FIGURES]
        refused = record["deletion"] is None
        lines.append((*shown, record["method"] + (" (refused)" if refused else ""), *figures))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    said = "; ".join(f"{name} {value:g}" for name, value in PUBLISHED.items())
    return "\n".join([*table, "", f"Published, of an unknown setting, so no match: {said}."])


def _write(path: Path, record: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
