"""The reconstruction: what is measured on each table, over seeds.

The paper's data, networks and settings are unknown, so nothing here is its experiment; it is the nearest one that its
abstract allows. Each figure is kept for each seed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xaihub.ranking import agreement, relevance_auc, seed_interval, stability, top_k_precision
from xaihub_scores_activation.hosts import Recipe, Trained, accuracy, make_mlp, make_transformer, train, train_alone
from xaihub_scores_activation.layer import ScoresActivation
from xaihub_scores_activation.shapley import shap_importance
from xaihub_scores_activation.tables import Table, make_table

__all__ = ["RECIPES", "Row", "cost", "hosts", "parity", "probabilities", "shap_of", "table_rows"]

RECIPES = {
    "literal": Recipe(),
    "score rate x10": Recipe(score_lr_mult=10.0),
    "gain d, score rate x10": Recipe(gain="d", score_lr_mult=10.0),
}
BACKGROUND, ROWS, ORDERS, TOP = 50, 100, 5, 5
COST_BACKGROUND, COST_ROWS = 50, 100


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured for one table and recipe: each figure for each seed."""

    table: str
    recipe: str
    host: str = "MLP"
    values: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the row with means and 95 % t intervals as JSON types."""
        figures = {}
        for name, values in self.values.items():
            found = seed_interval(values)
            figures[name] = {"mean": found.mean, "low": found.low, "high": found.high, "values": values}
        return {"table": self.table, "host": self.host, "recipe": self.recipe, "figures": figures}


def probabilities(network: nn.Module) -> Any:
    """Return the function of a trained network that SHAP looks at: (n, d) to (n, K) class probabilities."""

    def predict(x: Tensor) -> Tensor:
        with torch.inference_mode():
            out: Tensor = network(x).softmax(1)
        return out

    network.eval()
    return predict


def shap_of(trained: Trained, table: Table, seed: int = 0) -> Tensor:
    """Return (d,) the mean of |SHAP value| of the class probabilities over test rows and classes."""
    background, rows = table.train_x[:BACKGROUND], table.test_x[:ROWS]
    return shap_importance(probabilities(trained.network), background, rows, permutations=ORDERS, seed=seed)


def table_rows(name: str, seeds: Sequence[int], epochs: int, *, shuffled: bool = False) -> list[Row]:
    """Train the bare twin and each recipe on one table for each seed (of data, split and network), and measure.

    With `shuffled`, training labels say nothing: the control that every figure of agreement must be read beside.
    """
    tables = [make_table(name, seed) for seed in seeds]
    if shuffled:
        tables = [table.with_shuffled_labels(seed) for table, seed in zip(tables, seeds, strict=True)]
    recipes = {key: replace(recipe, epochs=epochs) for key, recipe in RECIPES.items()}
    bare = Recipe(gated=False, epochs=epochs)
    kinds = [bare, *recipes.values()]
    trained = train(
        tables * len(kinds), [recipe for recipe in kinds for _ in seeds], [seed for _ in kinds for seed in seeds]
    )
    count = len(seeds)
    groups = [trained[number * count : (number + 1) * count] for number in range(len(kinds))]
    plain = _accuracies(groups[0], tables)
    fixed = _fixed_split(name, seeds, recipes, shuffled=shuffled)
    rows = []
    for number, (key, group) in enumerate(zip(recipes, groups[1:], strict=True)):
        values = _figures(group, tables, plain, seeds)
        values["stability"] = [stability(torch.stack([item.weights for item in fixed[number]]))] if count > 1 else []
        rows.append(Row(table=tables[0].name, recipe=key, values={key: item for key, item in values.items() if item}))
    return rows


def _fixed_split(name: str, seeds: Sequence[int], recipes: dict[str, Recipe], *, shuffled: bool) -> list[list[Trained]]:
    """Train on one split from several starts, so that what differs is the network's seed alone."""
    if len(seeds) < 2:
        return [[] for _ in recipes]
    table = make_table(name, seeds[0])
    if shuffled:
        table = table.with_shuffled_labels(seeds[0])
    every = [recipe for recipe in recipes.values() for _ in seeds]
    found = train([table] * len(every), every, [seed for _ in recipes for seed in seeds])
    return [found[number * len(seeds) : (number + 1) * len(seeds)] for number in range(len(recipes))]


def _accuracies(group: Sequence[Trained], tables: Sequence[Table]) -> list[float]:
    return [accuracy(item.network, table.test_x, table.test_y) for item, table in zip(group, tables, strict=True)]


def _figures(
    group: Sequence[Trained], tables: Sequence[Table], plain: Sequence[float], seeds: Sequence[int]
) -> dict[str, list[float]]:
    gated = _accuracies(group, tables)
    values: dict[str, list[float]] = {
        "accuracy without": list(plain),
        "accuracy with": gated,
        "gain in points": [100 * (new - old) for new, old in zip(gated, plain, strict=True)],
        "relative gain in %": [100 * (new / old - 1) for new, old in zip(gated, plain, strict=True)],
    }
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
            values.setdefault(key, []).append(value)
    return values


