"""The paper's experiment on tables: the same splits for every model, LIME and MAPLE, and the published figures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, cast, get_args

import torch
from torch import Tensor

from xaihub.errors import MissingExtra, ParameterError
from xaihub_expo.local import Lime, Maple
from xaihub_expo.measures import Quality, judge
from xaihub_expo.mlp import PenaltyName, Settings, fit
from xaihub_expo.tables import Split, Table, make_split

__all__ = ["PUBLISHED", "Contender", "Result", "contenders", "run", "run_split", "summary"]

# Means and standard deviations over 20 trials, from the result files beside the authors' code (commit fdc80bd). Their S
# of LIME is that of the code (see `Quality.stability_as_coded`). For breast cancer (10 trials): after a sigmoid; their
# accuracy is a running average over training, so it is left out.
PUBLISHED: Mapping[tuple[str, str, float], Mapping[str, tuple[float, float] | tuple[float]]] = {
    ("autompg", "none", 0.0): {
        "loss": (0.14, 0.027), "lime_point": (0.040, 0.011), "lime_neighbourhood": (0.041, 0.012),
        "lime_stability_as_coded": (1.1e-3, 5.6e-4), "maple_point": (0.016, 0.0088),
        "maple_neighbourhood": (0.018, 0.0097), "maple_stability_fresh": (0.015, 0.0099),
    },
    ("autompg", "fidelity", 0.05): {
        "loss": (0.13, 0.020), "lime_point": (0.011, 0.0028), "lime_neighbourhood": (0.011, 0.0028),
        "lime_stability_as_coded": (1.2e-4, 2.7e-5), "maple_point": (1.4e-3, 5.6e-4),
        "maple_neighbourhood": (1.5e-3, 6.4e-4), "maple_stability_fresh": (1.7e-3, 5.0e-4),
    },
    ("autompg", "1d", 0.005): {
        "loss": (0.13, 0.021), "lime_point": (0.029, 0.0070), "lime_neighbourhood": (0.029, 0.0069),
        "lime_stability_as_coded": (7.8e-4, 2.9e-4), "maple_point": (7.6e-3, 3.8e-3),
        "maple_neighbourhood": (8.4e-3, 4.0e-3), "maple_stability_fresh": (7.7e-3, 5.1e-3),
    },
    ("housing", "none", 0.0): {
        "loss": (0.14, 0.051), "lime_point": (0.14, 0.036), "lime_neighbourhood": (0.14, 0.037),
        "lime_stability_as_coded": (4.7e-3, 1.2e-3), "maple_point": (0.057, 0.024),
        "maple_neighbourhood": (0.066, 0.024), "maple_stability_fresh": (0.18, 0.14),
    },
    ("housing", "fidelity", 0.005): {
        "loss": (0.15, 0.050), "lime_point": (0.057, 0.017), "lime_neighbourhood": (0.057, 0.018),
        "lime_stability_as_coded": (1.2e-3, 1.9e-4), "maple_point": (0.028, 0.013),
        "maple_neighbourhood": (0.033, 0.014), "maple_stability_fresh": (0.10, 0.078),
    },
    ("housing", "1d", 0.005): {
        "loss": (0.15, 0.071), "lime_point": (0.064, 0.017), "lime_neighbourhood": (0.064, 0.018),
        "lime_stability_as_coded": (2.5e-3, 7.3e-4), "maple_point": (0.027, 0.012),
        "maple_neighbourhood": (0.032, 0.013), "maple_stability_fresh": (0.088, 0.064),
    },
    ("breast_cancer", "fidelity", 0.001): {
        "lime_point": (0.10,), "lime_neighbourhood": (0.10,), "lime_stability_as_coded": (0.0024,),
        "maple_point": (0.013,), "maple_neighbourhood": (0.039,), "maple_stability_fresh": (0.38,),
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to train: a penalty and its share of the loss at the start."""

    penalty: PenaltyName
    c: float = 0.0

    def __str__(self) -> str:
        """As users write it."""
        return self.penalty if self.penalty == "none" else f"{self.penalty}={self.c:g}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One network of one split.

    Attributes:
        contender: How it was trained.
        split: The split's number.
        figures: Measured figures by name: loss (mean squared error, or share of errors for classes), and those of
            `Quality` after "lime_" and "maple_".
        gamma: The penalty's weight.
        epochs: How long training took.
        rows: Rows that went through the network in training.
        seconds: How long training took, and measuring.
    """

    contender: str
    split: int
    figures: Mapping[str, float]
    gamma: float
    epochs: int
    rows: int
    seconds: tuple[float, float]


def contenders(table: Table, texts: Sequence[str]) -> list[Contender]:
    """Read penalties such as "none", "fidelity" (with the paper's share) or "fidelity=0.01".

    Raises:
        ParameterError: There is no such penalty, or no share is known for it.
    """
    default = {"none": 0.0, "fidelity": table.c_fidelity, "1d": table.c_line}
    found = []
    for text in dict.fromkeys(texts):
        name, equals, value = text.partition("=")
        if name not in get_args(PenaltyName):
            raise ParameterError(f"no penalty is named {name!r}", hint=", ".join(get_args(PenaltyName)))
        if not equals and name not in default:
            raise ParameterError(f"penalty {name!r} needs its share of the loss", hint=f"write {name}=0.005")
        try:
            c = float(value) if equals else default[name]
        except ValueError:
            c = -1.0
        if not 0 <= c < float("inf") or (name == "none" and c):
            raise ParameterError(f"{text!r} does not give a penalty's share of the loss", hint=f"write {name}=0.005")
        found.append(Contender(penalty=cast(PenaltyName, name), c=c))
    return found


def run(
    table: Table,
    chosen: Sequence[Contender],
    *,
    splits: int,
    points: int | None = 40,
    maple: bool = False,
    seed: int = 0,
    report: Callable[[Result], None] = lambda _result: None,
) -> list[Result]:
    """Train and judge every contender on every split.

    Args:
        table: The data.
        chosen: The contenders; all of them see the same splits and initial weights.
        splits: How many.
        points: Test points that are explained, at most; None for all.
        maple: Judge MAPLE as well.
        seed: The first split's seed.
        report: Told of each result.

    Raises:
        MissingExtra: The data's package is not installed.
    """
    results = []
    for number in range(splits):
        try:
            split = make_split(table, seed + number)
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"the data {table.name!r} need {error.name!r}, which is not installed",
                hint="pip install 'xaihub[tables]'",
            ) from error
        for contender in chosen:
            results.append(run_split(table, split, contender, number, points=points, maple=maple, seed=seed + number))
            report(results[-1])
    return results


def run_split(
    table: Table, split: Split, contender: Contender, number: int, *, points: int | None, maple: bool, seed: int
) -> Result:
    """Train one network and judge it."""
    started = time.perf_counter()
    settings = Settings(depth=table.depth, width=table.width, penalty=contender.penalty, c=contender.c)
    trained = fit(split, settings, seed=seed)
    between = time.perf_counter()
    network = trained.network

    def f(inputs: Tensor) -> Tensor:
        outputs: Tensor = network(inputs)
        return outputs.sigmoid() if split.binary else outputs

    inputs, wanted = split.test
    with torch.no_grad():
        found = f(inputs)
        wrong = ((found > 0.5) != (wanted > 0.5)).float() if split.binary else (found - wanted).square()
    figures = {"loss": float(wrong.mean())}
    explained = inputs[:points]
    figures |= _named("lime", judge(f, Lime(f, split.train[0]), explained, stability_draws=2, seed=seed))
    if maple:
        explainer = Maple(f, split.train[0], split.validation[0], seed=seed)
        figures |= _named("maple", judge(f, explainer, explained, stability_draws=2, seed=seed))
    ended = time.perf_counter()
    return Result(
        contender=str(contender),
        split=number,
        figures=figures,
        gamma=trained.gamma,
        epochs=trained.epochs,
        rows=trained.rows,
        seconds=(between - started, ended - between),
    )


def _named(explainer: str, quality: Quality) -> dict[str, float]:
    names = [field.name for field in fields(quality)] + ["relative_neighbourhood", "relative_stability"]
    return {f"{explainer}_{name}": getattr(quality, name) for name in names}


def summary(table: Table, chosen: Sequence[Contender], results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return a record for each figure and contender: measured and published, and the change against "none".

    The change is that of the means over the same splits; `fewer` counts the splits in which the figure fell.
    """

    @cache
    def of(contender: str, figure: str) -> list[float]:
        return [result.figures[figure] for result in results if result.contender == contender]

    records = []
    for figure in results[0].figures:
        for contender in chosen:
            values = of(str(contender), figure)
            plain = of("none", figure)
            known = PUBLISHED.get((table.name, contender.penalty, contender.c), {}).get(figure)
            against = PUBLISHED.get((table.name, "none", 0.0), {}).get(figure)
            compared = bool(plain) and contender.penalty != "none"
            records.append(
                {
                    "figure": figure,
                    "model": str(contender),
                    "mean": statistics.fmean(values),
                    "sd": statistics.stdev(values) if len(values) > 1 else None,
                    "published_mean": known[0] if known else None,
                    "published_sd": known[1] if known and len(known) > 1 else None,
                    "change": _change(statistics.fmean(values), statistics.fmean(plain)) if compared else None,
                    "published_change": _change(known[0], against[0]) if compared and known and against else None,
                    "fell": sum(a < b for a, b in zip(values, plain, strict=True)) if compared else None,
                    "splits": len(values),
                }
            )
    return records


def _change(value: float, reference: float) -> float:
    return value / reference - 1 if reference else 0.0
