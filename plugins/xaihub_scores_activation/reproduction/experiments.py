"""What the reconstruction measures on each table, over seeds.

The paper's data, networks and settings are unknown, so nothing here is its experiment; it is the nearest one that its
abstract allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xaihub import class_scores
from xaihub.ranking import agreement, relevance_auc, seed_interval, stability, top_k_precision
from xaihub_scores_activation.gate import ScoresActivation
from xaihub_scores_activation.reproduction.networks import (
    Network,
    Recipe,
    accuracy,
    make_mlp,
    make_transformer,
    train,
    train_alone,
)
from xaihub_scores_activation.reproduction.tables import Table, make_table
from xaihub_scores_activation.shap_importance import shap_importance

LITERAL = Recipe()
FASTER = Recipe(score_lr_mult=10.0)
RECIPES = {"literal": LITERAL, "score rate x10": FASTER, "gain d, score rate x10": replace(FASTER, gain="d")}
BASELINE = Recipe(gated=False)
BACKGROUND, ROWS, ORDERS, TOP = 50, 100, 5, 5
COST_BACKGROUND, COST_ROWS = 50, 100

Figures = dict[str, list[float]]  # by name, one value per seed
Row = dict[str, Any]


def probabilities(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function that SHAP explains: (n, d) rows to (n, K) class probabilities."""

    def predict(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return class_scores(network(x), "probability")

    network.eval()
    return predict


def shap_of(network: Network, table: Table, seed: int = 0) -> Tensor:
    """Return the (d,) mean over test rows and classes of |SHAP value| of the class probabilities."""
    background, rows = table.train_x[:BACKGROUND], table.test_x[:ROWS]
    return shap_importance(probabilities(network), background, rows, permutations=ORDERS, seed=seed)


def table_rows(name: str, seeds: Sequence[int], epochs: int, *, shuffled: bool = False) -> list[Row]:
    """Train the baseline network and each recipe on one table per seed (of data, split and network), and measure.

    With `shuffled`, training labels are random: the control for every figure of agreement.
    """
    tables = [make_table(name, seed) for seed in seeds]
    if shuffled:
        tables = [table.with_shuffled_labels(seed) for table, seed in zip(tables, seeds, strict=True)]
    baseline, *groups = _trained(tables, [BASELINE, *RECIPES.values()], seeds, epochs)
    rows = []
    # One split and several seeds of the network, for stability.
    fixed = _trained([tables[0]] * len(seeds), [*RECIPES.values()], seeds, epochs) if len(seeds) > 1 else []
    for number, (key, group) in enumerate(zip(RECIPES, groups, strict=True)):
        figures = _figures(baseline, group, tables, seeds)
        if fixed:
            figures["stability"] = [stability(torch.stack([item.weights for item in fixed[number]]))]
        rows.append(_row(tables[0].name, key, figures))
    return rows


def _trained(
    tables: Sequence[Table], recipes: Sequence[Recipe], seeds: Sequence[int], epochs: int
) -> list[list[Network]]:
    """Train every recipe on every table with its seed; return one list per recipe."""
    every = [replace(recipe, epochs=epochs) for recipe in recipes for _ in seeds]
    found = train([*tables] * len(recipes), every, [*seeds] * len(recipes))
    return [found[start : start + len(seeds)] for start in range(0, len(found), len(seeds))]


def _accuracies(baseline: Sequence[Network], group: Sequence[Network], tables: Sequence[Table]) -> Figures:
    without, gated = (
        [accuracy(item, table.test_x, table.test_y) for item, table in zip(items, tables, strict=True)]
        for items in (baseline, group)
    )
    return {
        "accuracy without": without,
        "accuracy with": gated,
        "gain in points": [100 * (new - old) for new, old in zip(gated, without, strict=True)],
        "relative gain in %": [100 * (new / old - 1) for new, old in zip(gated, without, strict=True)],
    }


def _figures(
    baseline: Sequence[Network], group: Sequence[Network], tables: Sequence[Table], seeds: Sequence[int]
) -> Figures:
    figures = _accuracies(baseline, group, tables)
    for item, table, seed in zip(group, tables, seeds, strict=True):
        weights = item.weights
        shap = shap_of(item, table, seed)
        found = agreement(weights, shap, k=TOP)
        one = {"Pearson with SHAP": found.pearson, "Spearman with SHAP": found.spearman, "top 5 shared": found.top_k}
        if table.relevant is not None:
            one |= {
                "relevance AUC": relevance_auc(weights, table.relevant),
                "top 5 relevant": top_k_precision(weights, table.relevant, TOP),
                "weight on relevant": float(weights[table.relevant].sum()),
                "Pearson with relevance": agreement(weights, table.relevant.double()).pearson,
                "relevance AUC of SHAP": relevance_auc(shap, table.relevant),
            }
        one["largest weight x d"] = float(weights.max()) * table.columns
        for key, value in one.items():
            figures.setdefault(key, []).append(value)
    return figures


def parity(seeds: Sequence[int], epochs: int) -> list[Row]:
    """Measure the gain on three-way parity with few and with many irrelevant columns."""
    rows = []
    for name in ("parity_10", "parity_16"):
        tables = [make_table(name, seed) for seed in seeds]
        baseline, *groups = _trained(tables, [BASELINE, LITERAL, FASTER], seeds, epochs)
        for key, group in zip(RECIPES, groups, strict=False):  # the first two
            figures = _accuracies(baseline, group, tables)
            figures["relevance AUC"] = [
                relevance_auc(item.weights, table.relevant)
                for item, table in zip(group, tables, strict=True)
                if table.relevant is not None
            ]
            rows.append(_row(name, key, figures))
    return rows


def hosts(seeds: Sequence[int], epochs: int) -> list[Row]:
    """Measure the gate in front of a small transformer, the only host that the secondary sources name."""
    rows = []
    for name in ("classification_10", "classification_16"):
        tables = [make_table(name, seed) for seed in seeds]
        groups: list[list[Network]] = []
        for recipe in (replace(BASELINE, epochs=epochs), replace(FASTER, epochs=epochs)):
            groups.append([])
            for table, seed in zip(tables, seeds, strict=True):
                network = make_transformer(table.columns, table.classes, recipe, seed)
                train_alone(network, table, recipe, seed)
                groups[-1].append(network)
        figures = _figures(groups[0], groups[1], tables, seeds)
        rows.append(_row(name, "score rate x10", figures, host="transformer"))
    return rows


def _row(table: str, recipe: str, figures: Figures, host: str = "MLP") -> Row:
    """Return the figures of one table and recipe, with means and 95 % t intervals, as JSON types."""
    found = {name: seed_interval(values) for name, values in figures.items()}
    shown = {
        name: {"mean": mean.mean, "low": mean.low, "high": mean.high, "values": figures[name]}
        for name, mean in found.items()
    }
    return {"table": table, "host": host, "recipe": recipe, "figures": shown}


def cost(epochs: int, *, rows: int = COST_ROWS, name: str = "classification_16") -> dict[str, float]:
    """Return the CPU seconds of reading the ranking, of SHAP on the same model, and of training with and without gate.

    The ratio to SHAP depends on SHAP's budget, and reading a ranking is not learning it, so the record has both.
    """
    table = make_table(name, 0)
    # Training with and without the gate alternates, so that a busy machine slows both alike.
    spent: dict[bool, list[float]] = {False: [], True: []}
    for _turn in range(3):
        for gated in spent:
            recipe = Recipe(gated=gated, epochs=max(1, epochs // 10))
            network = make_mlp(table.columns, table.classes, recipe, 0)
            spent[gated].append(train_alone(network, table, recipe, 0) / recipe.epochs)
    (trained,) = train([table], [Recipe(epochs=epochs)], [0])
    reading = reading_time(16)
    predict, absent, shown = probabilities(trained), table.train_x[:COST_BACKGROUND], table.test_x[:rows]
    kernel = _cpu(lambda: shap_importance(predict, absent, shown, algorithm="kernel"))
    shap_importance(predict, absent, shown[:1], permutations=1)  # compiles
    sampled = _cpu(lambda: shap_importance(predict, absent, shown, permutations=10))
    without, with_gate = (float(np.median(seconds)) * epochs for seconds in spent.values())
    return {
        "rows": float(rows),
        "background rows": float(COST_BACKGROUND),
        "reading the ranking": reading,
        "reading 2048 scores": reading_time(2048),
        "KernelExplainer": kernel,
        "PermutationExplainer": sampled,
        "KernelExplainer / reading": kernel / reading,
        "PermutationExplainer / reading": sampled / reading,
        "training without": without,
        "training with": with_gate,
        "training overhead": with_gate - without,
        "KernelExplainer / training overhead": kernel / max(with_gate - without, 1e-9),
    }


def reading_time(features: int, repeats: int = 200) -> float:
    """Return the median CPU seconds of one softmax and one sort."""
    gate = ScoresActivation(features)
    with torch.no_grad():
        gate.scores.normal_(generator=torch.Generator().manual_seed(0))
    return float(np.median([_cpu(gate.ranking) for _ in range(repeats)]))


def _cpu(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
