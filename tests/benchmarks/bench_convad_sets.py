"""Measure the sets of pixels that `convad` and `rex` return at their defaults.

    python tests/benchmarks/bench_convad_sets.py --photos DIR --out runs/sets.jsonl
    python tests/benchmarks/bench_convad_sets.py --out runs/sets.jsonl --report

Of each photo that the model classifies as `labels.csv` (in the folder or beside it; columns file, class_index) says,
the set that each method returns is saved, read again, and evaluated: what it keeps of the confidence; whether the class
stays first if the set is eroded or dilated by one pixel (also at the image's border); and how often the plain network
still finds the class if the set is planted on solid colours and on photos of other classes. One line per photo, model
and method; an interrupted run resumes where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_convad_paper import classified, read, target_of
from convad_paper_table import Reader, table
from torch import Tensor

import xaihub
from xaihub import Case, Explanation, PixelSet, Scene
from xaihub.masking import masked_forward_passes
from xaihub_convad.baselines import named_removal
from xaihub_convad.search.extraction import neighbours
from xaihub_metrics_sufficiency.transplant import backgrounds, transplanted

FAMILIES = ("colours", "photos")


def main() -> None:
    """Measure what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos")
    parser.add_argument("--models", nargs="+", default=["efficientnet_lite0", "efficientnet_lite1"])
    parser.add_argument("--methods", nargs="+", default=["convad", "rex"], help="the first is compared with the others")
    parser.add_argument("--out", type=Path, default=Path("runs/convad_sets.jsonl"))
    parser.add_argument("--backgrounds", type=int, default=8, help="of each family")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no photo after this time")
    parser.add_argument("--report", action="store_true", help="print the tables of what is there")
    options = parser.parse_args()
    if options.report:
        report(read(options.out), options.methods)
    elif options.photos is None or not options.photos.is_dir():
        print("skipped: give a folder of photos with --photos")
    else:
        torch.set_num_threads(1)
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Append one line per photo, model and method, in an order in which any beginning is a random sample of photos."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    known = {(one["model"], one["photo"], one["method"]) for one in read(options.out)}
    models = {name: xaihub.load_model(name, device="cpu") for name in options.models}
    photos = {name: list(classified(model, options.photos)) for name, model in models.items()}
    numbers = sorted({number for found in photos.values() for number, *_ in found})
    started = time.monotonic()
    for number in np.random.default_rng(0).permutation(numbers).tolist():
        for name, model in models.items():
            for file, image, logits in [photo[1:] for photo in photos[name] if photo[0] == number]:
                pool = [(other, int(scores.argmax())) for index, _, other, scores in photos[name] if index != number]
                scene = Scene(model=model, image=image, logits=logits, target=target_of(logits), pool=pool)
                for method in options.methods:
                    if (name, file, method) in known:
                        continue
                    if time.monotonic() - started > options.seconds:
                        print("out of time; run it again to resume")
                        return
                    record = {"model": name, "photo": file, "method": method, **one(scene, method, options.backgrounds)}
                    with options.out.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps(record) + "\n")


def one(scene: Scene, method: str, count: int) -> dict[str, Any]:
    """Explain at the defaults, save, read again, and evaluate the main set."""
    started = time.process_time()
    explained = xaihub.get_explainer(method).explain(scene.model, scene.image[None], int(scene.target.index[0]))[0]
    seconds = time.process_time() - started
    with tempfile.TemporaryDirectory() as folder:
        explained.save(Path(folder) / "explanation")
        found = Explanation.load(Path(folder) / "explanation")
    case, mask = Case(scene=scene, explanation=found), found.sets[0].mask
    own, eroded, dilated = evaluated(scene, found.sets[0])
    planted = {kind: transplanted(case, mask[None], backgrounds(scene, kind, count, 0)) for kind in FAMILIES}
    return {
        "confidence": float(scene.logits.softmax(0)[scene.target.index[0]]),
        "holds": found.sets[0].holds,
        "score": own[1],
        "keeps": own[0],
        "eroded": eroded[0],
        "dilated": dilated[0],
        "area": found.sets[0].area,
        "runner_up": found.sets[0].runner_up,
        "passes": found.metadata["forward_passes"],
        "seconds": round(seconds, 2),
        **{kind: float(kept.mean()) for kind, kept in planted.items()},
    }


def evaluated(scene: Scene, one: PixelSet) -> list[tuple[bool, float]]:
    """Return for a set, eroded, and dilated whether the class stays first, and its probability."""
    shown = np.stack([one.mask.numpy(), *neighbours(one.mask.numpy())])
    masks: Tensor = torch.from_numpy(shown).float().unsqueeze(1)
    removal = named_removal(one.baseline or "zero", scene.model, scene.image)
    batches = masked_forward_passes(scene.model, scene.image, masks, removal=removal)
    outputs = torch.cat([batch.outputs for batch in batches])
    kept = scene.target.kept(outputs, scene.logits[None]).tolist()
    return list(zip(kept, scene.target.score(outputs, output="probability").tolist(), strict=True))


def report(records: list[dict[str, Any]], methods: list[str]) -> None:
    """Print for each model, and for all, the methods' means and the paired differences, in Markdown."""
    by: dict[str, dict[tuple[str, str], dict[str, Any]]] = {method: {} for method in methods}
    for one in records:
        by.setdefault(one["method"], {})[one["model"], one["photo"]] = one
    common = [pair for pair in by[methods[0]] if all(pair in by[method] for method in methods)]
    models = sorted({model for model, _ in common})
    readers: dict[str, Reader] = {
        "area": lambda one: one["area"],
        "kept on colours": lambda one: one["colours"],
        "kept on photos": lambda one: one["photos"],
        "fraction of the confidence": lambda one: one["score"] / one["confidence"],
        "at least the requested half": lambda one: one["keeps"] and one["score"] >= 0.5 * one["confidence"] - 1e-5,
        "reported as failed": lambda one: not one["holds"],
        "class kept, eroded": lambda one: one["eroded"],
        "class kept, dilated": lambda one: one["dilated"],
        "forward passes": lambda one: one["passes"],
    }
    for title, chosen in [*((model, [model]) for model in models), ("all models, averaged photo by photo", models)]:
        pairs = [pair for pair in common if pair[0] in chosen]
        table(
            f"{title}: {len({photo for _, photo in pairs})} photos, {len(pairs)} sets per method",
            {method: [by[method][pair] for pair in pairs] for method in methods},
            readers,
        )


if __name__ == "__main__":
    main()
