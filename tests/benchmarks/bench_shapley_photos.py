"""Fine-tune EfficientNet-Lite0 plainly and with the Shapley objective on superclasses of photos, and judge the maps.

Run it on demand: `OMP_NUM_THREADS=1 python tests/benchmarks/bench_shapley_photos.py --photos FOLDER -o runs/shapley`.
The photos are dealt out to five folds, and each fold is held out once, so every photo is judged by networks that have
not seen it; `--dealings 1 2` does that twice. A run that was interrupted goes on where it stopped. Both twins share
start, order, crops and everything else except the objective. Training is by `xaihub.services.train`, and what is judged
is loaded from the card that it leaves. The last epoch is kept, so nothing is selected on the photos held out. Maps
explain the predicted class of their own network. Deletion and insertion go patch by patch of the backbone's grid, with
patches hidden at the mean colour ("zero"), and for the network that votes also as in its training, where hidden patches
do not vote either ("own_masking").
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from superclasses import held_out, photos_or_skip, tensors, warm_card, write_fold

from xaihub import Case, Explanation, Model, Runtime, Scene, Target
from xaihub.hub import Hub
from xaihub.rendering import grid
from xaihub.services.explain import explain
from xaihub.services.train import train
from xaihub.training.config import checked

FOLDS = 5
TWINS = {"plain": "cross_entropy", "shapley": "shapley"}
MAPS: dict[str, dict[str, Any]] = {
    "gradcam": {},
    "integrated_gradients": {"baseline": "zero"},
    "rise": {"masks": 1000, "cell": 7},
    "control_random": {},
}
OWN: dict[str, dict[str, Any]] = {"shapley": {"every_class": False}}
PATCH = 32
Areas = dict[str, dict[str, list[float]]]


def main() -> None:
    """Train, judge, print tables, and save maps before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="a folder with labels.csv in it or beside it")
    parser.add_argument("-o", "--output", default="shapley-photos", help="where runs, results and pictures are kept")
    parser.add_argument("--dealings", type=int, nargs="+", default=[1], help="seeds that deal photos out to folds")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)), help="which of these are held out")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=224, help="pixels a side, a multiple of 32")
    parser.add_argument("--lr", type=float, default=1.5e-4)
    parser.add_argument("--weight", type=float, default=8, help="lambda")
    parser.add_argument("--coalitions", type=int, default=4, help="masked copies a picture and step")
    parser.add_argument("--asked", type=int, default=2, help="photos a fold that are asked for post-hoc Shapley values")
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
    for dealing in options.dealings:
        for fold in options.folds:
            place = folder / f"{dealing}-{fold}"
            place.mkdir(exist_ok=True)
            task = write_fold(found, place / "task.csv", fold=fold, folds=FOLDS, seed=dealing)
            file = place / "result.json"
            if not file.is_file():
                for name in TWINS:
                    _train(hub, name, place, start, dealing * FOLDS + fold, options)
                text = json.dumps(_judge(hub, place, task, options))
                file.with_suffix(".part").write_text(text)
                file.with_suffix(".part").replace(file)
            records.append(json.loads(file.read_text()))
            print(f"dealing {dealing}, fold {fold} done", flush=True)
    _show(records)
    _draw(hub, folder, options)


def _train(hub: Hub, name: str, place: Path, start: Path, seed: int, options: argparse.Namespace) -> None:
    plan = checked({
        "data": str((place / "task.csv").resolve()), "model": str(start.resolve()), "objective": TWINS[name],
        "parameters": {"lambda": options.weight, "coalitions": options.coalitions} if name == "shapley" else {},
        "seed": seed, "epochs": options.epochs, "size": options.size, "batch_size": 8, "freeze_norm": True,
        "keep": "last", "lr": options.lr, "head_lr_scale": 1, "ema": 0.95, "precision": "bf16",
    })  # fmt: skip
    run = place / name
    if not (run / "card.yaml").is_file():
        train(hub, plan, run, device="cpu", resume=run.exists())


