"""Fine-tune EfficientNet-Lite0 with and without the Shapley objective on superclasses of photos, and evaluate the maps.

Run it on demand: `OMP_NUM_THREADS=1 python tests/benchmarks/bench_shapley_photos.py --photos FOLDER --learn MORE`.
All photos are split into five folds, and each fold is held out once, so every photo is classified by networks that
have not seen it; those of FOLDER are explained as well. An interrupted run can be resumed. The network trained with
the objective and its baseline share start, order, crops and everything else. Training is by `xaihub.training.run`, and
the evaluated network is loaded from the card that it writes. The last epoch is kept, so nothing is selected on the
held-out photos. Maps explain the predicted class of their own network.

Deletion and insertion go patch by patch of the backbone's grid. Masked patches have the mean colour; class scores sum
either all patch scores ("zero") or those of visible patches ("own_masking"), as in training with the objective; the
baseline can be evaluated in that way too, since its class scores are a sum over patches as well. A network's confidence
moves both areas, so there are four: with the probabilities as trained; with scores multiplied until the network is as
confident as its baseline; with both networks' scores calibrated on held-out photos that are not explained (temperature
scaling); and with decisions, the fraction of steps at which the predicted class is unchanged (independent of scale).
"""

from __future__ import annotations

import argparse
import json
import time
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from superclasses import FOLDS, Photo, deal, held_out, others, photos_or_skip, tensors, warm_card, write_csv

from xaihub import Explanation, Model, Runtime, Target
from xaihub.api.explain import explain
from xaihub.explainers.rendering import grid
from xaihub.hub import Hub
from xaihub.masking import coalition_scores, make_features, make_removal
from xaihub.training.config import checked
from xaihub.training.run import train
from xaihub_shapley.network import ShapleyVision
from xaihub_shapley.self_explaining import make_own_masking

TWINS = {"plain": "cross_entropy", "shapley": "shapley"}
Maps = dict[str, tuple[str, dict[str, Any]]]
MAPS: Maps = {
    "Grad-CAM": ("gradcam", {}),
    "Integrated Gradients": ("integrated_gradients", {"baseline": "zero"}),
    "RISE": ("rise", {"masks": 1000, "cell": 7}),
    "Shapley values": ("shapley_values", {"features": "patches:32", "baseline": "zero", "budget": 128}),
    "random": ("control_random", {}),
}
OWN: Maps = {
    "votes": ("shapley", {"every_class": False}),
    "votes, refined": ("shapley", {"every_class": False, "refine": 128}),
    "Shapley values": ("shapley_values", {"features": "patches:32", "baseline": "own_masking", "budget": 128}),
}
FIXED = {"as trained": 1.0, "decisions": torch.inf}
PATCH = 32
Areas = dict[str, dict[str, list[float]]]


