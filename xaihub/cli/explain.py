"""`xaihub explain`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xaihub.cli._app import App
from xaihub.cli._options import json_option, model_options, pairs, quiet_options, run_options
from xaihub.cli._output import draw, progress, put, put_json, say

if TYPE_CHECKING:
    from xaihub.api.explain import Outcome

__all__ = ["check_writable", "explain", "load_models"]


@click.command()
@click.argument("images", nargs=-1, metavar="[PICTURE]...")
@model_options
@run_options
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1),
    help="Share of the confidence that sets of pixels must keep, for methods that find them; -p confidence=.",
)
@click.option("-o", "--output", default="xaihub-out", show_default=True, metavar="FOLDER", help="Where files go.")
@click.option(
    "--global", "is_global", is_flag=True, help="Rank what the whole model relies on; -e: a global explainer."
)
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="With --global: features shown.")
@click.option("--labels", metavar="FILE", help="With --global: a CSV file with the images' classes (file, label).")
@click.option("--combine", is_flag=True, help="With --global: join several models as seeds of one training.")
@click.option("--terminal", is_flag=True, help="Draw the map in the terminal as well.")
@json_option
@quiet_options
@click.pass_context
def explain(ctx: click.Context, /, images: tuple[str, ...], output: str, *, is_global: bool, **options: Any) -> None:
    """Explain images: which parts speak for the class?

    PICTURE is a file, a folder, a glob, or - for standard input; without one, the sample photo is explained. For each
    image, model and explainer three files are written: the overlay (.png), the values (.safetensors) and the
    record of how they were made (.json); and a fourth (__sets.png) by methods that find sets of pixels, such as convad.

    \b
    Examples:
      xaihub explain cat.jpg
      xaihub explain cat.jpg dogs/ -m resnet50 -e gradcam -e integrated_gradients -t "Egyptian cat" -o out/
      xaihub explain cat.jpg -e rise -p masks=2000 -p cell=8 --seed 1 --json
      xaihub explain scan.png -m resnet18 --checkpoint my.safetensors --classes names.txt
      xaihub explain --global photos/ -m runs/gated/card.yaml -e scores -e shap_global
    """
    app: App = ctx.obj
    if is_global:
        from xaihub.cli._global import explain_globally

        explain_globally(ctx, images, output, options)
        return
    _only_with_global(ctx)
    from xaihub.images import find_images, sample_photo

    values = pairs(options["values"])
    if options["confidence"] is not None:
        values["confidence"] = str(options["confidence"])
    sources = find_images(images or [sample_photo()])
    check_writable(Path(output))
    from xaihub.api.explain import explain_many, make_explainers, output_stem

    explainers = make_explainers(app.hub, options["explainers"], values)
    models = load_models(app, options)
    quiet, failed, records = options["quiet"], 0, []
    with progress(quiet=quiet) as bar:
        for model in models:
            model.runtime.progress = bar.step
        outcomes = explain_many(
            models, explainers, sources, target=options["target"], seed=options["seed"], watch=bar.watch
        )
        for outcome in outcomes:
            if outcome.explanation is None:
                failed += 1
                who = f"{outcome.explainer} on {outcome.model}" if outcome.explainer else ""
                # An error of reading an image names it already.
                say(f"error: {outcome.source}: {who}: {outcome.error}" if who else f"error: {outcome.error}")
                records.append({"source": outcome.source, "explainer": outcome.explainer, "error": str(outcome.error)})
                continue
            stem = Path(output) / output_stem(outcome, sources)
            outcome.explanation.save(stem)
            image = outcome.explanation.save_png(stem.with_name(stem.name + ".png"))
            sets = outcome.explanation.save_sets_png(stem.with_name(stem.name + "__sets.png"))
            drawn = {"png": str(image), **({"sets_png": str(sets)} if sets else {})}
            records.append({"source": outcome.source, **drawn, **outcome.explanation.to_dict()})
            if not options["as_json"]:
                _show(outcome, image, options)
    if options["as_json"]:
        put_json(records)
    if failed:
        if len(sources) > 1:
            say(f"{failed} of {len(records)} explanations failed; the others are in {output}")
        raise click.exceptions.Exit(1)


def _only_with_global(ctx: click.Context) -> None:
    for name in ("top", "labels", "combine"):
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} goes with --global", ctx)


def load_models(app: App, options: dict[str, Any]) -> list[Any]:
    """Load every model that was asked for, with the shared options."""
    from xaihub.models.model import Runtime

    found = {
        name: app.hub.load_model(
            name,
            device=options["device"],
            checkpoint=options["checkpoint"],
            classes=options["classes"],
            layer=options["layer"],
            runtime=Runtime(batch_size=options["batch_size"], autocast=options["autocast"]),
        )
        for name in dict.fromkeys(options["models"])
    }
    names = Counter(model.name for model in found.values())
    for asked, model in found.items():
        if names[model.name] > 1:  # such as the cards of several seeds: files and rows are told apart by name
            model.name = asked
    return list(found.values())


def _show(outcome: Outcome, image: Path, options: dict[str, Any]) -> None:
    """Print one line for an explanation, notes on stderr, and the map itself if asked for."""
    explanation = outcome.explanation
    assert explanation is not None  # noqa: S101 - the caller handles failures
    put(f"{image}  {outcome.explainer}: {explanation.claim}")
    if not options["quiet"]:
        for warning in explanation.warnings:
            say(f"note: {outcome.explainer}: {warning}")
    if options["verbose"]:
        record = explanation.metadata
        say(f"{outcome.model} sees {explanation.predicted}; weights {record['weights_sha256'][:12]}")
        if record["layer"]:
            say(f"layer {record['layer']}")
        gap = record["completeness_gap"]
        cost = f"{record['forward_passes']:g} forward passes, {record['backward_passes']:g} backward passes"
        cost += f", {record['seconds']:.2f} s"
        say(cost if gap is None else f"{cost}, completeness gap {gap:.2g}")
    if options.get("terminal"):
        from xaihub.explainers.rendering import overlay

        draw(overlay(explanation))


def check_writable(path: Path) -> None:
    """Fail before any work is done, not after: the nearest existing folder must take new files.

    Raises:
        OutputError: It does not.
    """
    from xaihub.errors import OutputError

    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise OutputError(f"cannot write to {str(path)!r}: {str(nearest)!r} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {str(path)!r}: no permission for {str(nearest)!r}")
