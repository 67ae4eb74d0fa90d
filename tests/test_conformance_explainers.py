"""Explainers with one fault each: the corresponding check fails, and its advice says what to change."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from torch import Tensor

from tests import bad_explainers as bad
from tests import bad_guests as guest
from tests.bad_explainers import Good
from xaihub import Explainer, ExplainerSpec, Meta, Model, Passes, ResolvedTarget
from xaihub.testing.catalogue import CheckResult, run
from xaihub.testing.explainer_subject import ExplainerSubject
from xaihub.testing.kit import checks

ELSEWHERE = "every_parameter_has_an_effect"  # tested in test_parameter_effects.py


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that leaves threads behind is waited for after each of many calls."""
    monkeypatch.setattr("xaihub.notices.process.GRACE", 0.002)
    # Fewer calls and passes show what these methods leave behind; the built-in ones are checked with the usual numbers.
    monkeypatch.setattr("xaihub.testing.explainer_cost.SECONDS", 0)
    monkeypatch.setattr("xaihub.testing.explainer_cost.MOST_TIMES", 8)


def record(**more: Any) -> ExplainerSpec:
    return ExplainerSpec(
        **{"name": "bad", "summary": "Bad.", "cost": "1 forward pass", "needs": ("gradients",), **more}
    )


# (explainer, its record, the check that must catch it, what the advice must say)
BAD: list[tuple[type[Explainer], ExplainerSpec | None, str, str]] = [
    (bad.Works, None, "constructor_only_stores", "uses its arguments"),
    (bad.TakesPositions, None, "constructor_only_stores", "put '*' before the first argument"),
    (bad.SaysNothing, None, "constructor_only_stores", 'Meta(description="...")'),
    (bad.BreaksItsLimits, None, "constructor_only_stores", "change the default or its limits"),
    (bad.KeepsMore, None, "constructor_only_stores", "also stores 'cache'"),
    (bad.KeepsMoreInPublic, None, "constructor_only_stores", "declare private state as `_name: T = field("),
    (bad.KeepsHiddenState, None, "constructor_only_stores", "also stores '_cache'"),
    (bad.DescribesNothing, None, "constructor_only_stores", "the parameter 'samples' has no description"),
    (bad.HalfSize, None, "shape_is_that_of_the_input", "(2, 3, 32, 32) for inputs (2, 3, 64, 64): return"),
    (bad.NoTensor, None, "shape_is_that_of_the_input", "returned ndarray instead of a tensor"),
    (bad.DividesByNothing, None, "values_are_finite", "avoid divisions by 0"),
    (guest.SwitchesGradientsOn, None, "model_is_left_as_found", "changed requires_grad of"),
    (guest.CountsBatches, None, "model_is_left_as_found", "num_batches_tracked': undo every change"),
    (guest.LeavesAHook, None, "model_is_left_as_found", "left hooks on 'the network'"),
    (guest.TrainsInstead, None, "model_is_left_as_found", "changed the setting 'training' of"),
    (guest.CleansUpInTheLastLine, None, "model_is_left_as_found_after_an_error", "not in a last line"),
    (guest.ClampsInPlace, None, "input_is_left_alone", "work on a copy"),
    (bad.OwnRandomness, None, "same_seed_same_map", "global generator"),
    (bad.RemembersTheFirst, None, "same_seed_same_map", "keep no state on the instance"),
    (bad.LooksAtTheBatch, None, "batch_equals_singles", "compute each row independently"),
    (bad.HiddenRandomness, None, "batch_equals_singles", "set `stochastic = True`"),
    (bad.NoisyFirst, None, "first_pass_is_plain", "drop `plain_first`"),
    (bad.TakesTheMaximum, None, "depends_on_the_target", "explain `target.score(logits)`"),
    (bad.ClaimsNoClass, None, "depends_on_the_target", "drop `class_agnostic`"),
    (bad.NeverAsks, None, "depends_on_the_weights", "compute the map from the network's outputs"),
    (bad.OnlyScalesTheImage, None, "depends_on_the_weights", "(correlations 1.0000, 1.0000, 1.0000)"),
    (bad.NoConvolutions, None, "works_on_a_cnn", "on a convolutional network it raised KeyError"),
    (bad.NoTokens, None, "works_on_a_vit", "on a vision transformer it raised KeyError"),
    (bad.RefusesWithoutAWord, None, "works_on_a_vit", "name in the refusal what the network lacks"),
    (bad.NoChannelsLast, None, "works_with_channels_last", "`Layer.to_grid`"),
    (
        bad.RefusesAll,
        None,
        "works_on_a_network",
        "another size), so nothing else was checked: give the class a static method",
    ),
    (guest.AllAtOnce, None, "memory_is_bounded", "split the work into batches"),
    (guest.KeepsEverything, None, "memory_is_bounded", "batch by batch"),
    (guest.OneTooMany, None, "keeps_to_its_budget", "the parameter 'budget' declares 8 forward passes, but it used 9"),
    (guest.TwiceTheCost, record(cost="samples forward passes"), "keeps_to_its_budget", "correct the record's `cost`"),
    (guest.Miscounts, None, "spends_the_budget_it_takes", "with a budget of 128 passes it used 768"),
    (Good, record(cost=""), "record_is_complete", "its record has no cost"),
    (Good, record(needs=("black-box",)), "record_is_complete", 'give needs=("gradients",)'),
    (bad.NoGap, None, "values_are_complete", "completeness_gap=..."),
    (bad.WrongSum, None, "values_are_complete", "drop `completeness`"),
    (guest.Hoards, None, "nothing_is_left_behind", "more tensors: keep nothing between calls"),
    (guest.HoardsArrays, None, "nothing_is_left_behind", "KiB of arrays and other objects: keep nothing"),
    (guest.StacksAtTheEnd, None, "memory_is_bounded", "each further pass keeps"),
    (guest.SwapsReLU6, None, "model_is_left_as_found", "`attribute` on 'tiny_mixed' replaced the modules"),
    (guest.PatchesAClass, None, "model_is_left_as_found", "changed the class of 'features.2.2'"),
    (guest.LeavesAThread, None, "process_is_left_as_found", "still runs): undo every change"),
    (guest.RaisesTheRecursionLimit, None, "process_is_left_as_found", "the recursion limit (from"),
    (guest.ChangesTheFolder, None, "process_is_left_as_found", "the working directory (from"),
    (guest.SetsTheDtype, None, "process_is_left_as_found", "torch's precision of matrix products (from 'highest'"),
    (guest.SeedsInItsConstructor, None, "random_state_is_left_as_found", "it changed torch's random state"),
    (guest.Prints, None, "nothing_is_printed", r"it printed '100 %\n"),
    (bad.NoGELU, None, "works_with_other_activations", "it raised AssertionError"),
    (bad.NoTuples, None, "works_with_structured_outputs", "it raised AssertionError"),
    (bad.NoSecondClass, None, "works_with_one_output", "it raised AssertionError"),
    (bad.NoLabels, None, "works_with_independent_labels", "it raised AssertionError"),
]


