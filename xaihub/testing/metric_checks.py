"""Checks of metrics: their declarations are correct, and they prefer the true map."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from xaihub.errors import ParameterError
from xaihub.metric import Case, Metric
from xaihub.params import convert
from xaihub.testing.catalogue import CheckFailed, NotApplicable, Refused, applies, check, require, require_record
from xaihub.testing.metric_subject import KINDS, MetricSubject
from xaihub.testing.planted import at_corner, planted_case, planted_scenes

# By tag: what a metric measures, if not how well a map localises the evidence.
ELSEWHERE = {
    "completeness": "sums",
    "cost": "cost",
    "map": "the map's form",
    "robustness": "robustness",
    "sanity": "randomisation",
    "sufficiency": "sets of pixels",
}
PLAIN = "positive-evidence"
SCENES = 4
# The order of two wrong maps may be reversed by a tenth of their distance to the true map, because it is random.
SLACK = 0.1
EPSILON = 1e-6
# The fraction of the range between best and worst map by which a constant map's value may vary between scenes.
TIES = 0.2


@check("metric", advice="fill in `MetricSpec(summary=..., formula=..., cost=..., higher_is_better=...)`")
def record_is_complete(subject: MetricSubject) -> None:
    """The record has a summary, a formula, a cost and bounds."""
    spec = require_record(subject.spec)
    require(bool(spec.formula), "its record has no formula")
    low, high = spec.bounds
    require(low < high, f"its bounds are {low:g} and {high:g}", advice="give bounds=(lowest, highest)")


@check("metric", advice="give the class a static method `analytic_cases()` that returns cases with their known values")
def works_on_a_case(subject: MetricSubject) -> None:
    """It scores one of the kit's cases, or one of its `analytic_cases`."""
    try:
        _ = subject.homes
    except Refused as error:
        require(hasattr(subject.method, "analytic_cases"), f"{error}, so nothing else was checked")


@check("metric", advice="correct the formula, or `MetricSpec.bounds`")
def value_is_within_bounds(subject: MetricSubject) -> None:
    """The values of true, wrong and noisy maps are within the declared bounds."""
    values = subject.values
    if subject.spec is None:
        raise NotApplicable("it is not registered, so it declares no bounds")
    low, high = subject.spec.bounds
    applies(low < high, "its record has no bounds")
    for value in values:
        require(low - EPSILON <= value <= high + EPSILON, f"a value is {value:g}, outside [{low:g}, {high:g}]")


@check("metric", advice="reverse `higher_is_better`, correct the formula, or tag the record with what it measures")
def truth_scores_best(subject: MetricSubject) -> None:
    """On planted evidence, the true map scores better than a shuffled map, and that one better than an inverted map."""
    purpose = [text for tag, text in ELSEWHERE.items() if tag in subject.tags]
    applies(not purpose, f"it is tagged as measuring {' and '.join(purpose)}")
    higher = subject.spec is None or subject.spec.higher_is_better
    applies(higher is not None, "it declares no direction")
    applies(subject.homes != ["explained"], "it only scores maps of certain methods")
    sign = 1 if higher else -1
    metric = subject.make_default()
    scenes = planted_scenes(SCENES)
    scenes = scenes[::2] if PLAIN in subject.tags else scenes  # every second scene has evidence against the class
    means = []
    for kind in KINDS:
        outcomes = [subject.try_on(planted_case(scene, kind), metric) for scene in scenes]
        numbers = [outcome for outcome in outcomes if isinstance(outcome, float)]
        if not numbers:
            raise Refused(f"it refuses the {kind} map: {outcomes[0]}")
        means.append(sum(numbers) / len(numbers))
    oracle, shuffled, inverted = (sign * value for value in means)
    shown = " ".join(f"{kind} {value:.3g}" for kind, value in zip(KINDS, means, strict=True))
    applies(max(means) - min(means) > EPSILON, f"it does not distinguish maps of planted evidence ({shown})")
    require(oracle > shuffled, f"a shuffled map scores no worse than the true map ({shown})")
    slack = SLACK * (oracle - shuffled)
    require(inverted <= shuffled + slack, f"an inverted map scores better than a shuffled one ({shown})")


@check("metric", advice="compute the value from `case.heat` or `case.explanation`")
def value_depends_on_the_map(subject: MetricSubject) -> None:
    """Different maps have different values."""
    applies("cost" not in subject.tags, "it is tagged as measuring cost")
    values = subject.values
    applies(subject.homes != ["explained"], "it only scores maps of certain methods")
    require(len(values) < 2 or max(values) - min(values) > EPSILON, f"every map scores {values[0]:g}")


