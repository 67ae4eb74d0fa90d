"""Fine-tune EfficientNet-Lite0 with and without ExpO on superclasses of photos, and judge the explanations.

Run it on demand: `OMP_NUM_THREADS=1 python tests/benchmarks/bench_expo_photos.py --photos FOLDER -o runs/expo`. Each
seed has a split of its own, the same for all objectives; a run that was interrupted goes on where it stopped. Every
network starts from the ImageNet weights, with the mean of the classifier's rows of each superclass. Training is by
`xaihub.services.train`, and what is judged is loaded from the card that it leaves. The last epoch is kept, so that
nothing is selected on the photos held out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from superclasses import SUPERCLASSES, held_out, photos_or_skip, tensors, write_csv

from xaihub import Case, Model, Scene, Target
from xaihub.hub import Hub
from xaihub.masking import coalition_scores, make_features, make_removal
from xaihub.services.train import train
from xaihub.training.config import checked
from xaihub_expo.penalties import local_fit

OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("cross_entropy", {}),
    "stability, pixels": ("expo-stability", {"c": 0.5, "warmup": 0}),
    "stability, patches": ("expo-stability", {"c": 0.5, "warmup": 0, "neighbourhood": "patches"}),
    "1d": ("expo-1d", {"c": 0.5, "warmup": 0}),
    "fidelity": ("expo-fidelity", {"c": 0.5, "warmup": 0, "every": 2}),
}
GRID = {"features": "grid:5", "baseline": "mean", "samples": 96}
JUDGED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "lime": (
        {**GRID, "output": "probability"},
        ("point_fidelity", "neighbourhood_fidelity", "neighbourhood_fidelity_relative", "surrogate_stability",
         "surrogate_stability_relative"),
    ),
    "kernel_shap": (
        {**GRID, "output": "logit"},
        ("neighbourhood_fidelity", "neighbourhood_fidelity_relative", "surrogate_stability",
         "surrogate_stability_relative"),
    ),
    "saliency": ({"absolute": False}, ("saliency_stability", "saliency_stability_relative")),
}  # fmt: skip
VALUES = {"neighbourhood_fidelity": {"masks": 64}, "neighbourhood_fidelity_relative": {"masks": 64},
          "surrogate_stability": {"draws": 1}, "surrogate_stability_relative": {"draws": 1}}  # fmt: skip


def main() -> None:
    """Train, judge, and print a table of ratios to plain training with bootstrap intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="a folder with labels.csv in it or beside it")
    parser.add_argument("-o", "--output", default="expo-photos", help="where runs and results are kept")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--explained", type=int, default=6, help="photos held out that are explained, of each split")
    parser.add_argument("--only", nargs="*", help="some of the objectives")
    parser.add_argument("-c", type=float, help="another share for every objective")
    options = parser.parse_args()
    found = photos_or_skip(options.photos)
    torch.set_num_threads(1)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    task = write_csv(found, folder / "task.csv")
    hub = Hub()
    start = _start(hub, folder)
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for name, (objective, values) in OBJECTIVES.items():
            if options.only and name not in options.only:
                continue
            chosen = {**values, "c": options.c} if options.c is not None and values else values
            run = folder / f"{name.replace(', ', '-')}-{seed}"
            if not (run / "result.json").is_file():
                plan = checked({
                    "data": str(task.resolve()), "objective": objective, "parameters": chosen, "val": 0.4, "seed": seed,
                    "model": str(start.resolve()), "epochs": options.epochs, "size": options.size, "batch_size": 8,
                    "freeze_norm": True, "keep": "last",
                })  # fmt: skip
                outcome = train(hub, plan, run, device="cpu", resume=run.exists())
                record = _judge(hub, outcome.card, task, seed, options.explained)
                record["training"] = outcome.history[-1]
                (run / "result.json").write_text(json.dumps(record))
                print(f"seed {seed} {name}: accuracy {record['accuracy']:.3f}", flush=True)
            results.setdefault(name, []).append(json.loads((run / "result.json").read_text()))
    _show(results)


def _start(hub: Hub, folder: Path) -> Path:
    """Write the card of EfficientNet-Lite0 with a classifier for the superclasses, and return it."""
    names = sorted(SUPERCLASSES)
    state = {name: value.clone() for name, value in hub.load_model("efficientnet_lite0").module.state_dict().items()}
    for name in ("classifier.weight", "classifier.bias"):
        rows = [[row for first, last in SUPERCLASSES[key] for row in range(first, last + 1)] for key in names]
        state[name] = torch.stack([state[name][row].mean(0) for row in rows])
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "start.safetensors")
    card = {"name": "start", "adapter": "timm", "architecture": hub.models.get("efficientnet_lite0").architecture,
            "weights": {"source": "file", "path": "start.safetensors"}, "classes": names}  # fmt: skip
    (folder / "start.yaml").write_text(yaml.safe_dump(card))
    return folder / "start.yaml"


