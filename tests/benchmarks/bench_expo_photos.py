"""Fine-tune EfficientNet-Lite0 with and without ExpO on superclasses of photos, and judge the explanations.

Run it on demand: `OMP_NUM_THREADS=1 python tests/benchmarks/bench_expo_photos.py --photos FOLDER -o runs/expo`; what
was interrupted goes on where it stopped. The photos are dealt out to five folds; each network learns from four of them
and is judged on the fifth, so that each photo is held out once. All networks of a fold start from the same weights, see
the same crops in the same order, and are explained with the same random numbers.

1. Networks are trained from the ImageNet weights, with the mean of the classifier's rows of each superclass, by
   `xaihub.services.train`; what is judged is loaded from the card that it leaves.
2. Photos held out are explained, by LIME and KernelSHAP in bfloat16 and by saliency.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from superclasses import held_out, photos_or_skip, tensors, warm_card, write_csv, write_fold

from xaihub import Case, Model, Runtime, Scene, Target
from xaihub.hub import Hub
from xaihub.masking import coalition_scores, make_features, make_removal
from xaihub.services.train import train
from xaihub.training.config import checked
from xaihub.training.data import Split
from xaihub.training.memory import keep_freed_memory
from xaihub_expo.penalties import local_fit

FOLDS = 5
PLAIN = "plain"
# Masks of all sizes, since that is what LIME and KernelSHAP ask about; of one photo of each batch.
FIDELITY = {"relative": True, "keep": None, "samples": 34, "warmup": 0}
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    PLAIN: ("cross_entropy", {}),
    "fidelity, c = 0.2": ("expo-fidelity", {**FIDELITY, "c": 0.2}),
    "fidelity, c = 1": ("expo-fidelity", {**FIDELITY, "c": 1.0}),
    "fidelity, c = 4": ("expo-fidelity", {**FIDELITY, "c": 4.0}),
}
GRID = {"features": "grid:5", "baseline": "mean"}
LOCAL = ("neighbourhood_fidelity", "neighbourhood_fidelity_relative")
JUDGED: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "LIME, probability": ("lime", {**GRID, "output": "probability"}, LOCAL),
    "LIME, logit": ("lime", {**GRID, "output": "logit"}, LOCAL),
    "KernelSHAP, logit": ("kernel_shap", {**GRID, "output": "logit"}, LOCAL),
    "saliency": ("saliency", {"absolute": False}, ("saliency_stability", "saliency_stability_relative")),
}


def main() -> None:
    """Train, judge, and print tables with bootstrap intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="a folder with labels.csv in it or beside it")
    parser.add_argument("-o", "--output", default="expo-photos", help="where runs and results are kept")
    parser.add_argument(
        "--only", nargs="*", default=list(OBJECTIVES), choices=OBJECTIVES, help="some of the objectives"
    )
    parser.add_argument("--dealings", type=int, nargs="+", default=[1], help="seeds that deal the photos to the folds")
    parser.add_argument("--explained", type=int, help="photos of a fold that are explained; by default all")
    parser.add_argument("--samples", type=int, default=300, help="of LIME and KernelSHAP, for each explanation")
    parser.add_argument("--keep", type=float, default=0.8, help="share of cells shown, where fidelity is asked")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    found = photos_or_skip(options.photos)
    torch.set_num_threads(1)
    keep_freed_memory()
    bench = Bench(Path(options.output), found, options)
    names = [PLAIN, *(name for name in options.only if name != PLAIN)]
    places = [(seed, fold) for seed in options.dealings for fold in range(FOLDS)]
    hits = {name: [bench.held_out(name, *place) for place in places] for name in names}
    print("before training: accuracy {:.3f}, cross-entropy {:.2f}".format(*bench.untrained()))
    show_accuracy(hits)
    figures = {name: [bench.explained(name, *place) for place in places[:FOLDS]] for name in names}
    show_figures(figures)