def main() -> None:
    """Train, evaluate, print tables, and save maps before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="folder with labels.csv in it or next to it")
    parser.add_argument("--learn", help="folder of more photos for training and classification only")
    parser.add_argument("--extra", nargs="+", default=[], help="folders of photos for the training of every fold")
    parser.add_argument("-o", "--output", default="shapley-photos", help="folder for runs, results and images")
    parser.add_argument("--seed", type=int, default=1, help="seed of the split and of training")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)), help="folds to hold out")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=224, help="pixels per side, a multiple of 32")
    parser.add_argument("--lr", type=float, default=1.5e-4)
    parser.add_argument("--weight", type=float, default=1, help="lambda")
    parser.add_argument("--coalitions", type=int, default=2, help="masked copies per image and step")
    parser.add_argument("--votes", type=float, default=0, help="weight of the loss that trains the patch scores only")
    parser.add_argument("--votes-coalitions", type=int, default=16, help="masked copies per image and step for it")
    parser.add_argument("--half", action="store_true", help="train both networks in bfloat16, where that is faster")
    parser.add_argument("--asked", type=int, default=2, help="photos per fold with post-hoc Shapley values")
    parser.add_argument("--budget", type=int, default=2000, help="coalitions for these")
    options = parser.parse_args()
    found = photos_or_skip(options.photos)
    torch.set_num_threads(1)
    folder = Path(options.output)
    (folder / "start").mkdir(parents=True, exist_ok=True)
    start = folder / "start" / "card.yaml"
    if not start.is_file():
        warm_card(folder / "start")
    hub = Hub()
    records = []
    pool = [*found, *(others(options.learn, found) if options.learn else [])]
    extra: list[Photo] = []
    for more in options.extra:
        extra += others(more, [*pool, *extra])
    for fold in options.folds:
        place = folder / f"{options.seed}-{fold}"
        place.mkdir(exist_ok=True)
        learned, held = deal(pool, fold=fold, seed=options.seed)
        task = write_csv(place / "task.csv", [*learned, *extra], held=held)
        file = place / "result.json"
        if not file.is_file():
            for name in TWINS:
                _train(hub, name, place, start, options.seed * FOLDS + fold, options)
            text = json.dumps(_judge(hub, place, task, {photo.file for photo in found}, options))
            file.with_suffix(".part").write_text(text)
            file.with_suffix(".part").replace(file)
        records.append(json.loads(file.read_text()))
        print(f"fold {fold} done", flush=True)
    _show(records)
    _draw(hub, folder, {photo.file for photo in found}, options)


def _train(hub: Hub, name: str, place: Path, start: Path, seed: int, options: argparse.Namespace) -> None:
    parameters = {"lambda": options.weight, "coalitions": options.coalitions}
    if options.votes:  # evaluated without gradients, so in half precision
        parameters |= {
            "votes_lambda": options.votes, "votes_coalitions": options.votes_coalitions, "votes_half": True
        }  # fmt: skip
    plan = checked({
        "data": str((place / "task.csv").resolve()), "model": str(start.resolve()), "objective": TWINS[name],
        "parameters": parameters if name == "shapley" else {},
        "seed": seed, "epochs": options.epochs, "size": options.size, "batch_size": 8, "freeze_norm": True,
        "keep": "last", "lr": options.lr, "head_lr_scale": 1, "ema": 0.95,
        "precision": "bf16" if options.half else "fp32",
    })  # fmt: skip
    run = place / name
    if not (run / "card.yaml").is_file():
        train(hub, plan, run, device="cpu", resume=run.exists())


def _judge(hub: Hub, place: Path, task: Path, found: set[Path], options: argparse.Namespace) -> dict[str, Any]:
    """Judge both twins on all photos held out, and their maps on those of them that are `found`."""
    plain, own = (_load(hub, place / name) for name in TWINS)
    voting = _voting(plain)
    data = held_out(task)
    inputs, labels = tensors(data, plain)
    logits = {name: _logits(model, inputs) for name, model in zip(TWINS, (plain, own), strict=True)}
    record: dict[str, Any] = {"photos": [Path(data.images.names[index]).name for index in data.val], "agreement": {}}
    for name, scores in logits.items():
        record[name] = {
            "hits": (scores.argmax(1) == labels).tolist(),
            "confidence": float(scores.softmax(1).amax(1).mean()),
            "cross-entropy": float(torch.nn.functional.cross_entropy(scores, labels)),
        }
    rows = [row for row, index in enumerate(data.val) if Path(data.images.names[index]) in found]
    rest = [row for row in range(len(labels)) if row not in rows]
    factors = {f"{name}, calibrated": _calibrated(scores[rest], labels[rest]) for name, scores in logits.items()}
    factors["shapley, as confident"] = _as_confident(logits["shapley"], logits["plain"])
    record["factors"] = factors
    sharpness = factors | {f"{name}, {way}": times for name in TWINS for way, times in FIXED.items()}
    areas: Areas = {}
    record["explained"] = [record["photos"][row] for row in rows]
    # In the order of files, so animals come first.
    asked = {rows[place] for place in torch.linspace(0, len(rows) - 1, options.asked).round().int().tolist()}
    for row in rows:
        image = inputs[row]
        for name, model, other, wanted in (("plain", plain, voting, MAPS), ("shapley", own, own, OWN)):
            made = _maps(hub, model, image, row, wanted)
            for method, explanation in made.items():
                for baseline, answering in (("zero", model), ("own_masking", other)):
                    curves = _curves(answering, image, explanation, baseline, row)
                    for key, times in sharpness.items():
                        if key.startswith(name):
                            _add(areas, f"{key}, {baseline}", method, curves, times)
        if row in asked:  # `made` are the patch scores now
            for key, value in _agreement(hub, own, image, made, options.budget).items():
                record["agreement"].setdefault(key, []).append(value)
    return record | {"areas": areas}


def _voting(plain: Model) -> Model:
    """Return the baseline as a sum of patch scores, which it is, so that those of masked patches can be left out."""
    network = ShapleyVision(deepcopy(plain.module), size=plain.input_size)
    model = plain.around(network)
    model.baselines = {"own_masking": lambda: make_own_masking}
    return model


def _load(hub: Hub, run: Path) -> Model:
    return hub.load_model(str(run / "card.yaml"), device="cpu", runtime=Runtime(precision="bf16"))


def _logits(model: Model, inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([model.predict(part).cpu() for part in inputs.split(4)])


def _target(model: Model, image: torch.Tensor) -> Target:
    return Target(index=int(model.predict(image[None]).argmax()))


def _maps(hub: Hub, model: Model, image: torch.Tensor, seed: int, wanted: Maps) -> dict[str, Explanation]:
    target = _target(model, image)
    return {
        title: hub.get_explainer(name, **values).explain(model, image[None], target, seed=seed)[0]
        for title, (name, values) in wanted.items()
    }


def _curves(model: Model, image: torch.Tensor, made: Explanation, baseline: str, seed: int) -> torch.Tensor:
    """Return the (2, N + 1, K) logits while the best patches go and while they come, the predicted class first."""
    side = image.shape[-1] // PATCH
    heat = _cells(made, side)
    mixed = torch.randperm(side**2, generator=torch.Generator().manual_seed(seed))  # ties are broken by chance
    order = mixed[heat[mixed].argsort(descending=True, stable=True)]
    place = torch.empty_like(order)
    place[order] = torch.arange(side**2)
    kept = (place >= torch.arange(side**2 + 1)[:, None]).float()
    logits = coalition_scores(
        model,
        image,
        make_features(f"grid:{side}", model, image),
        torch.cat([kept, 1 - kept]),
        removal=make_removal(baseline, model, image),
        score=lambda found: found.float(),
    )
    best = _target(model, image).index
    others = [index for index in range(logits.shape[1]) if index != best]
    return torch.cat([logits[:, [best]], logits[:, others]], 1).view(2, side**2 + 1, -1)


def _add(areas: Areas, way: str, method: str, curves: torch.Tensor, times: float) -> None:
    """Add the areas below the probability of the class, or below its being the predicted one."""
    ahead = curves[..., 0] > curves[..., 1:].amax(2)
    told = ahead.float() if times == torch.inf else (curves * times).softmax(2)[..., 0]
    found = areas.setdefault(way, {})
    for metric, curve in zip(("deletion", "insertion"), told, strict=True):
        found.setdefault(f"{method}, {metric}", []).append(float(torch.trapezoid(curve) / (len(curve) - 1)))


def _as_confident(logits: torch.Tensor, before: torch.Tensor) -> float:
    """Return the factor that gives unmasked held-out photos the baseline's mean confidence.

    The Shapley loss softens predictions, and an unsure network has low areas under its probabilities. Predicted classes
    stay, no label is used, and patch scores and values grow alike, so Shapley values remain Shapley values.
    """
    low, high = 0.1, 100.0
    for _ in range(50):
        factor = (low * high) ** 0.5
        unsure = (logits * factor).softmax(1).amax(1).mean() < before.softmax(1).amax(1).mean()
        low, high = (factor, high) if unsure else (low, factor)
    return factor


def _calibrated(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the factor on the scores that minimises cross-entropy (temperature scaling)."""
    tried = torch.logspace(-1, 1, 401)
    costs = [torch.nn.functional.cross_entropy(logits * times, labels) for times in tried]
    return float(tried[torch.stack(costs).argmin()])


