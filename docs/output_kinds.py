"""Runs every explainer and every metric on each kind of output, and writes docs/reference/output-kinds.md.

`make output-kinds` runs it, which takes minutes. Each cell is one check on an image whose evidence is known
(`docs/planted_kinds.py`), so that nothing in the page is claimed that was not run.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from docs.planted_kinds import KINDS, PLACES, Blind, Exact, Noise, Planted, case, changed, image_of, moved, planted
from xaihub import Case, Explainer, Explanation, Hub, PixelSet, XaihubError
from xaihub.hub.host import PluginHost

PAGE = Path(__file__).resolve().parent / "reference" / "output-kinds.md"
# What does not suit 4 x 4 cells, or small budgets.
SETTINGS: dict[str, dict[str, Any]] = {
    "rise": {"masks": 400, "cell": 4}, "lime": {"samples": 300, "features": "grid:4"},
    "occlusion": {"window": 8, "stride": 8}, "kernel_shap": {"samples": 300, "features": "grid:4"},
    "feature_ablation": {"features": "grid:4"}, "integrated_gradients": {"steps": 8},
    "sufficient_drop": {"pixels": "returned"}, "transplant_colours": {"pixels": "returned"},
    "transplant_photos": {"pixels": "returned"},
}  # fmt: skip
# By tag, the first that a record has.
EXPLAINERS = {
    "control": "controls", "attention": "attention", "cam": "class activation", "masks": "pixel sets",
    "gradient": "gradient", "self-explaining": "self-explaining", "perturbation": "perturbation",
}  # fmt: skip
METRICS = {
    "localisation": "localisation", "sufficiency": "sufficiency", "sanity": "sanity", "robustness": "robustness",
    "local-linear": "local linear", "completeness": "completeness", "fidelity": "fidelity",
    "faithfulness": "faithfulness", "map": "form of the map", "cost": "cost",
}  # fmt: skip
PLACED = ("localisation", "sufficiency", "fidelity", "faithfulness")  # families that depend on where a map is high
EPSILON = 1e-6


INTRODUCTION = """\
# Kinds of output

