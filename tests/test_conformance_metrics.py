"""Metrics with one fault each: the corresponding check fails, and its advice says what to change."""

from __future__ import annotations

import threading
from typing import Annotated, Any, ClassVar

import numpy as np
import pytest
import torch

from xaihub import Case, Meta, Metric, MetricRefused, MetricSpec, ParameterError
from xaihub.testing import planted_case, planted_scenes
from xaihub.testing.catalogue import CheckResult, run
from xaihub.testing.kit import checks
from xaihub.testing.metric_subject import MetricSubject

_LAST = threading.Event()  # never set: threads wait for it until their timeout
ELSEWHERE = "every_parameter_has_an_effect"  # tested in test_parameter_effects.py


class Good(Metric):
    """The share of the positive attribution that lies inside the mask."""

    needs_truth: ClassVar[bool] = True

    def score(self, case: Case) -> float:
        heat = case.heat.clamp(min=0)
        return float(heat[case.scene.truth].sum() / heat.sum())

    @classmethod
    def analytic_cases(cls) -> list[tuple[Case, float]]:
        return [(planted_case(scene), 1.0) for scene in planted_scenes(2)]


class Works(Good):
    def __init__(self, *, power: Annotated[float, Meta(gt=0, description="Exponent.")] = 1.0) -> None:
        self.power = float(power)


class Ignores(Good):
    def score(self, case: Case) -> float:
        return 1.0


class KnowsItsCaseWrongly(Good):
    @classmethod
    def analytic_cases(cls) -> list[tuple[Case, float]]:
        return [(planted_case(scene, "inverted"), 1.0) for scene in planted_scenes(1)]


class OwnRandomness(Good):
    def score(self, case: Case) -> float:
        return super().score(case) * (1 - 1e-8 * float(np.random.default_rng().random()))


class ForgetsTheMap(Good):
    """Takes the maximum of the first map that it met for every map of the scene."""

    def score(self, case: Case) -> float:
        heat = case.heat.clamp(min=0)
        cut = case.scene.memory.once("cut", lambda: float(heat.mean()))
        return float((heat[case.scene.truth] > cut).sum() / (heat > cut).sum().clamp(min=1)) * 0.9


class ForgetsAParameter(Good):
    def __init__(self, *, power: Annotated[float, Meta(gt=0, description="Exponent.")] = 1.0) -> None:
        self.power = power

    def score(self, case: Case) -> float:
        heat = case.memory.once("powers", lambda: (1 + case.heat.clamp(min=0)) ** self.power - 1)
        return float(heat[case.scene.truth].sum() / heat.sum()) / (1 + 0.1 * self.power)

    @classmethod
    def analytic_cases(cls) -> list[tuple[Case, float]]:
        return []


class ClampsInPlace(Good):
    def score(self, case: Case) -> float:
        share = super().score(case)
        case.explanation.values.clamp_(max=0)
        return share


