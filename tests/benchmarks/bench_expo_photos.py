"""Fine-tune EfficientNet-Lite0 with and without ExpO on superclasses of photos, and judge the explanations.

Run it on demand: `OMP_NUM_THREADS=1 python tests/benchmarks/bench_expo_photos.py --photos FOLDER --learn MORE -o
runs/expo`; what was interrupted goes on where it stopped. Networks learn from the photos of MORE that are not in
FOLDER, once for each seed, and are judged on all of FOLDER. Without --learn the photos of FOLDER are dealt out to five
folds, by each seed; each network learns from four of them and is judged on the fifth. All networks of a dealing start
from the same weights, see the same crops in the same order, and are explained with the same random numbers.

1. Networks are trained from the ImageNet weights, with the mean of the classifier's rows of each superclass, by
   `xaihub.services.train`; what is judged is loaded from the card that it leaves.
2. Photos held out are explained, by LIME and KernelSHAP in bfloat16 and by saliency.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import superclasses as task
import torch

from xaihub import Case, Model, Runtime, Scene, Target
from xaihub.hub import Hub
from xaihub.masking import coalition_scores, make_features, make_removal
from xaihub.services.train import train
from xaihub.training.config import checked
from xaihub.training.data import Split
from xaihub.training.memory import keep_freed_memory
from xaihub_expo.penalties import local_fit
from xaihub_expo.pictures import mask_opacities

PLAIN = "plain"
# Probabilities of a cell to be shown where fidelity is asked: the metric's default, that of LIME's masks, and one drawn
# for each mask, by which all numbers of cells are equally likely.
KEEP = (0.8, 0.5, None)
# Masks of all sizes, since that is what LIME and KernelSHAP ask about; of one photo of each batch.
FIDELITY = {"keep": None, "samples": 34, "warmup": 0}
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    PLAIN: ("cross_entropy", {}),
    "fidelity, c = 1": ("expo-fidelity", {**FIDELITY, "c": 1.0}),
    "fidelity, c = 0.3": ("expo-fidelity", {**FIDELITY, "c": 0.3}),
}
GRID = {"features": "grid:5", "baseline": "mean"}
LOCAL: dict[str, tuple[str, dict[str, Any]]] = {
    "LIME, probability": ("lime", {**GRID, "output": "probability"}),
    "LIME, logit": ("lime", {**GRID, "output": "logit"}),
    "KernelSHAP, logit": ("kernel_shap", {**GRID, "output": "logit"}),
}


def main() -> None:
    """Train, judge, and print tables with bootstrap intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="a folder with labels.csv in it or beside it")
    parser.add_argument("--learn", help="a folder of other photos to learn from; all of --photos are then held out")
    parser.add_argument("-o", "--output", default="expo-photos", help="where runs and results are kept")
    parser.add_argument(
        "--only", nargs="*", default=list(OBJECTIVES), choices=OBJECTIVES, help="some of the objectives"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of training, and of dealing to folds")
    parser.add_argument("--explained", type=int, help="photos held out that are explained; by default all")
    parser.add_argument("--samples", type=int, default=300, help="of LIME and KernelSHAP, for each explanation")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    found = task.photos_or_skip(options.photos)
    torch.set_num_threads(1)
    keep_freed_memory()
    bench = Bench(Path(options.output), options)
    names = [PLAIN, *(name for name in options.only if name != PLAIN)]
    dealings = deal_out(found, options)
    together = bool(options.learn)
    hits = {name: [bench.accuracy(name, dealing) for dealing in dealings] for name in names}
    print("before training: accuracy {:.3f}, cross-entropy {:.2f}".format(*bench.untrained(found)))
    show_accuracy(hits, together=together)
    figures = {name: [bench.explained(name, dealing) for dealing in dealings] for name in names}
    show_figures(figures, together=together)


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """What is learned from and what is held out, and the seed of training."""

    name: str
    seed: int
    learned: list[task.Photo]
    held: list[task.Photo]


def deal_out(found: list[task.Photo], options: argparse.Namespace) -> list[Dealing]:
    """Hold out all photos for each seed, if others are there to learn from, and otherwise one of five folds."""
    if options.learn:
        more = task.others(options.learn, found)
        return [Dealing(name=str(seed), seed=seed, learned=more, held=found) for seed in options.seeds]
    dealings = []
    for seed in options.seeds:
        for fold in range(task.FOLDS):
            learned, held = task.deal(found, fold=fold, seed=seed)
            dealings.append(Dealing(name=f"{seed}-{fold}", seed=seed * task.FOLDS + fold, learned=learned, held=held))
    return dealings


class Bench:
    """Trained networks and what was measured of them, kept in a folder."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder, self._options, self._hub = folder, options, Hub()
        start = folder / "start"
        start.mkdir(parents=True, exist_ok=True)
        self._start = start / "card.yaml" if (start / "card.yaml").is_file() else task.warm_card(start)

    def untrained(self, photos: list[task.Photo]) -> tuple[float, float]:
        """Return accuracy and cross-entropy of the network that all start from."""
        model = self._hub.load_model(str(self._start), device="cpu", size=self._options.size)
        table = task.write_csv(self._folder / "judged.csv", photos)
        inputs, labels = task.tensors(task.held_out(table, share=0.0), model, "train")
        logits = torch.cat([model.predict(part) for part in inputs.split(8)])
        cost = torch.nn.functional.cross_entropy(logits, labels)
        return float((logits.argmax(1) == labels).float().mean()), float(cost)

    def accuracy(self, name: str, dealing: Dealing) -> dict[str, Any]:
        """Train, and return what the network says of the photos held out."""
        return self._kept(name, dealing, "accuracy", self._accuracy)

    def explained(self, name: str, dealing: Dealing) -> dict[str, Any]:
        """Return the measures of explanations of photos held out, a list each."""
        what = f"figures-{self._options.samples}-{self._options.explained or 'all'}"
        return self._kept(name, dealing, what, self._figures)

    def _kept(
        self, name: str, dealing: Dealing, what: str, measure: Callable[[Path, Split], dict[str, Any]]
    ) -> dict[str, Any]:
        run = self._folder / f"{name.replace(', ', '-').replace(' = ', '')}-{dealing.name}"
        file = run / f"{what}.json"
        if not file.is_file():
            self._train(run, name, dealing)
            table = task.write_csv(self._folder / f"{dealing.name}.csv", dealing.learned, held=dealing.held)
            file.write_text(json.dumps(measure(run, task.held_out(table))))
            print(f"  ({run.name}, {what})", flush=True)
        record: dict[str, Any] = json.loads(file.read_text())
        return record

    def _train(self, run: Path, name: str, dealing: Dealing) -> None:
        """Train, unless that was done; training is not told of the photos held out."""
        if (run / "seconds.json").is_file():
            return
        objective, parameters = OBJECTIVES[name]
        learned = task.write_csv(self._folder / "learned.csv", dealing.learned)
        plan = checked({
            "data": str(learned.resolve()), "val": 0.0, "objective": objective, "parameters": parameters,
            "model": str(self._start.resolve()), "size": self._options.size, "epochs": self._options.epochs,
            "lr": self._options.lr, "head_lr_scale": 1.0, "batch_size": 8, "freeze_norm": True,
            "keep": "last", "ema": 0.98, "seed": dealing.seed,
        })  # fmt: skip
        outcome = train(self._hub, plan, run, device="cpu", resume=run.exists())
        (run / "checkpoint.safetensors").unlink(missing_ok=True)
        (run / "seconds.json").write_text(json.dumps([record["seconds"] for record in outcome.history]))

    def _accuracy(self, run: Path, split: Split) -> dict[str, Any]:
        model = self._hub.load_model(str(run / "card.yaml"), device="cpu")
        inputs, labels = task.tensors(split, model)
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
        inputs, labels = task.tensors(split, exact)
        found: dict[str, list[float]] = {}
        # Photos of all classes, where not all are explained: the order of the split goes by class.
        count = min(self._options.explained or len(inputs), len(inputs))
        for row in torch.linspace(0, len(inputs) - 1, count).round().long().tolist():
            image, label = inputs[row], int(labels[row])
            figures = self._local(fast, image, label) | self._saliency(exact, image, label)
            for keep in KEEP:
                figures |= best_fit(fast, image, label, keep)
            for key, value in figures.items():
                found.setdefault(key, []).append(value)
        return found

    def _local(self, model: Model, image: torch.Tensor, label: int) -> dict[str, float]:
        scene, figures = scene_of(model, image, label), {}
        for title, (name, values) in LOCAL.items():
            case = self._case(scene, name, label, samples=self._options.samples, **values)
            for keep in KEEP:
                for metric in ("neighbourhood_fidelity", "neighbourhood_fidelity_relative"):
                    value = self._hub.get_metric(metric, keep=keep).measure(case)[0].value
                    figures[f"{title}: {metric}, keep={keep}"] = value
        return figures

    def _saliency(self, model: Model, image: torch.Tensor, label: int) -> dict[str, float]:
        case = self._case(scene_of(model, image, label), "saliency", label, absolute=False)
        metrics = ("saliency_stability", "saliency_stability_relative")
        return {metric: self._hub.get_metric(metric).measure(case)[0].value for metric in metrics}

    def _case(self, scene: Scene, name: str, label: int, **values: Any) -> Case:
        explainer = self._hub.get_explainer(name, **values)
        made = explainer.explain(scene.model, scene.image[None], Target(index=label), seed=0)[0]
        return Case(scene=scene, explanation=made, explainer=explainer)


def scene_of(model: Model, image: torch.Tensor, label: int) -> Scene:
    """Return a photo that is explained for its true class, so that all networks explain the same one."""
    logits = model.predict(image[None])
    return Scene(model=model, image=image, logits=logits[0], target=Target(index=label).resolve(logits))


def best_fit(model: Model, image: torch.Tensor, label: int, keep: float | None, masks: int = 120) -> dict[str, float]:
    """Return what no affine function of the masks can explain, of a logit less the mean logit: the network's own.

    It is given as such, relative to the variance, and relative to what the number of cells shown leaves of it: a
    network that only counts what is shown would be affine too. The fits are to the same masks, so that what they leave
    is divided by its degrees of freedom, as in the adjusted R squared.
    """
    cells = make_features(GRID["features"], model, image)
    drawn = mask_opacities(1, masks, cells.count, keep, torch.Generator().manual_seed(1))[0]
    removal = make_removal(GRID["baseline"], model, image)
    logits = coalition_scores(model, image, cells, drawn, removal=removal, score=lambda found: found).float()
    centred = (logits[:, label] - logits.mean(1)).view(1, -1, 1)

    def left(features: torch.Tensor) -> float:
        return float(local_fit(features[None], centred).residuals.square().sum()) / (masks - features.shape[1] - 1)

    rest, uncounted = left(drawn), left(drawn.sum(1, keepdim=True))
    title = f"best affine fit, keep={keep}"
    return {
        title: rest,
        f"{title}, relative": rest / float(centred.var()),
        f"{title}, relative to what the number shown leaves": rest / uncounted,
    }


def show_accuracy(results: Mapping[str, list[dict[str, Any]]], *, together: bool) -> None:
    """Print accuracies on the photos held out, and changes with 95 % intervals."""
    print("photos held out")
    for name, runs in results.items():
        line = f"  {name:20}"
        for key, factor in (("hits", 100), ("cross_entropy", 1)):
            now, before = ([np.array(run[key], float) for run in found] for found in (runs, results[PLAIN]))
            line += f" {key} {np.concatenate(now).mean():.3f}"
            if name != PLAIN:
                changes = [factor * (a - b) for a, b in zip(now, before, strict=True)]
                low, high = interval(changes, together=together)
                line += f", {np.concatenate(changes).mean():+.2f} [{low:+.2f}, {high:+.2f}];"
        squared, confidence, seconds = (
            np.mean([run[key] for run in runs]) for key in ("mean squared logit", "confidence", "seconds")
        )
        print(f"{line} mean squared logit {squared:.2f}, confidence {confidence:.2f}, {seconds:.1f} s an epoch")


def show_figures(results: Mapping[str, list[dict[str, Any]]], *, together: bool) -> None:
    """Print geometric means over photos, of ratios to plain training too, with 95 % intervals."""
    for key in results[PLAIN][0]:
        print(key)
        before = [np.log(np.maximum(run[key], 1e-12)) for run in results[PLAIN]]
        for name, runs in results.items():
            logs = [np.log(np.maximum(run[key], 1e-12)) for run in runs]
            line = f"  {name:20} {np.exp(np.concatenate(logs).mean()):.3g}"
            if name != PLAIN:
                ratios = [a - b for a, b in zip(logs, before, strict=True)]
                low, high = np.exp(interval(ratios, together=together))
                fell = sum(float(ratio.mean()) < 0 for ratio in ratios)
                middle = np.exp(np.concatenate(ratios).mean())
                line += f", x {middle:.2f} [{low:.2f}, {high:.2f}], fell in {fell} of {len(runs)} runs"
            print(line)


def interval(runs: list[np.ndarray], *, together: bool, draws: int = 4000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean: runs are drawn anew, and photos.

    Photos are drawn within each run, or `together`, where all runs hold out the same ones.
    """
    draw = np.random.default_rng(0)
    means = []
    for _ in range(draws):
        chosen = [runs[i] for i in draw.integers(0, len(runs), len(runs))]
        if together:
            chosen = [np.stack(chosen, 1)]
        means.append(np.concatenate([part[draw.integers(0, len(part), len(part))] for part in chosen]).mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