Which explainer and which metric works on which kind of output. `make output-kinds` writes this page by running each
on an image whose evidence is known: one red cell of 16, with a green cell that counts against it. *yes* is a passed
check, *no* a refusal with the reason below; anything else fails the run.""".splitlines()
OF_EXPLAINERS = """\
*yes*: on two images, the map is highest on the red cell. The network is convolutional, or attends to patches if the
explainer needs attention. Controls (-) do not look at the model.""".splitlines()
OF_METRICS = """\
*yes*: the better one of two cases has the better score, or the other is refused. In general these are the exact map
and the same map moved to a grey cell; for sanity and mosaics, a map that ignores the network; for robustness, one
that is random; for local linear models, one of another image; for completeness, cost and form, a larger gap, a higher
cost and a flat map.
""".splitlines()
OF_BOTH = """\
The number of pairs of an explainer and a metric of these families that pass: the explainer's own map scores no worse
than the same map moved, or, where a metric does not judge one map by its place, the score is finite. In brackets:
pairs that are refused, by the explainer or by the metric.""".splitlines()


@cache
def hub() -> Hub:
    """Return a hub with the built-in plugins only."""
    return Hub(PluginHost(environ={"XAIHUB_LOAD_PLUGINS": ""}).load())


def family(spec: Any, families: dict[str, str]) -> str:
    """Return the family of a record."""
    return next(name for tag, name in families.items() if tag in spec.tags)


def explained(name: str, kind: str, place: int = 0) -> tuple[Planted, Explainer, Explanation]:
    """Explain a kind's image, on the convolutional network or else on the one with attention.

    Raises:
        XaihubError: The explainer refuses both.
    """
    explainer = hub().get_explainer(name, **SETTINGS.get(name, {}))
    refusal: XaihubError | None = None
    for tokens in (False, True):
        given = planted(kind, place, tokens=tokens)
        try:
            return given, explainer, explainer.explain(given.model, given.image[None])[0]
        except XaihubError as error:
            refusal = refusal or error
    raise refusal or AssertionError


def explainer_cell(name: str, kind: str) -> str:
    """Return "yes" if both maps peak on the evidence, or "refused: REASON", "wrong" or "control"."""
    if family(hub().explainers.get(name), EXPLAINERS) == "controls":
        return "control"

    def check() -> str:
        runs = [explained(name, kind, place) for place in (0, 1)]
        return "yes" if all(given.points(found) for given, _, found in runs) else "wrong: the peak is elsewhere"

    return _outcome(check)


def metric_cell(name: str, kind: str) -> str:
    """Return "yes" if the better one of two cases has the better score, or "refused: REASON" or "wrong: SCORES"."""
    return _outcome(lambda: _compared(name, *_pair(name, kind)))


def _pair(name: str, kind: str) -> tuple[Case, Case]:
    """Return a case that is better in what a metric measures, and one that is worse."""
    given, group = planted(kind), family(hub().metrics.get(name), METRICS)
    scene = given.scene()
    if group == "local linear":
        lime = hub().get_explainer("lime", **SETTINGS["lime"])
        (other,) = lime.explain(given.model, image_of(PLACES[1], 1)[None], scene.target.fixed())
        found = case(lime, scene)
        return found, replace(found, explanation=other, memory=type(found.memory)())
    good = changed(case(Exact(), scene), completeness_gap=0.0)
    good.explanation = replace(good.explanation, sets=(PixelSet(mask=given.truth),))
    worse: dict[str, Callable[[], Case]] = {
        "sanity": lambda: case(Blind(), scene),
        "robustness": lambda: case(Noise(), scene),
        "completeness": lambda: changed(good, completeness_gap=1.0),
        "form of the map": lambda: changed(good, lambda values: values.abs() + values.abs().max()),
        "cost": lambda: changed(good, forward_passes=200, seconds=60.0),
    }
    if "positive-evidence" in hub().metrics.get(name).tags:  # it reads the end of the order only
        return good, changed(good, torch.neg)
    if hub().metrics.get(name).load().needs_pool and group == "localisation":  # it explains mosaics
        return good, case(Blind(), scene)
    return good, worse.get(group, lambda: changed(good, moved))()


def _compared(name: str, good: Case, bad: Case, *, least: float = EPSILON) -> str:
    metric, higher = hub().get_metric(name, **SETTINGS.get(name, {})), hub().metrics.get(name).higher_is_better
    better = metric.measure(good)[0].value
    try:
        worse = metric.measure(bad)[0].value
    except XaihubError:  # it measures the good case only
        return "yes"
    difference = (better - worse) * (1 if higher else -1)
    return "yes" if difference > least else f"wrong: {better:.4g} instead of {worse:.4g}"


def pair_cell(kind: str, explainer: str, metric: str) -> str:
    """Return the outcome of a metric on an explainer's own map: no worse than moved, if it depends on the place."""

    def check() -> str:
        found = _case(explainer, kind)
        if _placed(metric):
            return _compared(metric, found, changed(found, moved), least=-EPSILON)
        value = hub().get_metric(metric, **SETTINGS.get(metric, {})).measure(found)[0].value
        return "yes" if math.isfinite(value) else f"wrong: {value}"

    return _outcome(check)


def _placed(metric: str) -> bool:
    """Whether a metric measures one map by where it is high."""
    spec = hub().metrics.get(metric)
    alone = "positive-evidence" not in spec.tags and not spec.load().needs_pool and metric not in SETTINGS
    return alone and family(spec, METRICS) in PLACED


@cache
def _case(explainer: str, kind: str) -> Case:
    given, method, found = explained(explainer, kind)
    return Case(scene=given.scene(), explanation=found, explainer=method)