def _judge(hub: Hub, place: Path, task: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Judge both twins on all photos held out, and the network that votes also when as confident as its twin."""
    plain, own = (_load(hub, place / name) for name in TWINS)
    data = held_out(task)
    inputs, labels = tensors(data, plain)
    before, logits = (_logits(model, inputs) for model in (plain, own))
    record: dict[str, Any] = {"photos": [Path(data.pictures.names[index]).name for index in data.val], "agreement": {}}
    for name, found in (("plain", before), ("shapley", logits)):
        record[name] = {
            "hits": (found.argmax(1) == labels).tolist(),
            "confidence": float(found.softmax(1).amax(1).mean()),
            "cross-entropy": float(torch.nn.functional.cross_entropy(found, labels)),
        }
    areas: Areas = {}
    asked = torch.linspace(0, len(inputs) - 1, options.asked).round().int().tolist()  # animals come first
    explained = []
    for row, image in enumerate(inputs):
        _add(areas, "plain", _areas(hub, plain, image, _maps(hub, plain, image, row, MAPS), "zero"))
        maps = _maps(hub, own, image, row, OWN)
        explained.append(maps)
        for baseline in ("own_masking", "zero"):
            _add(areas, f"as trained, {baseline}", _areas(hub, own, image, maps, baseline))
        if row in asked:
            for key, value in _agreement(hub, own, image, maps["shapley"], options.budget).items():
                record["agreement"].setdefault(key, []).append(value)
    record["factor"] = _sharpen(own, logits, before)
    for image, maps in zip(inputs, explained, strict=True):
        for baseline in ("own_masking", "zero"):
            _add(areas, f"as confident, {baseline}", _areas(hub, own, image, maps, baseline))
    return record | {"areas": areas}


def _load(hub: Hub, run: Path) -> Model:
    return hub.load_model(str(run / "card.yaml"), device="cpu", runtime=Runtime(autocast=True))


def _logits(model: Model, inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([model.predict(part).cpu() for part in inputs.split(4)])


def _target(model: Model, image: torch.Tensor) -> Target:
    return Target(index=int(model.predict(image[None]).argmax()))


def _maps(
    hub: Hub, model: Model, image: torch.Tensor, seed: int, wanted: dict[str, dict[str, Any]]
) -> dict[str, Explanation]:
    target = _target(model, image)
    return {
        name: hub.get_explainer(name, **values).explain(model, image[None], target, seed=seed)[0]
        for name, values in wanted.items()
    }


def _areas(
    hub: Hub, model: Model, image: torch.Tensor, maps: dict[str, Explanation], baseline: str
) -> dict[str, float]:
    logits = model.predict(image[None])
    scene = Scene(model=model, image=image, logits=logits[0], target=_target(model, image).resolve(logits))
    patches = (image.shape[-1] // PATCH) ** 2
    figures = {}
    for metric in ("deletion", "insertion"):
        made = hub.get_metric(metric, unit="patches", patch=PATCH, baseline=baseline, steps=patches)
        for name, explanation in maps.items():
            figures[f"{name}, {metric}"] = made.measure(Case(scene=scene, explanation=explanation))[0].value
    return figures


def _add(areas: Areas, network: str, figures: dict[str, float]) -> None:
    for key, value in figures.items():
        areas.setdefault(network, {}).setdefault(key, []).append(value)


def _sharpen(own: Model, logits: torch.Tensor, before: torch.Tensor) -> float:
    """Multiply the patch head by a number that gives whole photos held out the plain twin's mean confidence.

    The Shapley loss softens predictions, and areas under probabilities are low for whoever is unsure. Predicted classes
    stay, no label is looked at, and votes and values grow alike, so that Shapley values stay such.
    """
    low, high = 0.1, 100.0
    for _ in range(50):
        factor = (low * high) ** 0.5
        unsure = (logits * factor).softmax(1).amax(1).mean() < before.softmax(1).amax(1).mean()
        low, high = (factor, high) if unsure else (low, factor)
    head: Any = own.module.head.linear
    with torch.no_grad():
        head.weight.mul_(factor)
        head.bias.mul_(factor)
    return factor


def _agreement(hub: Hub, model: Model, image: torch.Tensor, votes: Explanation, budget: int) -> dict[str, float]:
    """Correlate the votes with Kernel SHAP of the same network, asked its own way."""
    side = image.shape[-1] // PATCH
    asked = hub.get_explainer(
        "shapley_values", features=f"grid:{side}", baseline="own_masking", estimator="kernel", budget=budget
    )
    found = asked.explain(model, image[None], _target(model, image), seed=0)[0]
    return {
        "r": float(np.corrcoef(_cells(votes, side), _cells(found, side))[0, 1]),
        "stderr to spread": found.metadata["details"]["stderr_to_spread"],
    }


def _cells(explanation: Explanation, side: int) -> np.ndarray:
    heat = explanation.heatmap()[None, None]
    return torch.nn.functional.adaptive_avg_pool2d(heat, side).flatten().numpy()


def _show(records: list[dict[str, Any]]) -> None:
    """Print means with standard errors over photos; a photo that was held out twice counts once, with its mean."""
    names = [photo for record in records for photo in record["photos"]]

    def told(values: list[float]) -> str:
        seen: dict[str, list[float]] = {}
        for name, value in zip(names, values, strict=True):
            seen.setdefault(name, []).append(value)
        means = np.array([np.mean(found) for found in seen.values()])
        return f"{means.mean():+.3f} ({means.std(ddof=1) / len(means) ** 0.5:.3f})"

    hits = {name: [float(hit) for record in records for hit in record[name]["hits"]] for name in TWINS}
    for name in TWINS:
        folds = " ".join(f"{np.mean(record[name]['hits']):.3f}" for record in records)
        print(f"{name}: accuracy {told(hits[name])}, by folds {folds}")
        for key in ("cross-entropy", "confidence"):
            print(f"{name}: {key} {np.mean([record[name][key] for record in records]):.3f}")
    change = [after - before for before, after in zip(*hits.values(), strict=True)]
    print(f"accuracy, Shapley less plain: {told(change)}; {change.count(1)} won, {change.count(-1)} lost")
    areas: Areas = {
        network: {key: [value for record in records for value in record["areas"][network][key]] for key in found}
        for network, found in records[0]["areas"].items()
    }
    for network, found in areas.items():
        for method in {**OWN, **MAPS}:
            if f"{method}, deletion" in found:
                figures = "  ".join(
                    f"{metric} {told(found[f'{method}, {metric}'])}" for metric in ("deletion", "insertion")
                )
                print(f"{network:26} {method:22} {figures}")
    own = areas["as confident, own_masking"]
    for method in MAPS:
        for metric in ("deletion", "insertion"):
            pairs = zip(own[f"shapley, {metric}"], areas["plain"][f"{method}, {metric}"], strict=True)
            print(f"own votes as confident, own_masking, less {method:22} {metric} {told([a - b for a, b in pairs])}")
    for key in records[0]["agreement"]:
        values = np.concatenate([record["agreement"][key] for record in records])
        print(f"{key:30} mean {values.mean():.3f}, {values.min():.3f} to {values.max():.3f}, {len(values)} photos")
    print("factors of confidence:", " ".join(f"{record['factor']:.2f}" for record in records))


def _draw(hub: Hub, folder: Path, options: argparse.Namespace) -> None:
    """Save some photos held out of the first fold, with maps of both networks: after training so, and plainly."""
    place = folder / f"{options.dealings[0]}-{options.folds[0]}"
    data = held_out(place / "task.csv")
    models = {name: _load(hub, place / name) for name in reversed(TWINS)}
    (folder / "pictures").mkdir(exist_ok=True)
    for index in data.val[:: max(1, len(data.val) // 5)]:
        photo = data.pictures.names[index]
        rows = []
        for name, model in models.items():
            methods = {method: values for method, values in MAPS.items() if method != "control_random"}
            methods |= {"shapley": OWN["shapley"]} if name == "shapley" else {}
            rows.append(
                [
                    explain(photo, model=model, explainer=hub.get_explainer(method, **values))
                    for method, values in methods.items()
                ]
            )
        grid(rows).save(folder / "pictures" / f"{Path(photo).stem}.png")


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s")
