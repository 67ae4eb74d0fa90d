"""Fine-tune EfficientNet-Lite0 with and without ExpO on superclasses of photos, and judge the explanations.

Run it on demand: `OMP_NUM_THREADS=1 python tests/benchmarks/bench_expo_photos.py --photos FOLDER -o runs/expo`; what
was interrupted goes on where it stopped. Every network starts from the ImageNet weights, with the mean of the
classifier's rows of each superclass. Training is by `xaihub.services.train`, and what is judged is loaded from the card
that it leaves; the last epoch is kept.

1. Each penalty's share c is chosen on a part of the training photos of the first splits: the largest that loses at most
   half a point of accuracy there.
2. With it the networks are trained on each split's training photos, and judged on the photos held out.
3. Photos held out in the first splits are explained, by LIME and KernelSHAP in bfloat16 and by saliency.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from superclasses import SUPERCLASSES, held_out, photos_or_skip, tensors, write_csv

from xaihub import Case, Model, Runtime, Scene, Target
from xaihub.hub import Hub
from xaihub.masking import coalition_scores, make_features, make_removal
from xaihub.services.train import train
from xaihub.training.config import checked
from xaihub.training.data import Split
from xaihub.training.memory import keep_freed_memory
from xaihub_expo.penalties import local_fit

PLAIN = "plain"
FIDELITY = {"every": 2, "samples": 34, "penalty_batch": 2}
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    PLAIN: ("cross_entropy", {}),
    "stability, pixels": ("expo-stability", {}),
    "stability, patches": ("expo-stability", {"neighbourhood": "patches"}),
    "1d": ("expo-1d", {}),
    "1d, relative": ("expo-1d", {"relative": True}),
    "fidelity": ("expo-fidelity", FIDELITY),
    "fidelity, relative": ("expo-fidelity", {**FIDELITY, "relative": True}),
}
GRID = {"features": "grid:5", "baseline": "mean"}
LOCAL = ("neighbourhood_fidelity", "neighbourhood_fidelity_relative", "surrogate_stability",
         "surrogate_stability_relative")  # fmt: skip
JUDGED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "lime": ({**GRID, "output": "probability"}, LOCAL),
    "kernel_shap": ({**GRID, "output": "logit"}, LOCAL),
    "saliency": ({"absolute": False}, ("saliency_stability", "saliency_stability_relative")),
}
VALUES = {"neighbourhood_fidelity": {"masks": 64}, "neighbourhood_fidelity_relative": {"masks": 64},
          "surrogate_stability": {"draws": 1}, "surrogate_stability_relative": {"draws": 1}}  # fmt: skip
LOST = 0.005  # of accuracy, at most


def main() -> None:
    """Choose c, train, judge, and print tables with bootstrap intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="a folder with labels.csv in it or beside it")
    parser.add_argument("-o", "--output", default="expo-photos", help="where runs and results are kept")
    parser.add_argument(
        "--only", nargs="*", default=list(OBJECTIVES), choices=OBJECTIVES, help="some of the objectives"
    )
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.5, 2.0], help="values of c to choose from")
    parser.add_argument("--first", type=int, default=1, help="seed of the first split")
    parser.add_argument("--chosen-on", type=int, default=1, help="splits that c is chosen on")
    parser.add_argument("--explained-splits", type=int, default=3)
    parser.add_argument("--splits", type=int, default=3, help="splits in all; those beyond are for accuracies only")
    parser.add_argument("--explained", type=int, default=4, help="photos held out that are explained, of each split")
    parser.add_argument("--quick", action="store_true", help="leave out the stability of LIME and KernelSHAP")
    parser.add_argument("--samples", type=int, default=160, help="of LIME and KernelSHAP, for each explanation")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    found = photos_or_skip(options.photos)
    torch.set_num_threads(1)
    keep_freed_memory()
    bench = Bench(Path(options.output), found, options)
    names = [PLAIN, *(name for name in options.only if name != PLAIN)]
    seeds = range(options.first, options.first + options.splits)
    shares = bench.choose(names, options.shares, seeds[: options.chosen_on])
    hits: dict[str, list[dict[str, Any]]] = {}
    figures: dict[str, list[dict[str, Any]]] = {}
    for place, seed in enumerate(seeds):
        for name in names:
            hits.setdefault(name, []).append(bench.held_out(name, shares[name], seed))
            if place < options.explained_splits:
                figures.setdefault(name, []).append(bench.explained(name, shares[name], seed))
    print(f"before training: accuracy {bench.untrained(seeds):.3f} on the photos held out")
    show_accuracy(hits, shares)
    show_figures(figures)


