"""Draw minimal sufficient pixels of twelve images on one sheet, and tell how far two seeds' maps agree.

Run it on demand: `python tests/benchmarks/sheet_convad.py --out docs/images/convad.jpg`. Without `--photos` the
images are those that scikit-image, scikit-learn and matplotlib bring along, and crops of them.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import xaihub
from xaihub import Explanation, Runtime
from xaihub.explainers.rendering import sets_figure

# Name, image, and the crop as shares of it: left, top, right, bottom.
CROPS: dict[str, tuple[str, tuple[float, float, float, float]]] = {
    "cat": ("chelsea.png", (0, 0, 1, 1)),
    "cat, nearer": ("chelsea.png", (0.1, 0, 0.75, 0.9)),
    "coffee": ("coffee.png", (0, 0, 1, 1)),
    "coffee, spoon": ("coffee.png", (0.0, 0.3, 0.6, 1)),
    "astronaut": ("astronaut.png", (0, 0, 1, 1)),
    "flower, nearer": ("flower.jpg", (0.2, 0.1, 0.75, 0.95)),
    "rocket": ("rocket.jpg", (0, 0, 1, 1)),
    "camera": ("camera.png", (0, 0, 1, 1)),
    "china": ("china.jpg", (0, 0, 1, 1)),
    "motorcycle": ("motorcycle_left.png", (0, 0, 1, 1)),
    "flower": ("flower.jpg", (0, 0, 1, 1)),
    "officer": ("grace_hopper.jpg", (0, 0, 1, 1)),
}


def main() -> None:
    """Explain, draw, and print one line an image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--photos", nargs="*")
    parser.add_argument("--explainer", default="convad")
    parser.add_argument("-p", dest="values", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limit", type=int, help="images")
    parser.add_argument("--columns", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--out", type=Path, default=Path("convad.jpg"))
    parser.add_argument("--keep", type=Path, help="folder of finished explanations, so that a stopped run goes on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = xaihub.load_model(options.model, device="cpu", runtime=Runtime(precision="bf16" if options.bf16 else "f32"))
    explainer = xaihub.get_explainer(options.explainer, **dict(pair.split("=", 1) for pair in options.values))
    cells, agreements = [], []
    for name, source in list(_images(options.photos))[: options.limit]:
        image = xaihub.load_image(source)
        inputs, geometry = model.prepare(image.rgb)
        found = []
        for seed in range(options.seeds):
            stem = (options.keep or Path()) / f"{name.replace(', ', '_')}__{seed}"
            if options.keep and stem.with_suffix(".json").exists():
                found.append(Explanation.load(stem))
                continue
            found.append(explainer.explain(model, inputs[None], seed=seed)[0])
            if options.keep:
                found[-1].save(stem)
        first = found[0].with_image(image, geometry)
        cells.append(_cell(first))
        record = first.metadata["details"]
        text = f"{name}: {first.claim}, {first.sets[0].area:.3f} of it,"
        text += f" {first.metadata['forward_passes']:g} rows"
        text += f", expected agreement {record['expected_agreement']:.2f}"
        if len(found) > 1:
            agreements.append(_agreement(found))
            text += f", seeds correlate by {agreements[-1]:.2f}"
        print(text, flush=True)
        _sheet(cells, options.columns).save(options.out, quality=85)
    if agreements:
        print(f"correlation of seeds: mean {np.mean(agreements):.3f}, least {min(agreements):.3f}")


def _images(photos: list[str] | None) -> Iterator[tuple[str, str | bytes]]:
    if photos:
        yield from ((Path(photo).stem, photo) for photo in photos)
        return
    import matplotlib
    import skimage
    import sklearn.datasets

    folders = [
        Path(skimage.__file__).parent / "data",
        Path(sklearn.datasets.__file__).parent / "images",
        Path(matplotlib.get_data_path()) / "sample_data",
    ]
    for name, (source, crop) in CROPS.items():
        file = next(folder / source for folder in folders if (folder / source).exists())
        image = xaihub.load_image(file).rgb
        box = [round(share * side) for share, side in zip(crop, (*image.size, *image.size), strict=True)]
        packed = io.BytesIO()
        image.crop(box).save(packed, "PNG")
        yield name, packed.getvalue()


def _cell(found: Explanation) -> Image.Image:
    drawn = sets_figure(found)
    assert drawn is not None
    return drawn


def _agreement(found: list[Explanation]) -> float:
    """Return the mean correlation of the maps of all pairs of seeds."""
    table = np.corrcoef([one.values.flatten().numpy() for one in found])
    return float(table[np.triu_indices(len(found), 1)].mean())


def _sheet(cells: list[Image.Image], columns: int) -> Image.Image:
    width, height = max(cell.width for cell in cells), max(cell.height for cell in cells)
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), (255, 255, 255))
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % columns * width, number // columns * height))
    return sheet


if __name__ == "__main__":
    main()