IDS = [f"{method.__name__}-{check}" for method, _, check, _ in BAD]
SHOWN = [*{check: method for method, _, check, _ in reversed(BAD)}.values()][::3]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Restore what the explainers above change in the process."""
    folder, limit, precision = Path.cwd(), sys.getrecursionlimit(), torch.get_float32_matmul_precision()
    yield
    os.chdir(folder)
    sys.setrecursionlimit(limit)
    torch.set_float32_matmul_precision(precision)


def failures(subject: ExplainerSubject, *only: str) -> list[CheckResult]:
    results = [run(item, subject, subject.name) for item in checks("explainer", only) if item.name != ELSEWHERE]
    return [result for result in results if result.outcome == "failed"]


def subject_of(method: type[Explainer], spec: ExplainerSpec | None) -> ExplainerSubject:
    few = {"budget": 8} if method is guest.OneTooMany else {}
    return ExplainerSubject(method, spec=spec, parameters=few)


@pytest.mark.parametrize(("method", "spec", "check", "advice"), BAD, ids=IDS)
def test_a_bad_explainer_fails_its_check_with_advice(
    method: type[Explainer], spec: ExplainerSpec | None, check: str, advice: str
) -> None:
    (result,) = failures(subject_of(method, spec), check)

    assert advice in result.advice
    assert re.fullmatch(r"[^\n]+[^.\n]", result.advice)


# One for every third check in every run of the tests, all others in the slow ones.
@pytest.mark.parametrize(
    ("method", "spec", "check"),
    [
        pytest.param(*row[:3], marks=() if row[0] in SHOWN else pytest.mark.slow, id=name)
        for row, name in zip(BAD, IDS, strict=True)
    ],
)
def test_a_bad_explainer_fails_no_other_check(method: type[Explainer], spec: ExplainerSpec | None, check: str) -> None:
    assert [result.check for result in failures(subject_of(method, spec))] == [check]


@pytest.mark.parametrize("method", [bad.DeclaresItsParameters, bad.InheritsParameters, bad.WritesItsConstructor])
def test_both_ways_of_declaring_parameters_are_accepted(method: type[Explainer]) -> None:
    (item,) = checks("explainer", ["constructor_only_stores"])

    assert run(item, ExplainerSubject(method), "it").outcome == "passed"


def test_a_parameter_needs_a_default() -> None:
    (item,) = checks("explainer", ["constructor_only_stores"])

    assert "the parameter 'samples' has no default" in run(item, ExplainerSubject(bad.NeedsAParameter), "it").advice


@pytest.mark.parametrize("method", [Good, bad.BringsItsOwn])
def test_a_good_explainer_fails_none(method: type[Explainer]) -> None:
    assert failures(ExplainerSubject(method)) == []


def test_a_parameter_that_is_set_by_hand_does_not_contradict_the_budgets_of_the_kit() -> None:
    class Repeats(Good):
        repeats: Annotated[int, Meta(ge=1, description="Passes."), Passes()] = 4

        def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
            with torch.no_grad():
                for _ in range(self.repeats):
                    score = target.score(model(inputs))
            return inputs * score[:, None, None, None]

    (item,) = checks("explainer", ["spends_the_budget_it_takes"])
    for given in ({}, {"repeats": 3}):
        assert run(item, ExplainerSubject(Repeats, parameters=given), "it").outcome == "passed"


def test_the_example_model_replaces_networks_that_the_explainer_refuses() -> None:
    subject = ExplainerSubject(bad.BringsItsOwn)
    outcomes = {item.name: run(item, subject, "own").outcome for item in checks("explainer")}

    assert {name for name, outcome in outcomes.items() if outcome == "refused"} == {
        "works_on_a_cnn",
        "works_on_a_vit",
        "works_with_channels_last",
        "works_with_other_activations",
        "works_with_structured_outputs",
        "works_with_one_output",
        "works_with_independent_labels",
    }


def test_every_check_of_explainers_catches_something() -> None:
    assert {check for _, _, check, _ in BAD} == {item.name for item in checks("explainer")} - {ELSEWHERE}