def _judge(hub: Hub, card: Path, task: Path, seed: int, explained: int) -> dict[str, Any]:
    model = hub.load_model(str(card), device="cpu")
    inputs, labels = tensors(held_out(task, share=0.4, seed=seed), model)
    logits = torch.cat([model.predict(part) for part in inputs.split(4)])
    record: dict[str, Any] = {
        "hits": (logits.argmax(1) == labels).tolist(),
        "accuracy": float((logits.argmax(1) == labels).float().mean()),
        "mean squared logit": float((logits - logits.mean(1, keepdim=True)).square().mean()),
        "confidence": float(logits.softmax(1).amax(1).mean()),
        "figures": {},
    }
    # Photos of all classes: the order of the split goes by class.
    some = torch.linspace(0, len(inputs) - 1, explained).round().long().tolist()
    for row in some:
        for key, value in _explain(hub, model, inputs[row], int(labels[row])).items():
            record["figures"].setdefault(key, []).append(value)
    return record


def _explain(hub: Hub, model: Model, image: torch.Tensor, label: int) -> dict[str, float]:
    logits = model.predict(image[None])
    target = Target(index=label)  # the true class, so that all networks explain the same one
    scene = Scene(model=model, image=image, logits=logits[0], target=target.resolve(logits))
    figures = {}
    for name, (values, metrics) in JUDGED.items():
        explainer = hub.get_explainer(name, **values)
        case = Case(
            scene=scene, explanation=explainer.explain(model, image[None], target, seed=0)[0], explainer=explainer
        )
        for metric in metrics:
            measured, _ = hub.get_metric(metric, **VALUES.get(metric, {})).measure(case)
            figures[f"{name} {metric}"] = measured.value
    return figures | best_fit(model, image, label)


def best_fit(model: Model, image: torch.Tensor, label: int, masks: int = 120) -> dict[str, float]:
    """Return what no affine function of the masks can explain: what is left when estimation noise is taken away."""
    cells = make_features(GRID["features"], model, image)
    drawn = (torch.rand(masks, cells.count, generator=torch.Generator().manual_seed(1)) < 0.8).float()
    removal = make_removal(GRID["baseline"], model, image)
    logits = coalition_scores(model, image, cells, drawn, removal=removal, score=lambda found: found[:, label])
    rest = float(local_fit(drawn[None], logits.view(1, -1, 1)).residuals.square().mean())
    return {"best affine fit": rest, "best affine fit, relative": rest / float(logits.var(correction=0))}


def _show(results: dict[str, list[dict[str, Any]]]) -> None:
    """Print absolute figures, and geometric means of ratios to plain training over photos, with 95 % intervals."""
    plain = results.get("plain", [])
    for name, runs in results.items():
        hits = np.concatenate([run["hits"] for run in runs]).astype(float)
        line = f"{name:20} accuracy {hits.mean():.3f}"
        if plain and name != "plain" and len(runs) == len(plain):
            difference = hits - np.concatenate([run["hits"] for run in plain]).astype(float)
            low, high = _interval(difference)
            line += f", change {100 * difference.mean():+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
        squared = np.mean([run["mean squared logit"] for run in runs])
        confidence = np.mean([run["confidence"] for run in runs])
        seconds = np.mean([run["training"]["seconds"] for run in runs])
        print(f"{line}, mean squared logit {squared:.2f}, confidence {confidence:.3f}, {seconds:.1f} s an epoch")
    for key in next(iter(results.values()))[0]["figures"]:
        print(key)
        for name, runs in results.items():
            values = np.concatenate([run["figures"][key] for run in runs])
            line = f"  {name:20} mean {values.mean():.3g}"
            if plain and name != "plain" and len(runs) == len(plain):
                before = np.concatenate([run["figures"][key] for run in plain])
                logs = np.log(np.maximum(values, 1e-12) / np.maximum(before, 1e-12))
                low, high = _interval(logs)
                fell = sum(np.mean(a["figures"][key]) < np.mean(b["figures"][key])
                           for a, b in zip(runs, plain, strict=True))  # fmt: skip
                line += (
                    f", x {np.exp(logs.mean()):.2f} [{np.exp(low):.2f}, {np.exp(high):.2f}], fell in {fell}/{len(runs)}"
                )
            print(line)


def _interval(values: np.ndarray) -> tuple[float, float]:
    draw = np.random.default_rng(0)
    means = values[draw.integers(0, len(values), (2000, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
