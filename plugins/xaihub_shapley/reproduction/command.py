"""`xaihub reproduce shapley`: small self-explaining networks against exact Shapley values and post-hoc maps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xaihub.errors import OutputError, ParameterError
from xaihub.files import write_file

if TYPE_CHECKING:  # torch is imported when the command runs
    from xaihub_shapley.reproduction.experiment import Kind
    from xaihub_shapley.reproduction.images import Task

DEFAULT = 4.5  # half of 9 patches, the best lambda where we measured it
# From an index of results; the backbone, images and masks behind these numbers are unknown to us.
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
    "--data", type=click.Choice(["located", "digits", "xor"]), multiple=True,
    help="Images: digits in cells of noise, digits over all cells, whether two glyphs differ; can be repeated"
    " [default: all; with --quick located].",
)  # fmt: skip
@click.option(
    "--network", type=click.Choice(["vit", "resnet"]), multiple=True, default=("vit",), show_default=True,
    help="A ViT of 3 blocks with attention masks, or timm's test ResNet with pixel masks; can be repeated.",
)  # fmt: skip
@click.option(
    "-l", "--lambda", "lambdas", type=click.FloatRange(0), multiple=True,
    help="Weight of the Shapley loss, in addition to 0 (the baseline model) [default: half the number of patches];"
    " can be repeated.",
)  # fmt: skip
@click.option(
    "--votes", type=click.FloatRange(0), default=0.0, show_default=True,
    help="Weight of the loss that trains patch scores only (votes_lambda); not used for the baseline model.",
)  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), default=16, show_default=True, help="Training epochs.")
@click.option(
    "--lr", type=click.FloatRange(0, min_open=True), default=3e-3, show_default=True, help="Maximum learning rate."
)
@click.option("--images", type=click.IntRange(64), default=1400, show_default=True, help="Number of training images.")
@click.option("--judged", type=click.IntRange(1), help="Number of test images for maps [default: 20; with --quick 5].")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Networks per row, averaged.")
@click.option("--quick", is_flag=True, help="One kind of images and maps of 5 of them; training is the same.")
@click.option("-o", "--output", metavar="FILE", help="Write all figures to a JSON file.")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Do not report each network.")
def reproduce_shapley(
    *,
    data: tuple[Task, ...],
    network: tuple[Kind, ...],
    lambdas: tuple[float, ...],
    votes: float,
    judged: int | None,
    quick: bool,
    seeds: int,
    output: str | None,
    as_json: bool,
    quiet: bool,
    **effort: Any,
) -> None:
    """Train small self-explaining networks, and compare their maps with exact Shapley values and other methods.

    The paper's own experiments are unknown to us. On these small images all 512 coalitions of 9 patches can be
    evaluated. r is the correlation of patch scores with exact values for the predicted class, R2 is over all classes.
    Deletion (lower is better), insertion and AOPC mask whole patches, as the network itself does, so compare methods
    within one network only. Lambda 0 is the baseline model, trained without the objective.

    \b
    Examples:
      xaihub reproduce shapley --quick
      xaihub reproduce shapley --data xor -l 3 -l 100 --seeds 3 -o figures.json
    """  # noqa: D301 - click keeps the layout of a paragraph that begins with a backspace
    import torch

    from xaihub_shapley.reproduction.experiment import run

    for name, given in (("lambda", lambdas), ("votes", (votes,))):
        if wrong := [value for value in given if not math.isfinite(value)]:
            raise ParameterError(f"{name} cannot be {wrong[0]}", hint="use a finite number of at least 0")
    if output is not None and not Path(output).resolve().parent.is_dir():
        raise OutputError(f"cannot write {output!r}: there is no such folder")
    if output is not None and Path(output).is_dir():
        raise OutputError(f"cannot write {output!r}: it is a folder", hint="name a file")
    # A shorter training would give other results than those we report; a trial run measures less of the same.
    data = data or (("located",) if quick else ("located", "digits", "xor"))
    effort["judged"] = judged or (5 if quick else 20)
    weights = list(dict.fromkeys((0.0, *(lambdas or (DEFAULT,)))))  # the baseline model once, also with -l 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more threads slow down networks of this size
    records: list[dict[str, Any]] = []
    try:
        for task, kind, weight in product(data, network, weights):
            runs = []
            for seed in range(seeds):
                runs.append(run(task, kind, weight, votes=votes if weight else 0, seed=seed, **effort))
                if not quiet:
                    accuracy = runs[-1]["shapley"]["accuracy"]
                    click.echo(f"{task}, {kind}, lambda {weight:g}, seed {seed}: accuracy {accuracy:.3f}", err=True)
            head = {"data": task, "network": kind, "lambda": weight, "seeds": seeds}
            records += [head | {"method": method} | _mean([run[method] for run in runs]) for method in runs[0]]
    finally:
        torch.set_num_threads(threads)
    whole = {"setting": {"votes": votes, **effort}, "published": PUBLISHED, "records": records}
    if output is not None:
        write_file(output, json.dumps(whole, indent=2) + "\n")
    click.echo(json.dumps(whole, indent=2) if as_json else _report(records))


def _mean(runs: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Return the mean of each figure over seeds; None where a method refused."""
    return {key: sum(run[key] for run in runs) / len(runs) if key in runs[0] else None for key in _FIGURES}


def _report(records: list[dict[str, Any]]) -> str:
    lines = [("data", "network", "lambda", "method", *_FIGURES.values())]
    former: tuple[Any, ...] = ()
    for record in records:
        group = (record["data"], record["network"], record["lambda"])
        shown = (*group[:2], f"{group[2]:g}" if group[2] else "0 (baseline)") if group != former else ("", "", "")
        former = group
        figures = ["" if record[key] is None else f"{record[key]:.3f}" for key in _FIGURES]
        refused = record["deletion"] is None
        lines.append((*shown, record["method"] + (" (refused)" if refused else ""), *figures))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    published = "; ".join(f"{name} {value:g}" for name, value in PUBLISHED.items())
    return "\n".join([*table, "", f"Published in an unknown setting, so not comparable: {published}."])
