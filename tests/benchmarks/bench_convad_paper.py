"""Repeat the experiment of Activation-Deactivation: `convad` against `rex` with fixed fills, one search for all.

    python tests/benchmarks/bench_convad_paper.py --photos DIR --split test --bf16 --out runs/ad.jsonl
    python tests/benchmarks/bench_convad_paper.py --out runs/ad.jsonl --report

Of each photo that the model classifies as `labels.csv` (in the folder or beside it; columns file, class_index) says,
every method makes one map with the same search. Its ranking is cut where the class is kept with 0, 25, 50, 75 and 90 %
of the confidence, and at three sizes that are the same for all. Every cut is planted on solid colours and on other
photos, in plain forward passes. Photos with an even number are the development half, the others the test half. A
stopped run goes on where it was. `--bf16` runs every pass of every method in mixed precision.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import xaihub
from xaihub import Case, Explainer, Model, Runtime, Scene
from xaihub_convad.deactivation import Deactivation
from xaihub_convad.search.extraction import ranking
from xaihub_metrics_sufficiency.sets import Sets
from xaihub_metrics_sufficiency.transplant import backgrounds, transplanted

CONFIDENCES = [0.0, 0.25, 0.5, 0.75, 0.9]
SIZES = [0.1, 0.2, 0.3]
RIVALS = ["rex-min", "rex-max", "rex-mean", "rex-zero"]
# Thresholds that no registered baseline has; for `--method`.
VARIANTS: dict[str, Any] = {
    f"deactivate_{percent}": lambda percent=percent: lambda *_: Deactivation(threshold=percent / 100)
    for percent in (25, 75)
}
METHODS = {"convad": "convad:baseline=deactivate_whole", **{name: f"rex:baseline={name[4:]}" for name in RIVALS}}


def main() -> None:
    """Measure what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos")
    parser.add_argument("--models", nargs="+", default=["efficientnet_lite0"])
    parser.add_argument("--split", choices=["dev", "test", "all"], default="test")
    parser.add_argument("--out", type=Path, default=Path("runs/convad_paper.jsonl"))
    parser.add_argument("--search", default="iterations=12,refinements=2", help="parameters of every method's search")
    parser.add_argument("--method", nargs="*", default=[], metavar="LABEL=EXPLAINER:NAME=VALUE,...")
    parser.add_argument("--only", nargs="*", help="methods by label; all five by default")
    parser.add_argument("--backgrounds", type=int, default=6, help="of each family")
    parser.add_argument("--limit", type=int, help="photos a model and split")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no photo after this time")
    parser.add_argument("--bf16", action="store_true", help="mixed precision for all")
    parser.add_argument("--report", action="store_true", help="print the table of what is there")
    options = parser.parse_args()
    if options.report:
        from convad_paper_table import report

        report(read(options.out), options.split)
        return
    if options.photos is None or not options.photos.is_dir():
        print("skipped: give a folder of photos with --photos")
        return
    torch.set_num_threads(1)
    measure(options)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records that are there; a line that was cut off by a crash is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def measure(options: argparse.Namespace) -> None:
    """Append one line a photo, model and method."""
    extra = dict(entry.split("=", 1) for entry in options.method)
    wanted = {**METHODS, **extra}
    labels = options.only or list(METHODS) + list(extra)
    explainers = {label: make(wanted[label], options.search) for label in labels}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    known = {(one["model"], one["photo"], one["method"], one["setting"]) for one in read(options.out)}
    started = time.monotonic()
    for name in options.models:
        model = xaihub.load_model(name, device="cpu", runtime=Runtime(precision="bf16" if options.bf16 else "f32"))
        model.baselines = {**model.baselines, **VARIANTS}
        photos = list(classified(model, options.photos))
        half = {"dev": 0, "test": 1}.get(options.split)
        chosen = [photo for photo in photos if half is None or photo[0] % 2 == half][: options.limit]
        print(f"{name}: {len(photos)} photos classified correctly, {len(chosen)} in this split", flush=True)
        for number, file, image, logits in chosen:
            pool = [(other, int(scores.argmax())) for index, _, other, scores in photos if index != number]
            scene = Scene(model=model, image=image, logits=logits, target=target_of(logits), pool=pool)
            for label, explainer in explainers.items():
                setting = f"{explainer!r} {options.backgrounds} {options.bf16}"
                if (name, file, label, setting) in known:
                    continue
                if time.monotonic() - started > options.seconds:
                    print("out of time; run it again to go on")
                    return
                record = {"model": name, "photo": file, "number": number, "method": label, "setting": setting}
                record |= one(scene, explainer, options.backgrounds)
                with options.out.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(record) + "\n")
        print(f"{name}: done after {time.monotonic() - started:.0f} s", flush=True)