def _agreement(
    hub: Hub, model: Model, image: torch.Tensor, made: dict[str, Explanation], budget: int
) -> dict[str, float]:
    """Correlate maps with Kernel SHAP of the same network under its own masking."""
    side = image.shape[-1] // PATCH
    asked = hub.get_explainer(
        "shapley_values", features=f"grid:{side}", baseline="own_masking", estimator="kernel", budget=budget
    )
    found = asked.explain(model, image[None], _target(model, image), seed=0)[0]
    truth = _cells(found, side).numpy()
    return {
        **{f"r, {title}": float(np.corrcoef(_cells(made[title], side).numpy(), truth)[0, 1]) for title in made},
        "stderr to spread": found.metadata["details"]["stderr_to_spread"],
    }


def _cells(explanation: Explanation, side: int) -> torch.Tensor:
    heat = explanation.heatmap()[None, None]
    return torch.nn.functional.adaptive_avg_pool2d(heat, side).flatten()


def _show(records: list[dict[str, Any]]) -> None:
    """Print means with standard errors over photos."""

    def told(values: Any) -> str:
        return f"{np.mean(values):+.3f} ({np.std(values, ddof=1) / len(values) ** 0.5:.3f})"

    hits = {name: [float(hit) for record in records for hit in record[name]["hits"]] for name in TWINS}
    for name in TWINS:
        folds = " ".join(f"{np.mean(record[name]['hits']):.3f}" for record in records)
        print(f"{name}: accuracy {told(hits[name])}, by folds {folds}")
        for key in ("cross-entropy", "confidence"):
            print(f"{name}: {key} {np.mean([record[name][key] for record in records]):.3f}")
    change = [after - before for before, after in zip(*hits.values(), strict=True)]
    print(f"accuracy, Shapley minus plain: {told(change)}; {change.count(1)} won, {change.count(-1)} lost")
    areas: Areas = {
        network: {key: [value for record in records for value in record["areas"][network][key]] for key in found}
        for network, found in records[0]["areas"].items()
    }
    for way, found in areas.items():
        for method in {**OWN, **MAPS}:
            if f"{method}, deletion" in found:
                figures = "  ".join(
                    f"{metric} {told(found[f'{method}, {metric}'])}" for metric in ("deletion", "insertion")
                )
                print(f"{way:34} {method:22} {figures}")
    print("own maps minus the baseline's; lower is better for deletion, higher for insertion")
    for asked in (("own_masking", "zero"), ("zero", "zero"), ("own_masking", "own_masking")):
        for sharpness in (("as trained",) * 2, ("as confident", "as trained"), ("calibrated",) * 2, ("decisions",) * 2):
            ours, theirs = (
                f"{name}, {times}, {way}" for name, times, way in zip(reversed(TWINS), sharpness, asked, strict=True)
            )
            print(f"{ours} minus {theirs}")
            for own, method in product(OWN, MAPS):
                less = {
                    metric: np.subtract(areas[ours][f"{own}, {metric}"], areas[theirs][f"{method}, {metric}"])
                    for metric in ("deletion", "insertion")
                }
                less["insertion minus deletion"] = less["insertion"] - less["deletion"]
                figures = "  ".join(f"{metric} {told(values)}" for metric, values in less.items())
                print(f"    {own} minus {method}: {figures}")
    for key in records[0]["agreement"]:
        values = np.concatenate([record["agreement"][key] for record in records])
        print(f"{key:30} mean {values.mean():.3f}, {values.min():.3f} to {values.max():.3f}, {len(values)} photos")
    for key in records[0]["factors"]:
        print(f"factor, {key}:", " ".join(f"{record['factors'][key]:.2f}" for record in records))


def _draw(hub: Hub, folder: Path, found: set[Path], options: argparse.Namespace) -> None:
    """Save some photos that the first fold holds out, with maps of both networks: after training so, and plainly."""
    place = folder / f"{options.seed}-{options.folds[0]}"
    data = held_out(place / "task.csv")
    models = {name: _load(hub, place / name) for name in reversed(TWINS)}
    (folder / "images").mkdir(exist_ok=True)
    names = [name for name in (data.images.names[index] for index in data.val) if Path(name) in found]
    for photo in names[:: max(1, len(names) // 5)]:
        rows = []
        for name, model in models.items():
            wanted = {**MAPS, **(OWN if name == "shapley" else {})}
            wanted.pop("random")
            rows.append(
                [
                    explain(photo, model=model, explainer=hub.get_explainer(method, **values))
                    for method, values in wanted.values()
                ]
            )
        grid(rows).save(folder / "images" / f"{Path(photo).stem}.png")


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s")