class FreezesTheNetwork(Good):
    def score(self, case: Case) -> float:
        with torch.no_grad():
            for weight in case.model.module.parameters():
                weight.mul_(0.5)
        return super().score(case)

    @classmethod
    def analytic_cases(cls) -> list[tuple[Case, float]]:
        return []


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that leaves threads behind is waited for after each of many calls."""
    monkeypatch.setattr("xaihub.notices.process.GRACE", 0.002)


class StartsAThread(Good):
    def score(self, case: Case) -> float:
        threading.Thread(target=_LAST.wait, args=(20,), daemon=True).start()
        return super().score(case)

    @classmethod
    def analytic_cases(cls) -> list[tuple[Case, float]]:
        return []


class SeedsInItsConstructor(Good):
    def __init__(self) -> None:
        torch.manual_seed(0)


class Prints(Good):
    def score(self, case: Case) -> float:
        print("scoring")  # noqa: T201
        return super().score(case)


class MinusOne(Good):
    """Tagged as free of scale, and it is not."""

    def score(self, case: Case) -> float:
        mean = float(case.heat.clamp(min=0)[case.scene.truth].mean())
        return mean / (1 + mean)

    @classmethod
    def analytic_cases(cls) -> list[tuple[Case, float]]:
        return []


class ScansTheRows(Good):
    """The share of the mask among the largest pixels, of which the first in the image come first."""

    def score(self, case: Case) -> float:
        assert case.scene.truth is not None
        inside = case.scene.truth.flatten()
        order = case.heat.flatten().argsort(descending=True, stable=True)
        return float(inside[order[: int(inside.sum())]].float().mean())


class RefusesItsCase(Good):
    def score(self, case: Case) -> float:
        if float(case.heat.min()) == 0:
            raise MetricRefused("the map has zeros")
        return float(case.heat.clamp(min=0)[case.scene.truth].sum() / case.heat.clamp(min=0).sum())


class RefusesAll(Metric):
    def score(self, case: Case) -> float:
        raise MetricRefused("there is nothing to measure")


class TooWide(Good):
    def score(self, case: Case) -> float:
        raise ParameterError("a patch of 100 pixels is larger than the input")


def record(**more: Any) -> MetricSpec:
    known = {"name": "bad", "summary": "Bad.", "formula": "inside / all", "cost": "none", "bounds": (0.0, 1.0)}
    return MetricSpec(**{**known, **more})


# (metric, its record, the check that must catch it, what the advice must say)
BAD: list[tuple[type[Metric], MetricSpec, str, str]] = [
    (Works, record(), "constructor_only_stores", "store each argument under its own name"),
    (Good, record(formula=""), "record_is_complete", "its record has no formula: fill in"),
    (Good, record(bounds=(1.0, 1.0)), "record_is_complete", "give bounds=(lowest, highest)"),
    (Good, record(bounds=(0.0, 0.5)), "value_is_within_bounds", "outside [0, 0.5]: correct the formula, or"),
    (Good, record(higher_is_better=False), "truth_scores_best", "reverse `higher_is_better`"),
    (Ignores, record(), "value_depends_on_the_map", "every map scores 1: compute the value from"),
    (KnowsItsCaseWrongly, record(), "analytic_cases_hold", "instead of 1: correct the formula"),
    (OwnRandomness, record(), "same_seed_same_value", "torch's global generator"),
    (ForgetsAParameter, record(), "shared_memory_is_keyed", "let the keys of `once` include"),
    (ClampsInPlace, record(), "nothing_is_changed", "it changed the map: clone what you change"),
    (FreezesTheNetwork, record(), "nothing_is_changed", "it changed the weight"),
    (
        RefusesAll,
        record(),
        "works_on_a_case",
        "so nothing else was checked: give the class a static method `analytic_cases()`",
    ),
    (StartsAThread, record(), "process_is_left_as_found", "still runs): undo every change"),
    (SeedsInItsConstructor, record(), "random_state_is_left_as_found", "it changed torch's random state"),
    (Prints, record(), "nothing_is_printed", "it printed 'scoring"),
    (RefusesItsCase, record(), "analytic_cases_hold", "it refuses case 0 (the map has zeros)"),
    (
        ScansTheRows,
        record(tags=("order-of-pixels",)),
        "ties_ignore_scan_order",
        "break ties in a fixed pseudo-random order",
    ),
    (MinusOne, record(tags=("scale-invariant",)), "scale_has_no_effect", "drop the tag `scale-invariant`"),
]


def results(subject: MetricSubject) -> list[CheckResult]:
    return [run(item, subject, subject.name) for item in checks("metric") if item.name != ELSEWHERE]


@pytest.mark.parametrize(
    ("method", "spec", "check", "advice"), BAD, ids=[f"{method.__name__}-{check}" for method, _, check, _ in BAD]
)
def test_a_bad_metric_fails_one_check_with_advice(
    method: type[Metric], spec: MetricSpec, check: str, advice: str
) -> None:
    (result,) = [item for item in results(MetricSubject(method, spec=spec)) if item.outcome == "failed"]

    assert result.check == check
    assert advice in result.advice


def test_the_good_metric_behind_them_passes_all_but_the_tags_that_it_does_not_have() -> None:
    outcomes = {item.check: item.outcome for item in results(MetricSubject(Good, spec=record()))}

    assert {outcomes.pop("scale_has_no_effect"), outcomes.pop("ties_ignore_scan_order")} == {"not applicable"}
    assert set(outcomes.values()) == {"passed"}


def test_a_parameter_that_does_not_suit_small_images_is_a_refusal() -> None:
    outcomes = {item.check: item.outcome for item in results(MetricSubject(TooWide, spec=record()))}

    assert outcomes["truth_scores_best"] == outcomes["nothing_is_changed"] == "refused"


def test_every_check_of_metrics_catches_something() -> None:
    assert {check for _, _, check, _ in BAD} == {item.name for item in checks("metric")} - {ELSEWHERE}
