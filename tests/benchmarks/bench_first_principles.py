"""Insertion and deletion of `first_principles`, and of other methods, at an equal number of forward passes.

    python tests/benchmarks/bench_first_principles.py --photos DIR --count 50 --groups defaults
    python tests/benchmarks/bench_first_principles.py --photos DIR --count 50 --reference keep_p \
      --measure my.safetensors --used chosen.txt

Each method explains the predicted class of each photo, and is judged by insertion (on a blurred image) and deletion
(with zeros) with `--steps` steps. In the group "defaults", `first_principles` runs with its default parameters, and the
other explainers with their own and as many forward passes as it used on that photo. In the other groups every method
has `--budget` forward passes; keep-p at 0.5 and the weights of RISE and of LIME are read off one set of masks; signed
keep-p is twice the centred one. A backward pass counts as two forward passes. Means have 95 % bootstrap intervals over
photos; "against" is the mean of differences to `--reference`, photo by photo, in bold where its interval excludes zero.
`--used` names photos on which the measure was chosen, one path or name per line; they are skipped.

Results go to `--store`, one line per photo and method, and a run can be resumed; `--report` only prints.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

import xaihub
from xaihub import Case, Explanation, Scene, Target
from xaihub.explainers.budget import Budget, within
from xaihub.masking import make_removal
from xaihub_first_principles import mask_families
from xaihub_first_principles.evaluation import evaluate_points
from xaihub_first_principles.method import FirstPrinciples
from xaihub_first_principles.regions import make_regions

SUFFIXES = (".jpeg", ".jpg", ".png")
Maps = Iterator[tuple[str, Tensor, float]]  # name, (H, W) heat, forward passes


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="A folder of photos; without it nothing is measured.")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--measure", type=Path, action="append", help="A file of 'xaihub optimise-measure'.")
    parser.add_argument("--used", type=Path, help="Photos on which the measure was chosen.")
    parser.add_argument("--budget", type=int, default=300)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--store", type=Path, default=Path("bench_first_principles.jsonl"))
    parser.add_argument("--minutes", type=float, default=1e9, help="Stop after so long.")
    parser.add_argument("--groups", nargs="*", help="Only groups of methods whose names begin so.")
    parser.add_argument("--reference", default="first_principles", help="The method that others are compared with.")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.photos is not None and options.photos.is_dir() and not options.report:
        measure_all(options)
    if options.store.exists():
        report(options.store, options.reference)
    else:
        print("nothing was measured: give --photos DIR")


def measure_all(options: argparse.Namespace) -> None:
    """Ask every group of methods about every photo; other families only when all photos are done."""
    used = set()
    if options.used is not None:
        used = {Path(line).name for line in options.used.read_text().splitlines() if line.strip()}
    photos = [file for file in sorted(options.photos.iterdir()) if file.suffix.lower() in SUFFIXES]
    photos = [file for file in photos if file.name not in used]
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(0)).tolist()
    photos = [photos[k] for k in order][: options.count]
    done = {(line["photo"], line["group"]) for line in lines(options.store)}
    model = xaihub.load_model(options.model, device="cpu")
    hub = xaihub.Hub()
    metrics = [hub.get_metric(name, steps=options.steps) for name in ("insertion", "deletion")]
    started = time.monotonic()
    wanted = groups(options)
    last = {name: wanted.pop(name) for name in ("families", "base law") if name in wanted}
    for methods_of, photo in product((wanted, last), photos):  # the main comparison is whole wherever a run stops
        for group, methods in methods_of.items():
            if (photo.name, group) in done:
                continue
            if time.monotonic() - started > 60 * options.minutes:
                return
            image, _ = model.prepare(xaihub.load_image(photo).rgb)
            logits = model.predict(image[None])
            target = Target().resolve(logits)
            scene = Scene(model=model, image=image, logits=logits[0], target=target)
            found = []
            for name, heat, forward_passes in methods(model, image, options):
                explanation = Explanation.of_row(
                    0, values=heat[None, None].float(), logits=logits, target=target, classes=model.classes, metadata={}
                )
                case = Case(scene=scene, explanation=explanation)
                insertion, deletion = (metric.measure(case)[0].value for metric in metrics)
                found.append(
                    {"method": name, "insertion": insertion, "deletion": deletion, "forward_passes": forward_passes}
                )
            with options.store.open("a") as file:
                file.write(json.dumps({"photo": photo.name, "group": group, "found": found}) + "\n")


def groups(options: argparse.Namespace) -> dict[str, Callable[..., Maps]]:
    """Return what is measured, by group; a group is evaluated and stored as a whole."""
    found: dict[str, Callable[..., Maps]] = {"defaults": defaults, "masks": from_one_set_of_masks, "peers": peers}
    for file in options.measure or []:
        found[f"optimised, {file.stem}"] = partial(learned, file)
    found |= {"families": other_families, "base law": peers_over_blur}
    wanted = tuple(options.groups or [""])
    return {name: methods for name, methods in found.items() if name.startswith(wanted)}


def defaults(model: xaihub.Model, image: Tensor, options: argparse.Namespace) -> Maps:
    """The public explainer with no parameter given, then others with the same number of forward passes."""
    (own,) = explained(model, image, {"first_principles": xaihub.Hub().get_explainer("first_principles")})
    yield own
    yield from explained(model, image, others(image, round(own[2])))


def from_one_set_of_masks(model: xaihub.Model, image: Tensor, options: argparse.Namespace) -> Maps:
    """Families that share their masks."""
    generator = torch.Generator().manual_seed(0)
    regions = make_regions("grid:7", model, image, shifts=1, generator=generator)[0]
    target = Target().resolve(model.predict(image[None]))
    removals = [make_removal("blur", model, image)]
    ones = torch.ones(regions.features.count, dtype=torch.float64)

    def score(logits: Tensor) -> Tensor:
        return target.score(logits.softmax(1))

    points = mask_families.KeepP(budget=options.budget).points(ones, generator)
    shared = evaluate_points(model, image, points, features=regions.features, removals=removals)
    families: dict[str, mask_families.MaskFamily] = {
        "keep_p": mask_families.KeepP(adjust=True, centre=True),
        "keep_p, not adjusted": mask_families.KeepP(centre=True),
        "rise weights": mask_families.RISE(centre=True),
        "lime_fixed": mask_families.LIME(),
    }
    for name, family in families.items():
        values = shared.measure(family, score).values
        yield name, regions.paint(values, smooth=True), options.budget


def learned(file: Path, model: xaihub.Model, image: Tensor, options: argparse.Namespace) -> Maps:
    """The optimised measure."""
    yield from explained(
        model, image, {f"optimised, {file.stem}": FirstPrinciples(measure=str(file), budget=options.budget)}
    )


def peers(model: xaihub.Model, image: Tensor, options: argparse.Namespace) -> Maps:
    """Other methods, at the budget where they have one."""
    ig = xaihub.Hub().get_explainer("integrated_gradients", steps=options.budget // 3)
    yield from explained(model, image, {**others(image, options.budget), "IG": ig})


def others(image: Tensor, n: int) -> dict[str, xaihub.Explainer]:
    """Return other methods for n forward passes, otherwise at their defaults; on grids of 7 x 7 cells."""
    hub = xaihub.Hub()
    chosen = {
        "shapley_values": ("shapley_values", {"estimator": "interactions"}),
        "RISE": ("rise", {}),
        "KernelSHAP": ("kernel_shap", {"features": "grid:7"}),
        "Grad-CAM": ("gradcam", {}),
        "occlusion window": ("occlusion", {"window": 32, "stride": stride_of(image, n)}),
        "random": ("control_random", {}),
    }
    budget = Budget(passes=n)
    made = {name: hub.get_explainer(kind, **values) for name, (kind, values) in chosen.items()}
    return {name: one if name == "Grad-CAM" else within(one, budget) for name, one in made.items()}


def peers_over_blur(model: xaihub.Model, image: Tensor, options: argparse.Namespace) -> Maps:
    """Other methods with the replacement that the families have; by default they have their papers'."""
    hub, n = xaihub.Hub(), options.budget
    chosen = {
        "RISE, blur": ("rise", {"masks": n, "baseline": "blur", "tolerance": 0.0}),
        "KernelSHAP, blur": (
            "kernel_shap", {"samples": n, "features": "grid:7", "baseline": "blur", "output": "probability"}
        ),
        "occlusion window, blur": (
            "occlusion", {"window": 32, "stride": stride_of(image, n), "baseline": "blur", "output": "probability"}
        ),
    }  # fmt: skip
    made = {name: hub.get_explainer(kind, **values) for name, (kind, values) in chosen.items()}
    yield from explained(model, image, made)


