"""`xaihub explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from xaihub.cli._app import App
from xaihub.cli._options import ExplainOptions, options
from xaihub.cli._output import draw, passes, progress, put, put_json, say
from xaihub.cli._prepare import Destination, load_models

if TYPE_CHECKING:
    from xaihub.explainers.explanation import Explanation


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@options(ExplainOptions)
@click.pass_obj
def explain(app: App, /, images: tuple[str, ...], given: ExplainOptions) -> None:
    """Explain images: which pixels support a class?

    IMAGE is a file, a folder, a glob, or - for standard input (default: the sample photo). Three files are written per
    image, model and explainer: the overlay (.png), the values (.safetensors) and a JSON record of how they were made.
    Methods that find sets of pixels, such as convad, add a figure of them (__sets.png).

    \b
    Examples:
      xaihub explain cat.jpg
      xaihub explain cat.jpg dogs/ -m resnet50 -e gradcam -e integrated_gradients -t "Egyptian cat" -o out/
      xaihub explain cat.jpg -e rise -p masks=2000 -p cell=8 --seed 1 --json
      xaihub explain cat.jpg -e convad -p confidence=0.9 -o sufficient.png
      xaihub explain scan.png -m resnet18 --checkpoint my.safetensors --classes names.txt
    """
    from xaihub.images import find_images, sample_photo

    sources = find_images(images or [sample_photo()])
    count = len(sources) * len(set(given.models)) * len(set(given.explainers))
    place = Destination.parse(given.output, results=count)
    from xaihub.api.explain import explain_many, output_stem
    from xaihub.api.parameters import make

    explainers = make(app.hub.explainers, app.hub.get_explainer, given.explainers, given.settings)
    failed, records = 0, []
    with progress(quiet=given.quiet) as bar:
        models = load_models(app.hub, given, bar.step)
        for outcome in explain_many(models, explainers, sources, target=given.target, seed=given.seed, watch=bar.watch):
            if outcome.explanation is None:
                failed += 1
                who = f"{outcome.explainer} on {outcome.model}" if outcome.explainer else ""
                # An error about reading an image already names it.
                say(f"error: {outcome.source}: {who}: {outcome.error}" if who else f"error: {outcome.error}")
                records.append({"source": outcome.source, "explainer": outcome.explainer, "error": str(outcome.error)})
                continue
            stem = place.path(output_stem(outcome, sources))
            outcome.explanation.save(stem)
            drawn = {"png": str(outcome.explanation.save_png(stem.with_name(f"{stem.name}.png")))}
            sets = outcome.explanation.save_sets_png(stem.with_name(f"{stem.name}__sets.png"))
            drawn |= {"sets_png": str(sets)} if sets else {}
            records.append({"source": outcome.source, **drawn, **outcome.explanation.to_dict()})
            if not given.as_json:
                _show(outcome.explanation, drawn["png"], given)
    if given.as_json:
        put_json(records)
    if failed:
        if len(sources) > 1:
            say(f"{failed} of {len(records)} explanations failed; the rest are in {given.output}")
        raise click.exceptions.Exit(1)


def _show(explanation: Explanation, png: str, given: ExplainOptions) -> None:
    """Print one line per explanation, notes on stderr, and on request the map itself."""
    put(f"{png}  {explanation.explainer}: {explanation.claim}")
    if not given.quiet:
        for warning in explanation.warnings:
            say(f"note: {explanation.explainer}: {warning}")
    if given.verbose:
        record = explanation.metadata
        say(f"{explanation.model} predicts {explanation.predicted}; weights {record['weights_sha256'][:12]}")
        if record["layer"]:
            say(f"layer {record['layer']}")
        gap = record["completeness_gap"]
        cost = f"{passes(record['forward_passes'], 'forward')}, {passes(record['backward_passes'], 'backward')}"
        say(f"{cost}, {record['seconds']:.2f} s" + ("" if gap is None else f", completeness gap {gap:.2g}"))
    if given.terminal:
        from xaihub.explainers.rendering import overlay

        draw(overlay(explanation))
