"""Measure the gate on the channels of a real backbone: accuracy, deletion, stability, cost.

Run it on demand: `python tests/benchmarks/bench_scores_photos.py --photos FOLDER` (labels.csv as in superclasses.py).
EfficientNet-Lite0 is frozen and its pooled channels are computed once. Probes start from the ImageNet classifier,
joined by superclass, or from random weights (--start random). Accuracy is over cross-validation, since the photos are
few; one photo is worth 100 / (photos * seeds) points. A deleted channel becomes its mean over the training photos.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import superclasses
import torch
from torch import Tensor, nn

import xaihub
from xaihub.ranking import agreement, seed_interval, stability
from xaihub_scores_activation.gate import ScoresActivation, param_groups
from xaihub_scores_activation.placement import GatedHead
from xaihub_scores_activation.reproduction.experiments import reading_time
from xaihub_scores_activation.shap_importance import shap_importance

BATCH, FOLDS = 16, 5


@dataclass(frozen=True)
class Task:
    """Channels of every photo and of its mirror image, superclasses, and the classifier to start from."""

    channels: Tensor  # (N, 2, d)
    labels: Tensor
    head: nn.Linear | None


def main() -> None:
    """Print every figure, with the target where there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="a folder of photos with labels.csv in it or beside it")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--start", choices=("warm", "random"), default="warm")
    parser.add_argument("--kernel-rows", type=int, default=1, help="rows that KernelSHAP explains; 0: none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = superclasses.photos_or_skip(options.photos)
    task = load(found, warm=options.start == "warm")
    report: dict[str, Any] = {"settings": vars(options) | {"photos": len(found)}}
    report["settings"].pop("seeds")
    seeds = range(options.seeds)
    report |= cross_validated(task, seeds, options)
    nets = [fit(task, torch.ones(len(task.labels), dtype=torch.bool), seed, options, gated=True) for seed in seeds]
    weights = torch.stack([gate_of(net).weights() for net in nets])
    report["stability over seeds (target 0.9)"] = round(stability(weights), 3)
    report["largest and smallest weight x d"] = [round(float(v) * weights.shape[1], 2) for v in weights.aminmax()[::-1]]
    report |= cost(task, nets[0], options)
    print(json.dumps(report, indent=1))


def load(found: list[superclasses.Photo], *, warm: bool) -> Task:
    """Run every photo and its mirror image through the backbone once."""
    model = xaihub.load_model("efficientnet_lite0", device="cpu")
    head = superclasses.find_head(model)
    names, rows = list(superclasses.SUPERCLASSES), []
    handle = head.register_forward_pre_hook(lambda _module, given: rows.append(given[0]))
    for photo in found:
        inputs, _ = model.prepare(xaihub.load_image(photo.file).rgb)
        model.predict(torch.stack([inputs, inputs.flip(-1)]))
    handle.remove()
    start = None
    if warm:
        members = [[i for i in range(len(head.weight)) if superclasses.superclass(i) == name] for name in names]
        start = nn.Linear(head.in_features, len(names))
        with torch.no_grad():
            start.weight.copy_(torch.stack([head.weight[group].mean(0) for group in members]))
            start.bias.copy_(torch.stack([head.bias[group].mean(0) for group in members]))
    return Task(torch.stack(rows).clone(), torch.tensor([names.index(photo.superclass) for photo in found]), start)


def fit(task: Task, rows: Tensor, seed: int, options: Any, *, gated: bool, labels: Tensor | None = None) -> nn.Module:
    """Train one probe on some photos; the twins of a seed start alike and see the same batches."""
    torch.manual_seed(seed)
    width, classes = task.channels.shape[2], int(task.labels.max()) + 1
    head = nn.Linear(width, classes)
    if task.head is not None:
        head.load_state_dict(task.head.state_dict())
    net: nn.Module = GatedHead(ScoresActivation(width, gain="d"), head) if gated else head
    optimiser = torch.optim.Adam([group for group in param_groups(net, options.lr, 10.0) if group["params"]])
    order = torch.Generator().manual_seed(seed)
    x, y = task.channels[rows], (task.labels if labels is None else labels)[rows]
    for _ in range(options.epochs):
        for picks in torch.randperm(len(y), generator=order).split(BATCH):
            side = torch.randint(2, (len(picks),), generator=order)
            loss = nn.functional.cross_entropy(net(x[picks, side]), y[picks])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net


def gate_of(net: nn.Module) -> ScoresActivation:
    """Return a probe's gate."""
    assert isinstance(net, GatedHead)
    return net.gate


def folds(labels: Tensor, seed: int) -> Tensor:
    """Return (N,) fold numbers, spread evenly over each class."""
    generator, fold = torch.Generator().manual_seed(seed), torch.zeros_like(labels)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        fold[rows[torch.randperm(len(rows), generator=generator)]] = torch.arange(len(rows)) % FOLDS
    return fold


def cross_validated(task: Task, seeds: range, options: Any) -> dict[str, Any]:
    """Return accuracies in points, over seeds, of both probes, of deletions, and of shuffled labels."""
    count, quarter = len(task.labels), task.channels.shape[2] // 4
    rows: dict[str, list[float]] = {}
    spent: dict[bool, float] = {False: 0.0, True: 0.0}
    found = []
    for seed in seeds:
        fold, right = (
            folds(task.labels, seed),
            dict.fromkeys(
                ("plain", "gated", "top quarter", "random quarter", "bottom quarter", "labels shuffled"), 0.0
            ),
        )
        for number in range(FOLDS):
            train, test = fold != number, fold == number

            def hits(net: nn.Module, test: Tensor = test) -> Callable[[Tensor], float]:
                def score(table: Tensor) -> float:
                    with torch.no_grad():
                        return float((net(table).argmax(1) == task.labels[test]).float().sum())

                return score

            nets = {}
            for gated in (False, True):
                started = time.process_time()
                nets[gated] = fit(task, train, seed, options, gated=gated)
                spent[gated] += time.process_time() - started
            seen, fill = task.channels[test, 0], task.channels[train, 0].mean(0)
            right["plain"] += hits(nets[False])(seen)
            right["gated"] += hits(nets[True])(seen)
            order = gate_of(nets[True]).ranking()
            any_order = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
            for name, way in (("top", order), ("random", any_order), ("bottom", order.flip(0))):
                deleted = seen.clone()
                deleted[:, way[:quarter]] = fill[way[:quarter]]
                right[f"{name} quarter"] += hits(nets[True])(deleted)
            found.append(gate_of(nets[True]).weights())
        mixed = task.labels[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]
        for number in range(FOLDS):
            net = fit(task, fold != number, seed, options, gated=True, labels=mixed)
            with torch.no_grad():
                guess = net(task.channels[fold == number, 0]).argmax(1)
            right["labels shuffled"] += float((guess == task.labels[fold == number]).float().sum())
        for name, value in right.items():
            rows.setdefault(name, []).append(100 * value / count)
    rows["gated minus plain (target: at least -1)"] = [b - a for a, b in zip(rows["plain"], rows["gated"], strict=True)]
    for name in ("top", "random", "bottom"):
        rows[f"{name} quarter costs"] = [a - b for a, b in zip(rows["gated"], rows[f"{name} quarter"], strict=True)]
    return {
        "accuracy in points": {name: str(seed_interval(values)) for name, values in rows.items()},
        "stability over seeds and folds": round(stability(torch.stack(found)), 3),
        "training CPU seconds a probe": {
            name: round(spent[key] / (len(seeds) * FOLDS), 3) for key, name in ((False, "plain"), (True, "gated"))
        },
    }


def cost(task: Task, net: nn.Module, options: Any) -> dict[str, Any]:
    """Return CPU seconds of reading the ranking and of SHAP on the same head, and how far both agree."""

    def predict(table: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = net(table).softmax(1)
        return out

    x, read = task.channels[:, 0], reading_time(task.channels.shape[2])
    found: dict[str, Any] = {"reading the ranking, CPU seconds": read}
    started = time.process_time()
    sampled = shap_importance(predict, x[:10], x[-10:], permutations=1)
    found["PermutationExplainer, 10 rows, 10 background rows"] = round(time.process_time() - started, 2)
    pair = agreement(gate_of(net).weights(), sampled, k=50)
    found["agreement with it"] = {"Pearson": round(pair.pearson, 3), "Spearman": round(pair.spearman, 3),
                                  "top 50 shared": pair.top_k}  # fmt: skip
    if options.kernel_rows:
        started = time.process_time()
        shap_importance(predict, x[:10], x[-options.kernel_rows :], algorithm="kernel")
        spent = time.process_time() - started
        found[f"KernelExplainer, {options.kernel_rows} rows, 10 background rows"] = round(spent, 2)
        found["KernelExplainer / reading (target 150)"] = round(spent / read)
    return found


if __name__ == "__main__":
    main()