def parity(seeds: Sequence[int], epochs: int) -> list[Row]:
    """Measure the gain on three-way parity with few and with many irrelevant columns."""
    return [
        row
        for name in ("parity_10", "parity_16")
        for row in _accuracy_rows(name, seeds, epochs, ("literal", "score rate x10"))
    ]


def _accuracy_rows(name: str, seeds: Sequence[int], epochs: int, keys: Sequence[str]) -> list[Row]:
    tables = [make_table(name, seed) for seed in seeds]
    kinds = [Recipe(gated=False, epochs=epochs), *(replace(RECIPES[key], epochs=epochs) for key in keys)]
    found = train(
        tables * len(kinds), [recipe for recipe in kinds for _ in seeds], [seed for _ in kinds for seed in seeds]
    )
    plain, rows = _accuracies(found[: len(seeds)], tables), []
    for number, key in enumerate(keys, start=1):
        group = found[number * len(seeds) : (number + 1) * len(seeds)]
        gated = _accuracies(group, tables)
        relevant = tables[0].relevant
        assert relevant is not None  # noqa: S101 - parity tables are made
        values = {
            "accuracy without": plain,
            "accuracy with": gated,
            "gain in points": [100 * (new - old) for new, old in zip(gated, plain, strict=True)],
            "relative gain in %": [100 * (new / old - 1) for new, old in zip(gated, plain, strict=True)],
            "relevance AUC": [relevance_auc(item.weights, relevant) for item in group],
        }
        rows.append(Row(table=name, recipe=key, values=values))
    return rows


def hosts(seeds: Sequence[int], epochs: int) -> list[Row]:
    """Measure the gate before a small transformer, the one host that the secondary sources name."""
    rows = []
    recipe = Recipe(score_lr_mult=10.0, epochs=epochs)
    for name in ("classification_10", "classification_16"):
        tables = [make_table(name, seed) for seed in seeds]
        groups = []
        for kind in (replace(recipe, gated=False), recipe):
            made = [
                (make_transformer(table.columns, table.classes, kind, seed), table, seed)
                for table, seed in zip(tables, seeds, strict=True)
            ]
            groups.append([train_alone(network, table, kind, seed)[0] for network, table, seed in made])
        plain = _accuracies(groups[0], tables)
        values = _figures(groups[1], tables, plain, seeds)
        rows.append(Row(table=name, host="transformer", recipe="score rate x10", values=values))
    return rows


def cost(epochs: int, *, rows: int = COST_ROWS, name: str = "classification_16") -> dict[str, float]:
    """Return CPU seconds: of reading the ranking, of SHAP on the same model, and of training with and without the gate.

    The ratio to SHAP depends on SHAP's budget, and reading a ranking is not learning it: both are in the record.
    """
    table = make_table(name, 0)
    # Training times are compared in turns, so that a busy machine slows both alike.
    spent: dict[bool, list[float]] = {False: [], True: []}
    for _turn in range(3):
        for gated in (False, True):
            recipe = Recipe(gated=gated, epochs=max(1, epochs // 10))
            spent[gated].append(
                train_alone(make_mlp(table.columns, table.classes, recipe, 0), table, recipe, 0)[1] / recipe.epochs
            )
    (trained,) = train([table], [Recipe(epochs=epochs)], [0])
    reading = reading_time(16)
    predict, absent, shown = probabilities(trained.network), table.train_x[:COST_BACKGROUND], table.test_x[:rows]
    kernel = _cpu(lambda: shap_importance(predict, absent, shown, algorithm="kernel"))
    shap_importance(predict, absent, shown[:1], permutations=1)  # compiles
    sampled = _cpu(lambda: shap_importance(predict, absent, shown, permutations=10))
    bare, with_gate = float(np.median(spent[False])) * epochs, float(np.median(spent[True])) * epochs
    return {
        "rows": float(rows),
        "background rows": float(COST_BACKGROUND),
        "reading the ranking": reading,
        "reading 2048 scores": reading_time(2048),
        "KernelExplainer": kernel,
        "PermutationExplainer": sampled,
        "KernelExplainer / reading": kernel / reading,
        "PermutationExplainer / reading": sampled / reading,
        "training without": bare,
        "training with": with_gate,
        "training overhead": with_gate - bare,
        "KernelExplainer / training overhead": kernel / max(with_gate - bare, 1e-9),
    }


def reading_time(features: int, repeats: int = 200) -> float:
    """Return the median CPU seconds of one softmax and one sort."""
    gate = ScoresActivation(features)
    with torch.no_grad():
        gate.scores.normal_(generator=torch.Generator().manual_seed(0))
    taken = [_cpu(gate.ranking) for _ in range(repeats)]
    return float(np.median(taken))


def _cpu(work: Any) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