class Bench:
    """Trained networks and what was measured of them, kept in a folder."""

    def __init__(self, folder: Path, photos: list[Any], options: argparse.Namespace) -> None:
        self._folder, self._photos, self._options, self._hub = folder, photos, options, Hub()
        start = folder / "start"
        start.mkdir(parents=True, exist_ok=True)
        self._start = start / "card.yaml" if (start / "card.yaml").is_file() else warm_card(start)

    def untrained(self) -> tuple[float, float]:
        """Return accuracy and cross-entropy of the network that all start from, on all photos."""
        model = self._hub.load_model(str(self._start), device="cpu", size=self._options.size)
        inputs, labels = tensors(
            held_out(write_csv(self._photos, self._folder / "task.csv"), share=0.0), model, "train"
        )
        logits = torch.cat([model.predict(part) for part in inputs.split(8)])
        cost = torch.nn.functional.cross_entropy(logits, labels)
        return float((logits.argmax(1) == labels).float().mean()), float(cost)

    def held_out(self, name: str, dealing: int, fold: int) -> dict[str, Any]:
        """Train on four folds, and return what the network says of the photos of the fifth."""
        return self._kept(name, dealing, fold, "accuracy", self._accuracy)

    def explained(self, name: str, dealing: int, fold: int) -> dict[str, Any]:
        """Return the measures of explanations of photos held out, a list each."""
        what = f"figures-{self._options.samples}-{self._options.explained or 'all'}-{self._options.keep:g}"
        return self._kept(name, dealing, fold, what, self._figures)

    def _kept(
        self, name: str, dealing: int, fold: int, what: str, measure: Callable[[Path, Split], dict[str, Any]]
    ) -> dict[str, Any]:
        run = self._folder / f"{name.replace(', ', '-').replace(' = ', '')}-{dealing}-{fold}"
        file = run / f"{what}.json"
        if not file.is_file():
            table = write_fold(
                self._photos, self._folder / f"{dealing}-{fold}.csv", fold=fold, folds=FOLDS, seed=dealing
            )
            split = held_out(table)
            self._train(run, name, split, seed=fold)
            file.write_text(json.dumps(measure(run, split)))
            print(f"  ({run.name}, {what})", flush=True)
        record: dict[str, Any] = json.loads(file.read_text())
        return record

    def _train(self, run: Path, name: str, split: Split, seed: int) -> None:
        """Train, unless that was done; training is not told of the photos held out."""
        if (run / "seconds.json").is_file():
            return
        objective, parameters = OBJECTIVES[name]
        learned = write_csv([self._photos[row] for row in split.train], self._folder / "learned.csv")
        plan = checked({
            "data": str(learned.resolve()), "val": 0.0, "objective": objective, "parameters": parameters,
            "model": str(self._start.resolve()), "size": self._options.size, "epochs": self._options.epochs,
            "lr": self._options.lr, "optimizer": "sgd", "head_lr_scale": 1.0, "batch_size": 8, "freeze_norm": True,
            "keep": "last", "seed": seed,
        })  # fmt: skip
        outcome = train(self._hub, plan, run, device="cpu", resume=run.exists())
        (run / "checkpoint.safetensors").unlink(missing_ok=True)
        (run / "seconds.json").write_text(json.dumps([record["seconds"] for record in outcome.history]))

    def _accuracy(self, run: Path, split: Split) -> dict[str, Any]:
        model = self._hub.load_model(str(run / "card.yaml"), device="cpu")
        inputs, labels = tensors(split, model)
        logits = torch.cat([model.predict(part) for part in inputs.split(8)])
        return {
            "hits": (logits.argmax(1) == labels).tolist(),
            "cross_entropy": torch.nn.functional.cross_entropy(logits, labels, reduction="none").tolist(),
            "mean squared logit": float((logits - logits.mean(1, keepdim=True)).square().mean()),
            "confidence": float(logits.softmax(1).amax(1).mean()),
            "seconds": float(np.mean(json.loads((run / "seconds.json").read_text()))),
        }

    def _figures(self, run: Path, split: Split) -> dict[str, list[float]]:
        card = str(run / "card.yaml")
        fast = self._hub.load_model(card, device="cpu", runtime=Runtime(autocast=True))
        exact = self._hub.load_model(card, device="cpu")
        inputs, labels = tensors(split, exact)
        found: dict[str, list[float]] = {}
        # Photos of all classes, where not all are explained: the order of the split goes by class.
        rows = (
            torch.linspace(0, len(inputs) - 1, min(self._options.explained or len(inputs), len(inputs))).round().long()
        )
        for row in rows.tolist():
            image, label = inputs[row], int(labels[row])
            for title in JUDGED:
                asked = exact if title == "saliency" else fast
                for key, value in self._explain(asked, title, image, label).items():
                    found.setdefault(key, []).append(value)
            for key, value in best_fit(fast, image, label).items():
                found.setdefault(key, []).append(value)
        return found

    def _explain(self, model: Model, title: str, image: torch.Tensor, label: int) -> dict[str, float]:
        logits = model.predict(image[None])
        target = Target(index=label)  # the true class, so that all networks explain the same one
        scene = Scene(model=model, image=image, logits=logits[0], target=target.resolve(logits))
        name, values, metrics = JUDGED[title]
        explainer = self._hub.get_explainer(
            name, **values, **({} if name == "saliency" else {"samples": self._options.samples})
        )
        made = explainer.explain(model, image[None], target, seed=0)[0]
        case = Case(scene=scene, explanation=made, explainer=explainer)
        asked = {"keep": self._options.keep} if metrics is LOCAL else {}
        return {
            f"{title}: {metric}": self._hub.get_metric(metric, **asked).measure(case)[0].value for metric in metrics
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


def show_accuracy(results: Mapping[str, list[dict[str, Any]]]) -> None:
    """Print accuracies on the photos held out, and changes with 95 % intervals over folds and photos."""
    print("photos held out")
    for name, runs in results.items():
        line = f"  {name:20}"
        for key, factor in (("hits", 100), ("cross_entropy", 1)):
            now, before = ([np.array(run[key], float) for run in found] for found in (runs, results[PLAIN]))
            line += f" {key} {np.concatenate(now).mean():.3f}"
            if name != PLAIN:
                changes = [factor * (a - b) for a, b in zip(now, before, strict=True)]
                low, high = interval(changes)
                line += f", {np.concatenate(changes).mean():+.2f} [{low:+.2f}, {high:+.2f}];"
        squared, confidence, seconds = (
            np.mean([run[key] for run in runs]) for key in ("mean squared logit", "confidence", "seconds")
        )
        print(f"{line} mean squared logit {squared:.2f}, confidence {confidence:.2f}, {seconds:.1f} s an epoch")


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
                line += f", x {middle:.2f} [{low:.2f}, {high:.2f}], fell in {fell} of {len(runs)} folds"
            print(line)


def interval(folds: list[np.ndarray], draws: int = 4000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean: folds are drawn anew, and photos within them."""
    draw = np.random.default_rng(0)
    means = []
    for _ in range(draws):
        chosen = [folds[i] for i in draw.integers(0, len(folds), len(folds))]
        means.append(np.concatenate([part[draw.integers(0, len(part), len(part))] for part in chosen]).mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
