"""Draw one map of every explainer that is valid for a model, for the page docs/gallery.md: `make gallery` (minutes)."""

from __future__ import annotations

import sys
from pathlib import Path

import xaihub
from xaihub.errors import XaihubError
from xaihub.explainers.rendering import painted
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost

DOCS = Path(__file__).parent
FOLDER = DOCS / "images" / "gallery"
SIDE = 240  # pixels of a thumbnail
COLUMNS = 3


def hub() -> Hub:
    """Return a hub with the built-in plugins only."""
    return Hub(PluginHost(environ={"XAIHUB_LOAD_PLUGINS": "", "XAIHUB_STRICT_PLUGINS": "1"}).load())


def page() -> str:
    """Return a table of the thumbnails, with what each explainer does."""
    rows = []
    found = [spec for spec in hub().explainers if (FOLDER / f"{spec.name}.jpg").exists()]
    for start in range(0, len(found), COLUMNS):
        row = found[start : start + COLUMNS]
        images = [f"![{spec.name}](images/gallery/{spec.name}.jpg)" for spec in row]
        texts = [f"[`{spec.name}`](reference/explainers.md#{spec.name}): {spec.summary}" for spec in row]
        rows += [f"| {' | '.join(cells + [''] * (COLUMNS - len(row)))} |" for cells in (images, texts)]
    return "\n".join(["| | | |", "|---|---|---|", *rows])


def main() -> int:
    """Write one JPEG per explainer; print those that refuse."""
    built_in = hub()
    FOLDER.mkdir(parents=True, exist_ok=True)
    model, image = built_in.load_model("efficientnet_lite0"), xaihub.load_image(xaihub.sample_photo())
    inputs, geometry = model.prepare(image.rgb)
    for spec in built_in.explainers:
        if "control" in spec.tags:
            continue
        file = FOLDER / f"{spec.name}.jpg"
        try:
            found = built_in.get_explainer(spec.name).explain(model, inputs[None])[0]
        except XaihubError as error:
            file.unlink(missing_ok=True)
            print(f"{spec.name}: {error}")
            continue
        left, top, right, bottom = geometry.box()
        drawn = painted(found.heatmap(), image, geometry).crop((left, top, right, bottom))
        drawn.resize((SIDE, SIDE)).save(file, quality=85)
        print(f"{spec.name}: {found.metadata['forward_passes']:.0f} forward passes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
