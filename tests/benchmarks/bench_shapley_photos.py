"""Fine-tune EfficientNet-Lite0 plainly and with the Shapley objective on superclasses of photos, and judge the maps.

Run it on demand: `OMP_NUM_THREADS=1 python tests/benchmarks/bench_shapley_photos.py --photos FOLDER -o runs/shapley`.
Each seed has a split of its own, the same for both; a run that was interrupted goes on where it stopped. Training is
by `xaihub.services.train`, and what is judged is loaded from the card that it leaves. The last epoch is kept, so
nothing is selected on the photos held out. Maps explain the predicted class of their own network. Deletion and
insertion go patch by patch of the backbone's grid; "/ p" is either divided by the probability of the whole picture.
Patches are hidden at the mean colour ("zero"), and of the network that votes also as in its training, where hidden
patches do not vote either ("own_masking").
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from superclasses import held_out, photos_or_skip, tensors, warm_card, write_csv

from xaihub import Case, Explanation, Model, Scene, Target
from xaihub.hub import Hub
from xaihub.rendering import grid
from xaihub.services.explain import explain
from xaihub.services.train import train
from xaihub.training.config import checked

TWINS = {"plain": "cross_entropy", "shapley": "shapley"}
MAPS: dict[str, dict[str, Any]] = {
    "shapley": {"every_class": False},
    "gradcam": {},
    "integrated_gradients": {"baseline": "zero"},
    "rise": {"masks": 500, "cell": 4},
    "control_random": {},
}
PATCH = 32
CURVES = [(metric, baseline) for baseline in ("zero", "own_masking") for metric in ("deletion", "insertion")]


def main() -> None:
    """Train, judge, print a table, and save maps before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="a folder with labels.csv in it or beside it")
    parser.add_argument("-o", "--output", default="shapley-photos", help="where runs, results and pictures are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=160, help="pixels a side, a multiple of 32")
    parser.add_argument("--weight", type=float, default=8, help="lambda")
    parser.add_argument("--all-maps", action="store_true", help="judge other methods on the network that votes as well")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--explained", type=int, default=8, help="photos held out that are explained, of each split")
    parser.add_argument("--asked", type=int, default=3, help="of these, how many are asked for post-hoc Shapley values")
    parser.add_argument("--budget", type=int, default=500, help="coalitions for these")
    options = parser.parse_args()
    found = photos_or_skip(options.photos)
    torch.set_num_threads(1)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    task = write_csv(found, folder / "task.csv")
    (folder / "start").mkdir(exist_ok=True)
    start = warm_card(folder / "start")
    hub = Hub()
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in TWINS}
    for seed in options.seeds:
        for name, objective in TWINS.items():
            run = folder / f"{name}-{seed}"
            if not (run / "result.json").is_file():
                plan = checked({
                    "data": str(task.resolve()), "model": str(start.resolve()), "objective": objective,
                    "parameters": {"lambda": options.weight} if name == "shapley" else {},
                    "val": 0.4, "seed": seed,
                    "epochs": options.epochs, "size": options.size, "batch_size": 8, "freeze_norm": True,
                    "keep": "last", "lr": options.lr, "head_lr_scale": 1,
                })  # fmt: skip
                outcome = train(hub, plan, run, device="cpu", resume=run.exists())
                record = _judge(hub, outcome.card, task, seed, options)
                record["seconds an epoch"] = outcome.history[-1]["seconds"]
                (run / "result.json").write_text(json.dumps(record))
                print(f"seed {seed} {name}: accuracy {np.mean(record['hits']):.3f}", flush=True)
            records[name].append(json.loads((run / "result.json").read_text()))
    _show(records)
    _show_matched([_matched(hub, folder, task, seed, options.explained) for seed in options.seeds], records["plain"])
    _draw(hub, folder, task, options.seeds[0], options.asked)