class Bench:
    """Trained networks and what was measured of them, kept in a folder."""

    def __init__(self, folder: Path, photos: list[Any], options: argparse.Namespace) -> None:
        self._folder, self._options, self._hub = folder, options, Hub()
        folder.mkdir(parents=True, exist_ok=True)
        self._task = write_csv(photos, folder / "task.csv")
        self._start = _start(self._hub, folder)

    def choose(self, names: list[str], shares: list[float], seeds: range) -> dict[str, float]:
        """Return for each objective the largest c that loses no more accuracy than allowed; print what was tried."""
        before = [self._inner(PLAIN, 0.0, seed) for seed in seeds]
        print(f"c, chosen on a part of the training photos\n  {_said(PLAIN, 0, before)}")
        least = np.concatenate([record["hits"] for record in before]).mean() - LOST
        chosen = {PLAIN: 0.0}
        for name in names:
            if name == PLAIN:
                continue
            for c in sorted(shares, reverse=True):
                found = [self._inner(name, c, seed) for seed in seeds]
                fits = bool(np.concatenate([record["hits"] for record in found]).mean() >= least)
                chosen[name] = c
                print(f"  {_said(name, c, found)}{', chosen' if fits else ', loses too much'}", flush=True)
                if fits:
                    break
        return chosen

    def untrained(self, seeds: range) -> float:
        """Return the accuracy of the network that all start from, on the photos held out."""
        model = self._hub.load_model(str(self._start), device="cpu", size=self._options.size)
        hits = []
        for seed in seeds:
            inputs, labels = tensors(self._split(seed), model)
            hits.append(torch.cat([model.predict(part).argmax(1) for part in inputs.split(8)]) == labels)
        return float(torch.cat(hits).float().mean())

    def held_out(self, name: str, c: float, seed: int) -> dict[str, Any]:
        """Train on a split's training photos, and return what the network says of the photos held out."""
        split = self._split(seed)
        return self._kept(self._run("whole", name, c, seed, split, split.train) / "accuracy.json",
                          lambda run: self._accuracy(run, split))  # fmt: skip

    def explained(self, name: str, c: float, seed: int) -> dict[str, Any]:
        """Return the measures of explanations of photos held out, a list each."""
        split = self._split(seed)
        run = self._run("whole", name, c, seed, split, split.train)
        how = f"{self._options.explained}-{self._options.samples}{'-quick' if self._options.quick else ''}"
        return self._kept(run / f"figures-{how}.json", lambda run: self._figures(run, split))

    def _inner(self, name: str, c: float, seed: int) -> dict[str, Any]:
        """Train on a part of a split's training photos, and return what the network says of the rest of them."""
        outer = self._split(seed)
        whole = self._table(outer, outer.train, self._folder / f"whole-{seed}.csv")
        inner = held_out(whole, share=0.4, seed=seed)
        return self._kept(self._run("part", name, c, seed, inner, inner.train) / "accuracy.json",
                          lambda run: self._accuracy(run, inner))  # fmt: skip

    def _split(self, seed: int) -> Split:
        return held_out(self._task, share=0.4, seed=seed)

    def _table(self, split: Split, rows: Any, file: Path) -> Path:
        """Write some of the photos as a data set of their own: with nothing held out, training is not told of them."""
        pictures = split.pictures
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(("file", "label"))
            writer.writerows((pictures.names[row], pictures.classes[pictures.labels[row]]) for row in rows)
        return file

    def _run(self, part: str, name: str, c: float, seed: int, split: Split, rows: Any) -> Path:
        """Train, unless that was done, and return the run's folder."""
        run = self._folder / f"{part}-{name.replace(', ', '-')}-{c:g}-{seed}"
        if (run / "seconds.json").is_file():
            return run
        objective, values = OBJECTIVES[name]
        plan = checked({
            "data": str(self._table(split, rows, self._folder / f"{part}-{seed}.csv").resolve()), "val": 0.0,
            "objective": objective, "parameters": {**values, "c": c, "warmup": 0} if name != PLAIN else {},
            "model": str(self._start.resolve()), "epochs": self._options.epochs, "size": self._options.size,
            "lr": self._options.lr, "batch_size": 8, "freeze_norm": True, "keep": "last", "seed": seed,
        })  # fmt: skip
        outcome = train(self._hub, plan, run, device="cpu", resume=run.exists())
        (run / "checkpoint.safetensors").unlink(missing_ok=True)
        (run / "seconds.json").write_text(json.dumps([record["seconds"] for record in outcome.history]))
        return run

    def _kept(self, file: Path, compute: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        if not file.is_file():
            file.write_text(json.dumps(compute(file.parent)))
            print(f"  ({file.parent.name}, {file.stem})", flush=True)
        record: dict[str, Any] = json.loads(file.read_text())
        return record

    def _accuracy(self, run: Path, split: Split) -> dict[str, Any]:
        model = self._hub.load_model(str(run / "card.yaml"), device="cpu")
        inputs, labels = tensors(split, model)
        logits = torch.cat([model.predict(part) for part in inputs.split(8)])
        return {
            "hits": (logits.argmax(1) == labels).tolist(),
            "cross_entropy": float(torch.nn.functional.cross_entropy(logits, labels)),
            "mean squared logit": float((logits - logits.mean(1, keepdim=True)).square().mean()),
            "confidence": float(logits.softmax(1).amax(1).mean()),
            "seconds": float(np.mean(json.loads((run / "seconds.json").read_text()))),
        }

    def _figures(self, run: Path, split: Split) -> dict[str, list[float]]:
        card = str(run / "card.yaml")
        model = self._hub.load_model(card, device="cpu", runtime=Runtime(autocast=True))
        exact = self._hub.load_model(card, device="cpu")
        inputs, labels = tensors(split, model)
        found: dict[str, list[float]] = {}
        # Photos of all classes: the order of the split goes by class.
        for row in torch.linspace(0, len(inputs) - 1, self._options.explained).round().long().tolist():
            for explainer in JUDGED:
                asked = exact if explainer == "saliency" else model
                for key, value in self._explain(asked, explainer, inputs[row], int(labels[row])).items():
                    found.setdefault(key, []).append(value)
            for key, value in best_fit(model, inputs[row], int(labels[row])).items():
                found.setdefault(key, []).append(value)
        return found

    def _explain(self, model: Model, name: str, image: torch.Tensor, label: int) -> dict[str, float]:
        logits = model.predict(image[None])
        target = Target(index=label)  # the true class, so that all networks explain the same one
        scene = Scene(model=model, image=image, logits=logits[0], target=target.resolve(logits))
        values, metrics = JUDGED[name]
        explainer = self._hub.get_explainer(
            name, **values, **({} if name == "saliency" else {"samples": self._options.samples})
        )
        if self._options.quick:
            metrics = tuple(metric for metric in metrics if "surrogate_stability" not in metric)
        made = explainer.explain(model, image[None], target, seed=0)[0]
        case = Case(scene=scene, explanation=made, explainer=explainer)
        return {
            f"{name} {metric}": self._hub.get_metric(metric, **VALUES.get(metric, {})).measure(case)[0].value
            for metric in metrics
        }


def best_fit(model: Model, image: torch.Tensor, label: int, masks: int = 160) -> dict[str, float]:
    """Return what no affine function of the masks can explain, of a logit less the mean logit: the network's own.

    The fit is to the same masks, so the residual is divided by its degrees of freedom, as in the adjusted R squared.
    """
    cells = make_features(GRID["features"], model, image)
    drawn = (torch.rand(masks, cells.count, generator=torch.Generator().manual_seed(1)) < 0.8).float()
    removal = make_removal(GRID["baseline"], model, image)
    logits = coalition_scores(model, image, cells, drawn, removal=removal, score=lambda found: found).float()
    centred = logits[:, label] - logits.mean(1)
    squares = float(local_fit(drawn[None], centred.view(1, -1, 1)).residuals.square().sum())
    rest = squares / (masks - cells.count - 1)
    return {"best affine fit": rest, "best affine fit, relative": rest / float(centred.var())}


def _said(name: str, c: float, records: list[dict[str, Any]]) -> str:
    hits, loss = np.concatenate([record["hits"] for record in records]), np.mean([r["cross_entropy"] for r in records])
    return f"{name:20} c {c:<4g} accuracy {hits.mean():.3f} of {len(hits)} photos, cross-entropy {loss:.2f}"


def _start(hub: Hub, folder: Path) -> Path:
    """Write the card of EfficientNet-Lite0 with a classifier for the superclasses, and return it."""
    if (folder / "start.yaml").is_file():
        return folder / "start.yaml"
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


def show_accuracy(results: Mapping[str, list[dict[str, Any]]], shares: Mapping[str, float]) -> None:
    """Print accuracies on the photos held out, and their changes with 95 % intervals over photos and splits."""
    print("photos held out")
    before = [np.array(run["hits"], float) for run in results[PLAIN]]
    for name, runs in results.items():
        hits = [np.array(run["hits"], float) for run in runs]
        line = f"  {name:20} c {shares[name]:<4g} accuracy {np.concatenate(hits).mean():.3f}"
        if name != PLAIN:
            changes = [100 * (a - b) for a, b in zip(hits, before, strict=True)]
            low, high = interval(changes)
            line += f", {np.concatenate(changes).mean():+.1f} points [{low:+.1f}, {high:+.1f}]"
        squared, confidence, loss, seconds = (
            np.mean([run[key] for run in runs])
            for key in ("mean squared logit", "confidence", "cross_entropy", "seconds")
        )
        print(f"{line}, cross-entropy {loss:.2f}, mean squared logit {squared:.2f}, confidence {confidence:.2f}, "
              f"{seconds:.1f} s an epoch")  # fmt: skip


def show_figures(results: Mapping[str, list[dict[str, Any]]]) -> None:
    """Print geometric means over photos, of ratios to plain training too, with 95 % intervals."""
    for key in results[PLAIN][0]:
        print(key)
        before = [np.log(np.maximum(run[key], 1e-12)) for run in results[PLAIN]]
        for name, runs in results.items():
            logs = [np.log(np.maximum(run[key], 1e-12)) for run in runs]
            line = f"  {name:20} {np.exp(np.concatenate(logs).mean()):.3g}"
            if name != PLAIN:
                ratios = [a - b for a, b in zip(logs, before, strict=True)]
                low, high = np.exp(interval(ratios))
                fell = sum(float(ratio.mean()) < 0 for ratio in ratios)
                middle = np.exp(np.concatenate(ratios).mean())
                line += f", x {middle:.2f} [{low:.2f}, {high:.2f}], fell in {fell} of {len(runs)} splits"
            print(line)


def interval(splits: list[np.ndarray], draws: int = 4000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean: splits are drawn anew, and photos within them."""
    draw = np.random.default_rng(0)
    means = []
    for _ in range(draws):
        chosen = [splits[i] for i in draw.integers(0, len(splits), len(splits))]
        means.append(np.concatenate([part[draw.integers(0, len(part), len(part))] for part in chosen]).mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
