"""`xaihub explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from xaihub.cli._app import App
from xaihub.cli._options import ExplainOptions, options
from xaihub.cli._output import draw, note, passes, progress, put, put_json_list, say
from xaihub.cli._prepare import Destination, prepare

if TYPE_CHECKING:
    from pathlib import Path

    from xaihub.explainers.explanation import Explanation


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@options(ExplainOptions)
@click.pass_obj
def explain(app: App, /, images: tuple[str, ...], given: ExplainOptions) -> None:
    """Explain images: which pixels support a class?

    IMAGE is a file, a folder, a glob, or - for standard input (default: the sample photo). Three files are written per
    image, model and explainer: the overlay (.png), the values (.safetensors) and a JSON record of how they were made.
    With -t their names end with the class, so that the results for several classes are kept.
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

    sources = find_images(images or [sample_photo()], note=note(given.quiet))
    count = len(sources) * len(set(given.models)) * len(set(given.explainers))
    place = Destination.parse(given.output, results=count)
    from xaihub.api.explain import explain_many
    from xaihub.images.naming import OutputNames

    explainers, load = prepare(app.hub, given)
    failed, done, codes = 0, 0, set()
    with progress(quiet=given.quiet) as bar, put_json_list(given.as_json) as put_record:
        models = load(bar.step)
        names = OutputNames((model.name for model in models), given.explainers, sources, given.target)
        wanted: dict[str, Any] = {"target": given.target, "seed": given.seed, "page": given.page}
        for outcome in explain_many(models, explainers, sources, watch=bar.watch, **wanted):
            done += 1
            if outcome.error is not None:
                failed += 1
                codes.add(outcome.error.exit_code)
                who = f"{outcome.explainer} on {outcome.model}" if outcome.explainer else ""
                # An error about reading an image already names it.
                say(f"error: {outcome.source}: {who}: {outcome.error}" if who else f"error: {outcome.error}")
                put_record({"source": outcome.source, "explainer": outcome.explainer, "error": str(outcome.error)})
            elif outcome.explanation is not None:
                stem = place.path(names.stem(outcome.model, outcome.explainer, outcome.source))
                drawn = _save(outcome.explanation, stem, given.smooth)
                put_record({"source": outcome.source, **drawn, **outcome.explanation.to_dict()})
                if not given.as_json:
                    _show(outcome.explanation, drawn["png"], given)
    if failed:
        if len(sources) > 1:
            say(f"{failed} of {done} explanations failed; the rest are in {given.output}")
        raise click.exceptions.Exit(min(codes) if failed == done else 1)


def _save(explanation: Explanation, stem: Path, smooth: bool | None) -> dict[str, str]:
    """Write values, record and figures; return the paths of the figures."""
    explanation.save(stem)
    drawn = {"png": str(explanation.save_png(stem.with_name(f"{stem.name}.png"), smooth=smooth))}
    sets = explanation.save_sets_png(stem.with_name(f"{stem.name}__sets.png"))
    return drawn | ({"sets_png": str(sets)} if sets else {})


def _show(explanation: Explanation, png: str, given: ExplainOptions) -> None:
    """Print one line per explanation and per set of pixels, notes on stderr, and on request the map itself."""
    put(f"{png}  {explanation.explainer}: {explanation.claim}")
    for one in explanation.sets:
        put(f"  {one.role} set: {one.claim}")
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

        draw(overlay(explanation, smooth=given.smooth))
