"""The paper's experiment on tables: every penalty on the same splits, explained by LIME and MAPLE."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

import torch
import yaml
from torch import Tensor

from xaihub import Outputs, class_scores
from xaihub.errors import MissingExtra, ParameterError
from xaihub_expo.reproduction.datasets import Split, Table, make_split
from xaihub_expo.reproduction.explainers import Lime, Maple
from xaihub_expo.reproduction.quality import LocalExplainer, assess
from xaihub_expo.reproduction.training import PenaltyName, fit


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to train: a penalty, and its fraction of the loss at the start."""

    penalty: PenaltyName
    c: float = 0.0

    def __str__(self) -> str:
        """As users write it."""
        return self.penalty if self.penalty == "none" else f"{self.penalty}={self.c:g}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One network of one split.

    `metrics` has the loss (mean squared error, or error rate for classes), and those of `assess` with the prefix
    "lime_" or "maple_".
    """

    contender: str
    split: int
    metrics: Mapping[str, float]
    gamma: float  # the penalty's weight
    epochs: int
    rows: int  # that went through the network in training
    seconds: tuple[float, float]  # for training, and for measuring


@cache
def published() -> Mapping[str, Mapping[str, Mapping[str, list[float]]]]:
    """Return the published means and, if known, standard deviations by data set, contender and metric."""
    found: Mapping[str, Any] = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    return found


def contenders(table: Table, texts: Sequence[str]) -> list[Contender]:
    """Read penalties such as "none", "fidelity" (with the paper's fraction) or "fidelity=0.01".

    Raises:
        ParameterError: Unknown penalty, or its fraction of the loss is missing or invalid.
    """
    default = {"none": 0.0, "fidelity": table.c_fidelity, "1d": table.c_line}
    found = []
    for text in dict.fromkeys(texts):
        name, equals, value = text.partition("=")
        if name not in get_args(PenaltyName):
            raise ParameterError(f"no penalty is named {name!r}", hint=", ".join(get_args(PenaltyName)))
        if not equals and name not in default:
            raise ParameterError(f"penalty {name!r} needs its fraction of the loss", hint=f"write {name}=0.005")
        try:
            c = float(value) if equals else default[name]
        except ValueError:
            c = -1.0
        if not 0 <= c < float("inf") or (name == "none" and c):
            raise ParameterError(f"{text!r} does not give a penalty's fraction of the loss", hint="write fidelity=0.01")
        found.append(Contender(penalty=cast(PenaltyName, name), c=c))
    return found


def run(
    table: Table,
    chosen: Sequence[Contender],
    *,
    splits: int,
    points: int = 40,
    maple: bool = False,
    seed: int = 0,
    report: Callable[[Result], None] = lambda _result: None,
) -> list[Result]:
    """Train and assess every contender on every split; all share the splits and the initial weights.

    At most `points` test points are explained. `seed` is that of the first split; `report` is called with each result.

    Raises:
        MissingExtra: The data's package is not installed.
    """
    results = []
    for number in range(splits):
        try:
            split = make_split(table, seed + number)
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"data set {table.name!r} needs {error.name!r}, which is not installed",
                hint="pip install 'xaihub[tables]'",
            ) from error
        for contender in chosen:
            results.append(_run_split(table, split, contender, number, points=points, maple=maple, seed=seed + number))
            report(results[-1])
    return results


def _run_split(
    table: Table, split: Split, contender: Contender, number: int, *, points: int, maple: bool, seed: int
) -> Result:
    started = time.perf_counter()
    trained = fit(split, depth=table.depth, width=table.width, penalty=contender.penalty, c=contender.c, seed=seed)
    between = time.perf_counter()

    def f(inputs: Tensor) -> Tensor:
        outputs: Tensor = trained.network(inputs)
        return class_scores(outputs, "probability", Outputs("multilabel")) if split.binary else outputs

    inputs, targets = split.test
    with torch.no_grad():
        y = f(inputs)
        errors = ((y > 0.5) != (targets > 0.5)).float() if split.binary else (y - targets).square()
    metrics = {"loss": float(errors.mean())}
    explainers: dict[str, LocalExplainer] = {"lime": Lime(f, split.train[0])}
    if maple:
        explainers["maple"] = Maple(f, split.train[0], split.validation[0], seed=seed)
    for name, explainer in explainers.items():
        found = assess(f, explainer, inputs[:points], seed=seed)
        metrics |= {f"{name}_{measure}": value for measure, value in found.items()}
    return Result(
        contender=str(contender),
        split=number,
        metrics=metrics,
        gamma=trained.gamma,
        epochs=trained.epochs,
        rows=trained.rows,
        seconds=(between - started, time.perf_counter() - between),
    )


def summary(table: Table, chosen: Sequence[Contender], results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return one record per metric and contender: measured, published, and the change against "none".

    The change is that of the means over the same splits; `decreased` counts the splits in which the metric fell.
    """
    paper = published().get(table.name, {})

    def values(contender: str, metric: str) -> list[float]:
        return [result.metrics[metric] for result in results if result.contender == contender]

    records = []
    for metric in results[0].metrics:
        for contender in map(str, chosen):
            ours, theirs = values(contender, metric), paper.get(contender, {}).get(metric, [])
            plain = [] if contender == "none" else values("none", metric)
            known = paper.get("none", {}).get(metric, []) if plain else []
            records.append(
                {
                    "metric": metric,
                    "model": contender,
                    "mean": statistics.fmean(ours),
                    "sd": statistics.stdev(ours) if len(ours) > 1 else None,
                    "published_mean": theirs[0] if theirs else None,
                    "published_sd": theirs[1] if len(theirs) > 1 else None,
                    "change": _change(ours, plain),
                    "published_change": _change(theirs[:1], known[:1]),
                    "decreased": sum(a < b for a, b in zip(ours, plain, strict=True)) if plain else None,
                    "splits": len(ours),
                }
            )
    return records


def _change(values: Sequence[float], reference: Sequence[float]) -> float | None:
    """Return the relative change of the mean; None without values or if the reference is missing or zero."""
    if not values or not any(reference):
        return None
    return statistics.fmean(values) / statistics.fmean(reference) - 1