def _outcome(check: Callable[[], str]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check()
    except XaihubError as error:
        return f"refused: {_general(error.message)}"
    except Exception as error:  # any other exception is a result here
        return f"error: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _general(text: str) -> str:
    """Remove what differs between machines."""
    text = text.replace("model 'planted'", "the model").replace("'planted'", "the model")
    return re.sub(r"\d+(\.\d+)?%|\d+\.\d+", "…", text)


class Reasons:
    """Numbers of reasons, in the order in which they are met."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def cell(self, outcome: str) -> str:
        """Return a cell of a table."""
        verdict, _, reason = outcome.partition(": ")
        mark = {"yes": "yes", "refused": "no", "control": "-"}.get(verdict, f"**{verdict}**")
        return f"{mark} [{self.known.setdefault(reason, len(self.known) + 1)}]" if reason else mark


def table(first: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    head = list(first)
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def together(outcomes: list[str]) -> str:
    """Return the cell of two families: how many pairs pass, and how many are refused."""
    wrong = [one for one in outcomes if not one.startswith(("yes", "refused"))]
    passed, refused = outcomes.count("yes"), len(outcomes) - outcomes.count("yes") - len(wrong)
    shown = f"{passed}" + (f" ({refused} no)" if refused else "") if passed else "no"
    return shown + (f" **{len(wrong)} wrong**" if wrong else "")


def main() -> int:
    """Run everything, write the page, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-pairs", action="store_true", help="leave the third table out, and write no page")
    without = parser.parse_args().no_pairs
    torch.set_num_threads(1)
    reasons, kinds = Reasons(), list(KINDS)
    explainers = sorted(hub().explainers, key=lambda spec: (family(spec, EXPLAINERS), spec.name))
    metrics = sorted(hub().metrics, key=lambda spec: (family(spec, METRICS), spec.name))
    bad: list[str] = []

    def row(spec: Any, group: str, check: Callable[[str, str], str]) -> list[str]:
        outcomes = [check(spec.name, kind) for kind in kinds]
        found = [f"{spec.name} on {kind}: {one}" for kind, one in zip(kinds, outcomes, strict=True) if _bad(one)]
        bad.extend(found)
        sys.stderr.write("".join(f"{line}\n" for line in [spec.name, *found]))
        return [group, f"`{spec.name}`", *map(reasons.cell, outcomes)]

    rows = [row(spec, family(spec, EXPLAINERS), explainer_cell) for spec in explainers]
    first = list(table(("family", "explainer", *kinds), rows))
    rows = [row(spec, family(spec, METRICS), metric_cell) for spec in metrics]
    second = list(table(("family", "metric", *kinds), rows))
    if not without:
        third = list(_third(explainers, metrics, bad))
        PAGE.write_text("\n".join([*_page(first, second, third, reasons), ""]), encoding="utf-8")
    return 1 if bad else 0


def _bad(outcome: str) -> bool:
    return outcome.startswith(("wrong", "error"))


def _third(explainers: list[Any], metrics: list[Any], bad: list[str]) -> Iterator[str]:
    columns, rows = dict.fromkeys(family(spec, METRICS) for spec in metrics), []
    for kind in KINDS:
        for group in dict.fromkeys(family(spec, EXPLAINERS) for spec in explainers):
            if group == "controls":
                continue
            cells = []
            for column in columns:
                outcomes = []
                for one in (spec.name for spec in explainers if family(spec, EXPLAINERS) == group):
                    for other in (spec.name for spec in metrics if family(spec, METRICS) == column):
                        outcomes.append(pair_cell(kind, one, other))
                        if _bad(outcomes[-1]):
                            bad.append(f"{kind}, {one}, {other}: {outcomes[-1]}")
                            sys.stderr.write(f"{bad[-1]}\n")
                cells.append(together(outcomes))
            rows.append([kind, group, *cells])
            sys.stderr.write(f"{kind}, {group}: {', '.join(cells)}\n")
    yield from table(("output", "explainers", *columns), rows)


def _page(first: list[str], second: list[str], third: list[str], reasons: Reasons) -> list[str]:
    return [*INTRODUCTION, "", "## Explainers", "", *OF_EXPLAINERS, "", *first, "", "## Metrics", "", *OF_METRICS, "",
            *second, "", "## Both", "", *OF_BOTH, "", *third, "", "## Reasons", "",
            *[f"{number}. {reason}" for reason, number in reasons.known.items()]]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