@check("metric", advice="correct the formula, or the case's expected value")
def analytic_cases_hold(subject: MetricSubject) -> None:
    """The cases from `analytic_cases() -> Iterable[tuple[Case, float]]` have their known values."""
    applies(hasattr(subject.method, "analytic_cases"), "the class has no `analytic_cases`")
    cases: Iterable[tuple[Case, float]] = subject.method.analytic_cases()  # type: ignore[attr-defined]
    for number, (case, expected) in enumerate(cases):
        value = subject.try_on(case, subject.make_default())
        if isinstance(value, str):
            raise CheckFailed(f"it refuses case {number} ({value})")
        holds = math.isclose(value, expected, rel_tol=1e-4, abs_tol=1e-5)
        require(holds, f"case {number} scores {value:.6g} instead of {expected:.6g}")


@check("metric", advice="draw random numbers from torch's global generator, which is seeded, or from one of your own")
def same_seed_same_value(subject: MetricSubject) -> None:
    """Two measurements with the same seed give the same value, whatever random numbers are drawn in between."""
    applies("cost" not in subject.tags, "it is tagged as measuring cost, which may be time")
    first, second = (subject.measure(subject.cases()[0]) for _ in range(2))
    torch.rand(3)
    require(first == second, f"two measurements with the same seed are {first:.6g} and {second:.6g}")


@check("metric", advice="let the keys of `once` include every parameter and seed that the result depends on")
def shared_memory_is_keyed(subject: MetricSubject) -> None:
    """Results stored in `scene.memory` or `case.memory` are not reused for another map, seed or parameter."""
    applies("cost" not in subject.tags, "it is tagged as measuring cost, which may be time")
    others = _variations(subject)
    for scenes in subject.homes:
        alone = subject.measure(subject.cases(scenes)[0])
        case = subject.cases(scenes)[0]
        for other in others:
            subject.try_on(replace(case, seed=5, memory=type(case.memory)()), other)
            subject.try_on(case, other)
        if scenes == "planted":
            subject.try_on(planted_case(case.scene, "shuffled"))
        value = subject.measure(case)
        holds = math.isclose(value, alone, rel_tol=1e-6, abs_tol=1e-9)
        require(holds, f"its value is {alone:.6g} alone, but {value:.6g} after other measurements of the scene")


@check("metric", advice="clone what you change, and undo changes of the network in a `with` block or in `finally`")
def nothing_is_changed(subject: MetricSubject) -> None:
    """The network, the image, the mask and the map are unchanged afterwards."""
    changes: list[str] = []
    value = subject.try_on(subject.any_case(), changes=changes)
    require(not changes, "; ".join(changes))
    if isinstance(value, str):
        raise Refused(value)


@check("metric", advice="divide by the map's own range or sum, or drop the tag `scale-invariant`")
def scale_has_no_effect(subject: MetricSubject) -> None:
    """If tagged `scale-invariant`, it gives a map and three times that map the same value."""
    applies("scale-invariant" in subject.tags, "it is not tagged `scale-invariant`")
    first = subject.measure(subject.cases()[0])
    case = subject.cases()[0]
    case.explanation.values.mul_(3)
    second = subject.measure(case)
    require(math.isclose(first, second, rel_tol=1e-4), f"a map scores {first:.6g}, three times the map {second:.6g}")


@check("metric", advice="break ties in a fixed pseudo-random order, average them, or drop the tag `order-of-pixels`")
def ties_ignore_scan_order(subject: MetricSubject) -> None:
    """If tagged `order-of-pixels`, it gives a constant map the same value wherever the evidence lies."""
    applies("order-of-pixels" in subject.tags, "it is not tagged `order-of-pixels`")
    metric = subject.make_default()
    scene = planted_scenes(1)[0]
    best, worst = (subject.measure(planted_case(scene, kind), metric) for kind in ("oracle", "inverted"))
    outcomes = []
    for bottom, right in product((False, True), repeat=2):
        case = planted_case(at_corner(scene, bottom=bottom, right=right))
        case.explanation.values.fill_(1)
        outcomes.append(subject.try_on(case, metric))
    values = [outcome for outcome in outcomes if isinstance(outcome, float)]
    applies(bool(values), f"it refuses a constant map: {outcomes[0]}")
    spread = max(values) - min(values)
    found = f"a constant map scores from {min(values):.3g} to {max(values):.3g}, depending on the evidence's corner"
    require(spread <= TIES * abs(best - worst), found)


def _variations(subject: MetricSubject) -> list[Metric]:
    """Return copies of the metric with one parameter changed, for parameters that are numbers or known choices."""
    made: list[Metric] = []
    for name, value in subject.make().parameters.items():
        changed: list[Any] = []
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            changed = [value * 2, value + 1]
        elif name == "output":
            changed = [item for item in ("logit", "probability") if item != value]
        elif name == "baseline":
            changed = ["white"]
        for candidate in changed[:2]:
            try:
                made.append(subject.make(**convert(subject.method, {name: candidate})))
            except ParameterError:
                continue
            break
    return made
