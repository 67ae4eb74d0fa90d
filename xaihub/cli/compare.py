"""`xaihub compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from xaihub.cli._app import App
from xaihub.cli._options import json_option, model_options, pairs, quiet_options, run_options
from xaihub.cli._output import draw, progress, put, put_json, say
from xaihub.cli.explain import check_writable, load_models

__all__ = ["compare"]


@click.command()
@click.argument("image", required=False)
@model_options
@run_options
@click.option("-o", "--output", default="xaihub-out/compare.png", show_default=True, metavar="FILE", help="The PNG.")
@click.option("--terminal", is_flag=True, help="Draw the grid in the terminal as well.")
@json_option
@quiet_options
@click.pass_obj
def compare(app: App, /, image: str | None, output: str, **options: Any) -> None:
    """Compare explainers and models on one image, as one labelled grid.

    \b
    Examples:
      xaihub compare cat.jpg -e gradcam -e rise -e shap
      xaihub compare cat.jpg -m efficientnet_lite0 -m resnet50 -e gradcam -e rise -o grid.png
    """
    from xaihub.images import find_images, sample_photo

    values = pairs(options["values"])
    sources = find_images([image or str(sample_photo())])
    if len(sources) > 1:
        raise click.UsageError(f"compare takes one image, and {image!r} holds {len(sources)}")
    check_writable(Path(output).parent)
    from xaihub.api.compare import compare as run
    from xaihub.api.explain import make_explainers

    explainers = make_explainers(app.hub, options["explainers"], values)
    models = load_models(app, options)
    with progress(quiet=options["quiet"]) as bar:
        for model in models:
            model.runtime.progress = bar.step
        found = run(models, explainers, sources[0], target=options["target"], seed=options["seed"], watch=bar.watch)
    for failure in found.failures:
        who = f"{failure.explainer} on {failure.model}: " if failure.explainer else ""
        say(f"error: {who}{failure.error}")
    if any(found.rows):
        written = found.save_png(Path(output))
        if options["as_json"]:
            put_json({"png": str(written), "explanations": [[item.to_dict() for item in row] for row in found.rows]})
        else:
            put(str(written))
        if options["terminal"]:
            from PIL import Image

            with Image.open(written) as grid:
                draw(grid)
    if found.failures:
        raise click.exceptions.Exit(1)
