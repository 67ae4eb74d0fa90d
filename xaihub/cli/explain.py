"""`xaihub explain`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import click

from xaihub.cli._app import App
from xaihub.cli._options import LIMIT_OF_SEVERAL, ExplainOptions, Opt, options
from xaihub.cli._output import draw, note, passes, progress, put, put_json_list, say
from xaihub.cli._prepare import TEMPLATE, Destination, limit_of, prepare

if TYPE_CHECKING:
    from pathlib import Path

    from xaihub.api.explain import Outcome
    from xaihub.explainers.explanation import Explanation


KINDS = ("png", "npy", "npz")


@dataclass(frozen=True, kw_only=True)
class AllOptions(ExplainOptions):
    """For how long to run at most, and what to write in addition."""

    timeout: Annotated[float | None, LIMIT_OF_SEVERAL] = None
    template: Annotated[str | None, TEMPLATE] = None
    save: Annotated[
        tuple[str, ...],
        Opt(
            "Also write the map at the original image's size: png (overlay without legend), npy (values) or npz (values"
            " and pixel sets); repeatable.",
            type=click.Choice(KINDS),
        ),
    ] = ()
    check: Annotated[
        bool,
        Opt("Check each map against random maps, randomised weights and another seed; at least 6 times the cost."),
    ] = False
    jobs: Annotated[
        int,
        Opt("Worker processes, each of which explains one image at a time.", metavar="N", type=click.IntRange(1)),
    ] = 1
    viewer: Annotated[
        bool,
        Opt("Open the first figure, or with --html the first page, in the platform's viewer.", "--open"),
    ] = False


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@options(AllOptions)
@click.pass_obj
def explain(app: App, /, images: tuple[str, ...], given: AllOptions) -> None:
    """Explain images: which pixels support a class?

    IMAGE is a file, a folder, a glob, or - for standard input (default: the sample photo). Three files are written per
    image, model and explainer: the overlay (.png), the values (.safetensors) and a JSON record of how they were made.
    With -t their names end with the class, so that the results for several classes are kept.
    Methods that find sets of pixels, such as convad, add a figure of them (__sets.png). --save adds the map at the
    original image's size (__map.png, .npy, .npz), --html a page per image that opens offline. --check prints whether
    the map beats random maps and depends on the weights but not on the seed.

    \b
    Examples:
      xaihub explain cat.jpg
      xaihub explain cat.jpg dogs/ -m resnet50 -e gradcam -e integrated_gradients -t "Egyptian cat" -o out/
      xaihub explain cat.jpg -e rise -p masks=2000 -p cell=8 --seed 1 --json
      xaihub explain cat.jpg -e rise -e shapley_values --budget 10s
      xaihub explain cat.jpg -e convad -p confidence=0.9 -o sufficient.png
      xaihub explain cat.jpg -e gradcam -e rise --html --colormap viridis --alpha 0.6 --save npz
      xaihub explain cat.jpg -e rise --check
      xaihub explain photos/ -e rise --jobs 4
      xaihub explain scan.png -m resnet18 --checkpoint my.safetensors --classes names.txt
    """
    from xaihub.images import find_images, sample_photo

    if given.viewer and given.as_json:
        raise click.UsageError("--open cannot be combined with --json, which is for scripts")
    sources = find_images(images or [sample_photo()], note=note(given.quiet))
    count = len(sources) * len(set(given.models)) * len(set(given.explainers))
    place = Destination.parse(given.output, results=count)
    from xaihub.api.compare import Comparison
    from xaihub.api.jobs import Request, explain_here, explain_in_processes
    from xaihub.explainers.heat import check_drawing
    from xaihub.images.naming import OutputNames

    check_drawing(given.drawing)
    explainers, selection = prepare(app.hub, given)
    failed, done, codes = 0, 0, set()
    figures: list[str] = []
    with progress(quiet=given.quiet) as bar, put_json_list(given.as_json) as put_record:
        models = selection.load(app.hub, bar.step)
        names = OutputNames((model.name for model in models), given.explainers, sources, given.target)
        bar.of(len(models) * len(explainers) * len(sources), "explanations")
        limit = limit_of(given.timeout, results=len(models) * len(explainers) * len(sources))

        def stem_of(outcome: Outcome) -> Path:
            return place.path(names.stem(outcome.model, outcome.explainer, outcome.source))

        def show(outcome: Outcome) -> None:
            if outcome.explanation is not None:
                _save(outcome.explanation, stem_of(outcome), given)
                record = outcome.explanation.metadata
                note(given.quiet)(
                    f"{outcome.explainer}: preliminary map after {record['seconds']:.1f} s and"
                    f" {passes(record['forward_passes'], 'forward')}"
                )
                if given.terminal and not given.as_json:
                    _draw(outcome.explanation, given)

        request = Request(target=given.target, page=given.page, seed=given.seed, timeout=limit, check=given.check)
        if given.jobs > 1 and len(sources) > 1:
            outcomes = explain_in_processes(
                app.hub, selection, models, explainers, sources, request, jobs=given.jobs, watch=bar.report
            )
        else:
            outcomes = explain_here(app.hub, models, explainers, sources, request, watch=bar.watch, preview=show)
        for source, group in groupby(outcomes, key=lambda outcome: outcome.source):
            page, kept = place.path(names.image(source), ".html"), Comparison(explanations=[[]], failures=[])
            for outcome in group:
                done += 1
                bar.advance()
                if outcome.error is not None:
                    failed += 1
                    codes.add(outcome.error.exit_code)
                    kept.failures.append(outcome)
                    who = f"{outcome.explainer} on {outcome.model}" if outcome.explainer else ""
                    # An error about reading an image already names it.
                    say(f"error: {source}: {who}: {outcome.error}" if who else f"error: {outcome.error}")
                    put_record({"source": source, "explainer": outcome.explainer, "error": str(outcome.error)})
                elif outcome.explanation is not None:
                    kept.explanations[0] += [outcome.explanation] if given.html else []
                    files = _save(outcome.explanation, stem_of(outcome), given)
                    files |= {"html": str(page)} if given.html else {}
                    figures.append(files.get("html", files["png"]))
                    check = {"check": outcome.check.to_dict()} if outcome.check else {}
                    put_record({"source": source, **files, **check, **outcome.explanation.to_dict()})
                    if not given.as_json:
                        _show(outcome.explanation, files["png"], given)
                        if outcome.check:
                            put(f"  check {outcome.check.verdict}")
            if kept.explanations[0]:
                kept.save(page, **given.drawing)
                if not given.as_json:
                    put(str(page))
    if given.viewer and figures:
        _open(figures[0])
    if failed:
        if len(sources) > 1:
            say(f"{failed} of {done} explanations failed; the rest are in {given.output}")
        raise click.exceptions.Exit(min(codes) if failed == done else 1)


def _save(explanation: Explanation, stem: Path, given: AllOptions) -> dict[str, str]:
    """Write values, record and figures; return the paths of the figures and of the map's further files."""
    explanation.save(stem)
    drawn = {"png": str(explanation.save_png(stem.with_name(f"{stem.name}.png"), **given.drawing))}
    sets = explanation.save_sets_png(stem.with_name(f"{stem.name}__sets.png"))
    drawn |= {"sets_png": str(sets)} if sets else {}
    for kind in dict.fromkeys(given.save):
        drawn[f"map_{kind}"] = str(explanation.save(stem.with_name(f"{stem.name}__map.{kind}"), **given.drawing))
    return drawn


def _open(file: str) -> None:
    """Open a file in the platform's viewer; a system that has none costs a note."""
    from pathlib import Path

    if click.launch(str(Path(file).resolve())):
        say(f"note: this system has no viewer for {file}")


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
        rows, speed = record["batch_size"], record["forward_passes"] / max(record["seconds"], 1e-9)
        batches = "" if rows is None else f", {rows} images per pass"
        threads = f"{record['threads']} thread{'s' * (record['threads'] != 1)}"
        say(f"{record['backend']} in {record['precision']}, {threads}{batches}, {speed:.1f} images/s")
        gap = record["completeness_gap"]
        cost = f"{passes(record['forward_passes'], 'forward')}, {passes(record['backward_passes'], 'backward')}"
        say(f"{cost}, {record['seconds']:.2f} s" + ("" if gap is None else f", completeness gap {gap:.2g}"))
    if given.terminal:
        _draw(explanation, given)


def _draw(explanation: Explanation, given: ExplainOptions) -> None:
    from xaihub.explainers.rendering import overlay

    draw(overlay(explanation, **given.drawing))