def _judge(hub: Hub, card: Path, task: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    model = hub.load_model(str(card), device="cpu")
    data = held_out(task, share=0.4, seed=seed)
    inputs, labels = tensors(data, model)
    logits = torch.cat([model.predict(part) for part in inputs.split(4)])
    record: dict[str, Any] = {
        "hits": (logits.argmax(1) == labels).tolist(),
        "cross-entropy": float(torch.nn.functional.cross_entropy(logits, labels)),
        "figures": {},
        "agreement": {},
    }
    # Photos of all classes: the order of the split goes by class.
    some = torch.linspace(0, len(inputs) - 1, options.explained).round().long().tolist()
    asked = set(some[:: max(1, len(some) // options.asked)][: options.asked])
    for row in some:
        scene, maps = _explained(hub, model, inputs[row], options.all_maps)
        for method, explanation in maps.items():
            for key, value in _curves(hub, scene, explanation).items():
                record["figures"].setdefault(method, {}).setdefault(key, []).append(value)
        if row in asked and "shapley" in maps:
            for key, value in _agreement(hub, model, scene, maps["shapley"], options.budget).items():
                record["agreement"].setdefault(key, []).append(value)
    return record


def _seen(model: Model, image: torch.Tensor) -> tuple[Scene, Target]:
    logits = model.predict(image[None])
    target = Target(index=int(logits.argmax()))
    return Scene(model=model, image=image, logits=logits[0], target=target.resolve(logits)), target


def _explained(hub: Hub, model: Model, image: torch.Tensor, all_maps: bool) -> tuple[Scene, dict[str, Explanation]]:
    scene, target = _seen(model, image)
    wanted = set(MAPS) - {"shapley"}
    if _votes(model):
        wanted = set(MAPS) if all_maps else {"shapley", "control_random"}
    return scene, {
        name: hub.get_explainer(name, **values).explain(model, image[None], target, seed=0)[0]
        for name, values in MAPS.items()
        if name in wanted
    }


def _votes(model: Model) -> bool:
    return model.card.objective == "shapley"


def _curves(hub: Hub, scene: Scene, explanation: Explanation) -> dict[str, float]:
    whole = float(scene.score(scene.logits[None]))
    figures = {}
    patches = (scene.image.shape[-1] // PATCH) ** 2
    for metric, baseline in CURVES:
        if baseline == "zero" or _votes(scene.model):
            made = hub.get_metric(metric, unit="patches", patch=PATCH, baseline=baseline, steps=patches)
            value = made.measure(Case(scene=scene, explanation=explanation))[0].value
            figures[f"{metric}, {baseline}"] = value
            figures[f"{metric}, {baseline} / p"] = value / whole
    return figures


def _agreement(hub: Hub, model: Model, scene: Scene, votes: Explanation, budget: int) -> dict[str, float]:
    """Correlate the votes with post-hoc Shapley values of the same network, asked its own way and by mean colour."""
    side = scene.image.shape[-1] // PATCH
    cells = _cells(votes, side)
    figures = {}
    for estimator, baseline in (("kernel", "own_masking"), ("interactions", "own_masking"), ("kernel", "zero")):
        explainer = hub.get_explainer(
            "shapley_values", features=f"grid:{side}", baseline=baseline, estimator=estimator, budget=budget
        )
        found = explainer.explain(model, scene.image[None], Target(index=int(scene.target.index[0])), seed=0)[0]
        key = f"{estimator}, {baseline}"
        figures[f"r, {key}"] = float(np.corrcoef(cells, _cells(found, side))[0, 1])
        figures[f"stderr to spread, {key}"] = found.metadata["details"]["stderr_to_spread"]
    return figures


def _matched(hub: Hub, folder: Path, task: Path, seed: int, explained: int) -> dict[str, list[float]]:
    """Judge the network's own maps with as much confidence on whole photos held out as its plain twin has.

    The Shapley loss softens predictions, and areas under probabilities are low for whoever is unsure. The patch head is
    multiplied by a number: predicted classes stay, and votes and values grow alike, so that Shapley values stay such.
    """
    file = folder / f"shapley-{seed}" / "matched.json"
    if not file.is_file():
        plain, own = (hub.load_model(str(folder / f"{name}-{seed}" / "card.yaml"), device="cpu") for name in TWINS)
        inputs, _ = tensors(held_out(task, share=0.4, seed=seed), own)
        logits, before = (torch.cat([model.predict(part) for part in inputs.split(4)]) for model in (own, plain))
        low, high = 0.1, 100.0
        for _ in range(50):
            factor = (low * high) ** 0.5
            unsure = (logits * factor).softmax(1).amax(1).mean() < before.softmax(1).amax(1).mean()
            low, high = (factor, high) if unsure else (low, factor)
        head: Any = own.module.head.linear
        with torch.no_grad():
            head.weight.mul_(factor)
            head.bias.mul_(factor)
        figures: dict[str, list[float]] = {"factor": [factor]}
        for row in torch.linspace(0, len(inputs) - 1, explained).round().long().tolist():
            scene, target = _seen(own, inputs[row])
            explanation = hub.get_explainer("shapley").explain(own, inputs[row : row + 1], target)[0]
            for key, value in _curves(hub, scene, explanation).items():
                figures.setdefault(key, []).append(value)
        file.write_text(json.dumps(figures))
    return json.loads(file.read_text())


def _show_matched(runs: list[dict[str, list[float]]], plain: list[dict[str, Any]]) -> None:
    """Print the figures with standard errors, and by how much they differ from the plain twin's on the same photos."""

    def told(values: np.ndarray) -> str:
        error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        return f"{values.mean():+.3f} ({error:.3f})"

    for key in runs[0]:
        values = np.concatenate([run[key] for run in runs])
        line = f"shapley at the plain twin's confidence: {key:28} {told(values)}"
        asked = key.replace("own_masking", "zero")
        if asked in plain[0]["figures"]["gradcam"]:
            for method in plain[0]["figures"]:
                before = np.concatenate([run["figures"][method][asked] for run in plain])
                line += f"  less {method} {told(values - before)}"
        print(line)


def _draw(hub: Hub, folder: Path, task: Path, seed: int, count: int) -> None:
    """Save some photos held out of one split, with maps of both networks: after training so, and plainly."""
    data = held_out(task, share=0.4, seed=seed)
    models = {
        name: hub.load_model(str(folder / f"{name}-{seed}" / "card.yaml"), device="cpu") for name in reversed(TWINS)
    }
    (folder / "pictures").mkdir(exist_ok=True)
    for row in torch.linspace(0, len(data.val) - 1, count).round().long().tolist():
        photo = data.pictures.names[data.val[row]]
        rows = [
            [
                explain(photo, model=model, explainer=hub.get_explainer(method, **MAPS[method]))
                for method in ("gradcam", "integrated_gradients", "shapley")
                if method != "shapley" or name == "shapley"
            ]
            for name, model in models.items()
        ]
        grid(rows).save(folder / "pictures" / f"{Path(photo).stem}.png")


def _cells(explanation: Explanation, side: int) -> np.ndarray:
    heat = explanation.heatmap()[None, None]
    return torch.nn.functional.adaptive_avg_pool2d(heat, side).flatten().numpy()


def _show(records: dict[str, list[dict[str, Any]]]) -> None:
    for name, runs in records.items():
        hits = [float(np.mean(run["hits"])) for run in runs]
        print(
            f"{name:10} accuracy {np.mean(hits):.3f} ({' '.join(f'{hit:.3f}' for hit in hits)}), cross-entropy"
            f" {np.mean([run['cross-entropy'] for run in runs]):.3f},"
            f" {np.mean([run['seconds an epoch'] for run in runs]):.1f} s an epoch"
        )
    for name, runs in records.items():
        for method, figures in runs[0]["figures"].items():
            for key in figures:
                values = np.concatenate([run["figures"][method][key] for run in runs])
                error = values.std(ddof=1) / len(values) ** 0.5
                print(f"{name:10} {method:22} {key:28} {values.mean():.3f} ({error:.3f})")
    for key in records["shapley"][0]["agreement"]:
        values = np.concatenate([run["agreement"][key] for run in records["shapley"]])
        print(f"{key:40} mean {values.mean():.3f}, lowest {values.min():.3f}, {len(values)} photos")


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s")