def make(text: str, search: str) -> Explainer:
    """Make an explainer from EXPLAINER:NAME=VALUE,...; its own extraction is kept cheap, as cuts are made here."""
    name, _, values = text.partition(":")
    pairs = [pair.split("=", 1) for pair in ",".join(filter(None, [search, values])).split(",")]
    return xaihub.get_explainer(name, **{"agreement": "1", "shrink": "0", **dict(pairs)})


def classified(model: Model, folder: Path) -> Iterator[tuple[int, str, Tensor, Tensor]]:
    """Yield number, file name, input and logits of each photo whose label the model finds."""
    table = next((file for file in (folder / "labels.csv", folder.parent / "labels.csv") if file.exists()), None)
    if table is None:
        print("skipped: there is no labels.csv in the folder or beside it")
        return
    with table.open(encoding="utf-8") as lines:
        for number, row in enumerate(csv.DictReader(lines)):
            image, _ = model.prepare(xaihub.load_image(folder / row["file"]).rgb)
            logits = model.predict(image[None])[0]
            if int(logits.argmax()) == int(row["class_index"]):
                yield number, row["file"], image, logits


def target_of(logits: Tensor) -> xaihub.ResolvedTarget:
    """Return the predicted class."""
    return xaihub.ResolvedTarget(index=logits.argmax()[None].cpu())


def one(scene: Scene, explainer: Explainer, count: int) -> dict[str, Any]:
    """Make one map, cut its ranking ten times, and plant every cut."""
    started = time.process_time()
    found = explainer.explain(scene.model, scene.image[None], int(scene.target.index[0]))[0]
    # Ties of the map in the order of the search itself: the case's heat is a position, without ties.
    order = ranking(found.values[0].double().numpy())
    place = np.empty(order.size, dtype=np.float32)
    place[order] = -np.arange(order.size, dtype=np.float32)
    values = torch.from_numpy(place.reshape(found.values.shape))
    case = Case(
        scene=scene, explanation=xaihub.Explanation(values=values, target=found.target, predicted=found.predicted)
    )
    own = Sets(case, "ranking", found.metadata["details"]["baseline"])
    cuts = own.sets(CONFIDENCES)
    masks = torch.stack([cut.mask for cut in cuts] + [own.prefix(round(size * own.size)) for size in SIZES])
    votes = {
        family: transplanted(case, masks, backgrounds(scene, family, count, 0)).mean(1).tolist()
        for family in ("colours", "photos")
    }
    plain = Sets(case, "ranking", "zero").evaluated(masks.unsqueeze(1).float())
    return {
        "confidence": own.whole,
        "agreement": found.metadata["details"]["expected_agreement"],
        "search": found.metadata["details"]["forward_passes_search"],
        "seconds": round(time.process_time() - started, 2),
        "areas": [cut.area for cut in cuts],
        "own": [cut.verdict.confidence for cut in cuts],
        "plain": [verdict.confidence for verdict in plain],
        **votes,
    }


if __name__ == "__main__":
    main()
