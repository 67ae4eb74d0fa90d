"""`xaihub compare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import click

from xaihub.cli._app import App
from xaihub.cli._options import LIMIT, ExplainOptions, options
from xaihub.cli._output import draw, note, progress, put, put_json, say
from xaihub.cli._prepare import TEMPLATE, Destination, prepare
from xaihub.hub import DEFAULT_TIMEOUT


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ExplainOptions):
    """What to compare, and for how long at most."""

    timeout: Annotated[float, LIMIT] = DEFAULT_TIMEOUT
    template: Annotated[str | None, TEMPLATE] = None


@click.command()
@click.argument("image", required=False)
@options(CompareOptions)
@click.pass_obj
def compare(app: App, /, image: str | None, given: CompareOptions) -> None:
    """Compare explainers and models on one image.

    Writes one labelled figure, with one row per model and one column per explainer; --html adds a page that opens
    offline, with an opacity slider. Methods with few passes run first; after Ctrl-C the figure shows those that are
    finished.

    \b
    Examples:
      xaihub compare cat.jpg -e gradcam -e rise -e shap
      xaihub compare cat.jpg -e rise -e lime -e shapley_values --budget 500
      xaihub compare cat.jpg -m efficientnet_lite0 -m resnet50 -e gradcam -e rise -o grid.png
    """
    from xaihub.images import find_images, sample_photo

    sources = find_images([image or str(sample_photo())], note=note(given.quiet))
    if len(sources) > 1:
        raise click.UsageError(f"compare takes one image, but {image!r} contains {len(sources)}")
    place = Destination.parse(given.output)
    from xaihub.api.compare import Comparison
    from xaihub.api.compare import compare_models as run
    from xaihub.explainers.heat import check_drawing
    from xaihub.explainers.rendering import grid, png_bytes
    from xaihub.files import write_file
    from xaihub.images.naming import image_stem, target_part

    check_drawing(given.drawing)
    (explainers, selection), stopped = prepare(app.hub, given), list[bool]()
    with progress(quiet=given.quiet) as bar:
        models = selection.load(app.hub, bar.step)
        rows, failures = run(
            models,
            explainers,
            sources[0],
            target=given.target,
            seed=given.seed,
            page=given.page,
            timeout=given.timeout,
            watch=bar.watch,
            interrupted=lambda: stopped.append(True),
        )
    if stopped:
        done = ", ".join(f"{item.explainer} on {item.model}" for row in rows for item in row)
        say(f"interrupted; finished: {done or 'nothing'}")
    for failure in failures:
        who = f"{failure.explainer} on {failure.model}: " if failure.explainer else ""
        say(f"error: {who}{failure.error}")
    if not given.quiet:
        images = [item.image for row in rows for item in row if item.image is not None]
        for text in dict.fromkeys(text for image in images for text in image.notes):
            say(f"note: {text}")
    if any(rows):
        figure = grid([row for row in rows if row], **given.drawing)
        stem = "__".join([image_stem(sources[0]), "compare", *target_part(given.target)])
        written = write_file(place.path(stem, ".png"), png_bytes(figure))
        page = {}
        if given.html:
            made = Comparison(explanations=rows, failures=failures)
            page = {"html": str(made.save(place.path(stem, ".html"), **given.drawing))}
        if given.as_json:
            put_json({"png": str(written), **page, "explanations": [[item.to_dict() for item in row] for row in rows]})
        else:
            put("\n".join([str(written), *page.values()]))
        if given.terminal:
            draw(figure)
    if stopped:
        raise click.exceptions.Exit(130)
    if failures:
        raise click.exceptions.Exit(1)
