"""Fine-tune EfficientNet-Lite0 with and without ExpO on superclasses of photos, and judge the explanations.

Run it on demand: `OMP_NUM_THREADS=1 python tests/benchmarks/bench_expo_photos.py --photos FOLDER --learn MORE -o
runs/expo`; what was interrupted goes on where it stopped. All photos are dealt out to five folds; each network learns
from four of them and is judged on the fifth, so each photo is judged by networks that have not seen it. All networks of
a fold start from the same weights, see the same crops in the same order, and are explained with the same random
numbers.

1. Networks are trained from the ImageNet weights, with the mean of the classifier's rows of each superclass, by
   `xaihub.training.run`; what is judged is loaded from the card that it leaves.
2. Photos held out are classified and explained by saliency, and those of FOLDER by LIME and KernelSHAP in bfloat16.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import superclasses as task
import torch

from xaihub import Case, Model, Runtime, Scene, Target
from xaihub.hub import Hub
from xaihub.masking import coalition_scores, make_features, make_removal
from xaihub.training.config import checked
from xaihub.training.data.images import Split
from xaihub.training.memory import keep_freed_memory
from xaihub.training.run import train
from xaihub_expo.neighbourhoods import mask_opacities
from xaihub_expo.penalties import local_fit

Figures = dict[str, Any]  # of a run: lists over photos, or numbers
PLAIN = "plain"
# Probabilities of a cell to be shown where fidelity is asked: the metric's default, that of LIME's masks, and one drawn
# for each mask, by which all numbers of cells are equally likely.
KEEP = (0.8, 0.5, None)
# Masks of all sizes, since that is what LIME and KernelSHAP ask about; of one photo of each batch.
FIDELITY = {"keep": None, "samples": 34, "warmup": 0}
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    PLAIN: ("cross_entropy", {}),
    "fidelity, c = 1": ("expo-fidelity", {**FIDELITY, "c": 1.0}),
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
    parser.add_argument("--learn", help="a folder of more photos: LIME and KernelSHAP explain those of --photos only")
    parser.add_argument("-o", "--output", default="expo-photos", help="where runs and results are kept")
    parser.add_argument(
        "--only", nargs="*", default=list(OBJECTIVES), choices=OBJECTIVES, help="some of the objectives"
    )
    parser.add_argument("--seed", type=int, default=1, help="of dealing to folds and of training")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(task.FOLDS)), help="which are held out")
    parser.add_argument("--samples", type=int, default=300, help="of LIME and KernelSHAP, for each explanation")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    found = task.photos_or_skip(options.photos)
    torch.set_num_threads(1)
    keep_freed_memory()
    pool = [*found, *(task.others(options.learn, found) if options.learn else [])]
    bench = Bench(Path(options.output), options, pool, {photo.file for photo in found})
    names = [PLAIN, *(name for name in options.only if name != PLAIN)]
    print("before training: accuracy {:.3f}, cross-entropy {:.2f}".format(*bench.untrained()))
    for measure, show in ((bench.accuracy, show_accuracy), (bench.saliency, show_figures), (bench.local, show_figures)):
        show({name: [measure(name, fold) for fold in options.folds] for name in names})


class Bench:
    """Trained networks and what was measured of them, kept in a folder."""

    def __init__(self, folder: Path, options: argparse.Namespace, pool: list[task.Photo], found: set[Path]) -> None:
        self._folder, self._options, self._pool, self._found, self._hub = folder, options, pool, found, Hub()
        start = folder / "start"
        start.mkdir(parents=True, exist_ok=True)
        self._start = start / "card.yaml" if (start / "card.yaml").is_file() else task.warm_card(start)

    def untrained(self) -> tuple[float, float]:
        """Return accuracy and cross-entropy, on all photos, of the network that all start from."""
        model = self._hub.load_model(str(self._start), device="cpu", size=self._options.size)
        table = task.write_csv(self._folder / "all.csv", self._pool)
        inputs, labels = task.tensors(task.held_out(table, share=0.0), model, "train")
        logits = torch.cat([model.predict(part) for part in inputs.split(8)])
        cost = torch.nn.functional.cross_entropy(logits, labels)
        return float((logits.argmax(1) == labels).float().mean()), float(cost)

    def accuracy(self, name: str, fold: int) -> Figures:
        """Train, and return what the network says of the photos held out."""
        return self._kept(name, fold, "accuracy", self._accuracy)

    def saliency(self, name: str, fold: int) -> Figures:
        """Return the stability of the saliency of photos held out, a list each."""
        return self._kept(name, fold, "saliency", self._saliency)

    def local(self, name: str, fold: int) -> Figures:
        """Return the fidelity of local linear models of photos held out, a list each."""
        return self._kept(name, fold, f"local-{self._options.samples}", self._local)

    def _kept(self, name: str, fold: int, what: str, measure: Callable[[Path, Split], Figures]) -> Figures:
        run = self._folder / f"{name.replace(', ', '-').replace(' = ', '')}-{self._options.seed}-{fold}"
        file = run / f"{what}.json"
        if not file.is_file():
            learned, held = task.deal(self._pool, fold=fold, seed=self._options.seed)
            self._train(run, name, fold, task.write_csv(self._folder / f"learned-{fold}.csv", learned))
            table = task.write_csv(self._folder / f"{self._options.seed}-{fold}.csv", learned, held=held)
            text = json.dumps(measure(run, task.held_out(table)))
            file.with_suffix(".part").write_text(text)
            file.with_suffix(".part").replace(file)
            print(f"  ({run.name}, {what})", flush=True)
        record: Figures = json.loads(file.read_text())
        return record

    def _train(self, run: Path, name: str, fold: int, learned: Path) -> None:
        """Train, unless that was done; training is not told of the photos held out."""
        if (run / "seconds.json").is_file():
            return
        objective, parameters = OBJECTIVES[name]
        plan = checked({
            "data": str(learned.resolve()), "val": 0.0, "objective": objective, "parameters": parameters,
            "model": str(self._start.resolve()), "size": self._options.size, "epochs": self._options.epochs,
            "lr": self._options.lr, "head_lr_scale": 1.0, "batch_size": 8, "freeze_norm": True,
            "keep": "last", "ema": 0.98, "seed": self._options.seed * task.FOLDS + fold,
        })  # fmt: skip
        outcome = train(self._hub, plan, run, device="cpu", resume=run.exists())
        (run / "checkpoint.safetensors").unlink(missing_ok=True)
        (run / "seconds.json").write_text(json.dumps([record["seconds"] for record in outcome.history]))

    def _accuracy(self, run: Path, split: Split) -> Figures:
        model = self._hub.load_model(str(run / "card.yaml"), device="cpu")
        inputs, labels = task.tensors(split, model)
        logits = torch.cat([model.predict(part) for part in inputs.split(8)])
        return {
            "hits": (logits.argmax(1) == labels).tolist(),
            "found": [Path(split.images.names[index]) in self._found for index in split.val],
            "cross_entropy": torch.nn.functional.cross_entropy(logits, labels, reduction="none").tolist(),
            "mean squared logit": float((logits - logits.mean(1, keepdim=True)).square().mean()),
            "confidence": float(logits.softmax(1).amax(1).mean()),
            "seconds": float(np.mean(json.loads((run / "seconds.json").read_text()))),
        }

    def _saliency(self, run: Path, split: Split) -> Figures:
        model = self._hub.load_model(str(run / "card.yaml"), device="cpu")
        found: Figures = {}
        for image, label in zip(*task.tensors(split, model), strict=True):
            case = self._case(scene_of(model, image, int(label)), "saliency", absolute=False)
            for metric in ("saliency_stability", "saliency_stability_relative"):
                found.setdefault(metric, []).append(self._hub.get_metric(metric).measure(case)[0].value)
        return found

    def _local(self, run: Path, split: Split) -> Figures:
        model = self._hub.load_model(str(run / "card.yaml"), device="cpu", runtime=Runtime(precision="bf16"))
        wanted = [index for index in split.val if Path(split.images.names[index]) in self._found]
        found: Figures = {}
        for image, label in zip(*task.tensors(replace(split, val=wanted), model), strict=True):
            scene, figures = scene_of(model, image, int(label)), dict[str, float]()
            for title, (name, values) in LOCAL.items():
                case = self._case(scene, name, samples=self._options.samples, **values)
                for keep in KEEP:
                    for metric in ("neighbourhood_fidelity", "neighbourhood_fidelity_relative"):
                        value = self._hub.get_metric(metric, keep=keep).measure(case)[0].value
                        figures[f"{title}: {metric}, keep={keep}"] = value
            for keep in KEEP:
                figures |= best_fit(model, image, int(label), keep)
            for key, value in figures.items():
                found.setdefault(key, []).append(value)
        return found

    def _case(self, scene: Scene, name: str, **values: Any) -> Case:
        explainer = self._hub.get_explainer(name, **values)
        made = explainer.explain(scene.model, scene.image[None], Target(index=int(scene.target.index)), seed=0)[0]
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


def show_accuracy(results: Mapping[str, list[Figures]]) -> None:
    """Print accuracies on the photos held out, and changes with 95 % intervals."""
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
        print(f"  {'':20} hits by runs {[sum(run['hits']) for run in runs]}")
        for part in (True, False):
            pairs = [
                (before, now)
                for run, plain in zip(runs, results[PLAIN], strict=True)
                for before, now, found in zip(plain["hits"], run["hits"], run["found"], strict=True)
                if found is part
            ]
            won, lost = pairs.count((False, True)), pairs.count((True, False))
            print(f"  {'':20} of {len(pairs)} photos {'of' if part else 'beside'} FOLDER {won} won, {lost} lost")


def show_figures(results: Mapping[str, list[Figures]]) -> None:
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
                line += f", x {middle:.2f} [{low:.2f}, {high:.2f}], fell in {fell} of {len(runs)} runs"
            print(line)


def interval(runs: list[np.ndarray], draws: int = 4000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean: runs are drawn anew, and photos within each."""
    draw = np.random.default_rng(0)
    means = []
    for _ in range(draws):
        chosen = [runs[i] for i in draw.integers(0, len(runs), len(runs))]
        means.append(np.concatenate([part[draw.integers(0, len(part), len(part))] for part in chosen]).mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