def stride_of(image: Tensor, budget: int) -> int:
    """Return the stride at which windows of 32 pixels take about the budget; the last are flush with the edge."""
    windows = int(budget**0.5) - 1  # a side
    return -(-(image.shape[-1] - 32) // windows)


def other_families(model: xaihub.Model, image: Tensor, options: argparse.Namespace) -> Maps:
    """Families with points of their own, one by one over several grids, so that they spend the budget."""
    n = options.budget
    several = {"budget": n, "shifts": max(1, n // 66), "output": "probability"}
    one = {"budget": n, "output": "probability"}
    random = {**one, "tolerance": 0.0}
    made = {
        "keep_p, two grids": FirstPrinciples(shifts=2, **random),
        "shapley": FirstPrinciples(family="shapley", **random),
        "occlusion": FirstPrinciples(family="occlusion", **several),
        "pdp = axis_dirac": FirstPrinciples(family="pdp", **several),
        "independent": FirstPrinciples(family="independent", baseline="blur,mean", output="probability", budget=8 * 50),
        "conditional": FirstPrinciples(family="conditional", baseline="inpaint", **several),
        "axis_lebesgue": FirstPrinciples(family="axis_lebesgue", **one),
        "length_weighted": FirstPrinciples(family="length_weighted", **random),
        "smoothgrad": FirstPrinciples(family="smoothgrad", **random),
        "fd_ig": FirstPrinciples(family="fd_ig", **one),
    }
    yield from explained(model, image, made)


def explained(model: xaihub.Model, image: Tensor, made: dict[str, xaihub.Explainer]) -> Maps:
    """Explain with each."""
    for name, explainer in made.items():
        found = explainer.explain(model, image[None])[0]
        yield name, found.heatmap(), found.metadata["forward_passes"] + 2 * found.metadata["backward_passes"]


def lines(store: Path) -> list[dict[str, object]]:
    """Read what was stored; a line cut off by the end of a run is left out."""
    found = []
    for text in store.read_text().splitlines() if store.exists() else []:
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def report(store: Path, reference: str) -> None:
    """Print the table, best first."""
    values: dict[str, dict[str, tuple[float, float, float]]] = {}
    for line in lines(store):
        for entry in line["found"]:  # type: ignore[attr-defined]
            pair = (entry["insertion"], entry["deletion"], entry["forward_passes"])
            values.setdefault(entry["method"], {})[str(line["photo"])] = pair
    rows = []
    for name, by_photo in values.items():
        scores = torch.tensor(list(by_photo.values()), dtype=torch.float64)
        gaps = scores[:, 0] - scores[:, 1]
        common = [photo for photo in by_photo if photo in values.get(reference, {})]
        theirs = torch.tensor([values[reference][p][0] - values[reference][p][1] for p in common], dtype=torch.float64)
        mine = torch.tensor([by_photo[p][0] - by_photo[p][1] for p in common], dtype=torch.float64)
        rows.append((float(gaps.mean()), name, scores, gaps, mine - theirs))
    print(f"| method | photos | forward passes | insertion | deletion | difference | against {reference} |")
    print("|---|---|---|---|---|---|---|")
    for _, name, scores, gaps, against in sorted(rows, key=lambda row: -row[0]):
        cells = [interval(scores[:, 0]), interval(scores[:, 1]), interval(gaps)]
        cells.append("" if name == reference or not len(against) else interval(against, sign=True))
        print(f"| {name} | {len(scores)} | {float(scores[:, 2].mean()):.0f} | {' | '.join(cells)} |")


def interval(values: Tensor, *, sign: bool = False) -> str:
    """Return "mean [low, high]" with a 95 % bootstrap interval."""
    generator = torch.Generator().manual_seed(0)
    drawn = values[torch.randint(0, len(values), (10_000, len(values)), generator=generator)].mean(1)
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    form = "+.3f" if sign else ".3f"
    text = f"{float(values.mean()):{form}} [{low:{form}}, {high:{form}}]"
    return f"**{text}**" if sign and low * high > 0 else text


if __name__ == "__main__":
    main()
