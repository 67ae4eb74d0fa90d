"""Objectives and baselines with one fault each: the corresponding check fails, and its advice says what to change."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from xaihub import BaselineSpec, Finished, Losses, Model, ModelError, Objective, ObjectiveSpec, Step
from xaihub.masking import Fill, Removal
from xaihub.testing.baseline_subject import BaselineSubject
from xaihub.testing.catalogue import run
from xaihub.testing.kit import checks
from xaihub.testing.objective_subject import ObjectiveSubject

ELSEWHERE = "every_parameter_has_an_effect"  # tested in test_parameter_effects.py


class Good(Objective):
    """Cross-entropy."""

    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        logits = network(inputs)
        return Losses(terms={"cross_entropy": F.cross_entropy(logits, labels)}, logits=logits)


class NoTensor(Good):
    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        found = super().loss(network, inputs, labels, step)
        return Losses(terms={**found.terms, "penalty": found.logits.square().mean(1)[:1]}, logits=found.logits)


class Detached(Good):
    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        found = super().loss(network, inputs, labels, step)
        return Losses(terms={"cross_entropy": found.terms["cross_entropy"].detach()}, logits=found.logits)


class Climbs(Good):
    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        logits = network(inputs)
        wrong = F.cross_entropy(logits, labels)
        return Losses(terms={"wrong": 2 * wrong.detach() - wrong}, logits=logits)


class OwnRandomness(Good):
    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(torch.seed() % 2**31))
        return super().loss(network, inputs + noise, labels, step)


class ClampsInPlace(Good):
    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        return super().loss(network, inputs.clamp_(-0.5, 0.5), labels, step)


class KeepsTensors(Good):
    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        self.state["mean"] = inputs.mean()
        return super().loss(network, inputs, labels, step)


class IgnoresClassWeights(Good):
    weighs_classes = True


class SaysWrapped(Good):
    def finish(self, network: nn.Module) -> Finished:
        return Finished(network=nn.Sequential(network), wrapped=False)


class SeedsInItsConstructor(Good):
    def __init__(self) -> None:
        torch.manual_seed(0)


class RefusesAll(Good):
    def wrap(self, model: Model) -> nn.Module:
        raise ModelError(f"{model.name!r} has no gate")


class SetsThePrecision(Good):
    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        torch.set_float32_matmul_precision("high")
        return super().loss(network, inputs, labels, step)


class Prints(Good):
    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        print("step", step.number)  # noqa: T201
        return super().loss(network, inputs, labels, step)


RECORD = ObjectiveSpec(name="bad", summary="Bad.", cost="1 forward and 1 backward pass")
BAD_OBJECTIVES: list[tuple[type[Objective], ObjectiveSpec, str, str]] = [
    (Good, ObjectiveSpec(name="bad", summary="Bad."), "record_is_complete", "its record has no cost"),
    (NoTensor, RECORD, "losses_are_finite", "the term 'penalty' is not a scalar tensor"),
    (Detached, RECORD, "loss_can_be_minimised", "the loss does not depend on the weights: compute every term"),
    (Climbs, RECORD, "loss_can_be_minimised", "12 steps of Adam"),
    (OwnRandomness, RECORD, "same_step_same_loss", "draw random numbers from `step.generator`"),
    (ClampsInPlace, RECORD, "batch_is_left_alone", "the images were changed: clone"),
    (KeepsTensors, RECORD, "result_can_be_saved_and_loaded", "keep JSON types only in `state`"),
    (IgnoresClassWeights, RECORD, "class_weights_are_applied", "the loss does not depend on `class_weights`: compute"),
    (SaysWrapped, RECORD, "result_can_be_saved_and_loaded", "the weights do not fit a new network"),
    (SeedsInItsConstructor, RECORD, "random_state_is_left_as_found", "it changed torch's random state"),
    (SetsThePrecision, RECORD, "process_is_left_as_found", "precision of matrix products"),
    (Prints, RECORD, "nothing_is_printed", "it printed 'step 0"),
]


def failed(kind: Any, subject: Any) -> list[tuple[str, str]]:
    results = [run(item, subject, "bad") for item in checks(kind) if item.name != ELSEWHERE]
    return [(result.check, result.advice) for result in results if result.outcome == "failed"]


@pytest.fixture(autouse=True)
def _restored() -> Any:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("method", "spec", "check", "advice"), BAD_OBJECTIVES, ids=[f"{m.__name__}-{c}" for m, _, c, _ in BAD_OBJECTIVES]
)
def test_a_bad_objective_fails_a_check_with_advice(
    method: type[Objective], spec: ObjectiveSpec, check: str, advice: str
) -> None:
    found = dict(failed("objective", ObjectiveSubject(method, spec=spec)))

    assert advice in found[check]


def test_a_good_objective_fails_none() -> None:
    assert failed("objective", ObjectiveSubject(Good, spec=RECORD)) == []


def test_an_objective_that_refuses_every_network_is_refused_with_its_reason() -> None:
    results = {item.name: run(item, ObjectiveSubject(RefusesAll, spec=RECORD), "bad") for item in checks("objective")}

    assert results["works_on_a_network"].outcome == "refused"
    assert "has no gate" in results["works_on_a_network"].advice


def grey(model: Model, image: Tensor) -> Removal:
    return Fill(torch.zeros_like(image))


class Inverted(Fill):
    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        return super().__call__(model, image, 1 - masks)


class Blind(Fill):
    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        return super().__call__(model, image, torch.ones_like(masks))


class OfTheBatch(Fill):
    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        self.baseline = torch.full_like(image, float(masks.mean()))
        return super().__call__(model, image, masks)


class Halves(Fill):
    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        scores = super().__call__(model, image, masks)
        masks.mul_(0.5)
        return scores


class Empty(Fill):
    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        means = masks.mean((1, 2, 3), keepdim=True)
        return super().__call__(model, image, masks * means / means)


def seeds(model: Model, image: Tensor) -> Removal:
    torch.manual_seed(0)
    return grey(model, image)


def sets_the_precision(model: Model, image: Tensor) -> Removal:
    torch.set_float32_matmul_precision("high")
    return grey(model, image)


class PrintsToo(Fill):
    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        print("masked")  # noqa: T201
        return super().__call__(model, image, masks)


BAD_BASELINES: list[tuple[Any, str, str]] = [
    (lambda model, image: torch.zeros_like(image), "is_a_removal", "it returned Tensor: return an instance"),
    (Inverted, "full_mask_keeps_the_image", "keep pixels where the mask is 1"),
    (Blind, "mask_changes_the_scores", "the same with everything masked: use the mask"),
    (OfTheBatch, "rows_are_independent", "depend on the other masks of its batch"),
    (Halves, "nothing_is_changed", "the masks were changed: clone"),
    (Empty, "scores_are_finite", "some scores are NaN or infinite"),
    (PrintsToo, "nothing_is_printed", "it printed 'masked"),
    (seeds, "random_state_is_left_as_found", "it changed torch's random state"),
    (sets_the_precision, "process_is_left_as_found", "precision of matrix products"),
]


def baseline(monkeypatch: pytest.MonkeyPatch, make: Any, *, summary: str = "Bad.") -> BaselineSubject:
    module = types.ModuleType("a_baseline")
    is_fill = isinstance(make, type)
    module.make = (lambda _model, image: make(torch.zeros_like(image))) if is_fill else make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_baseline", module)
    return BaselineSubject(BaselineSpec(name="bad", target="a_baseline:make", summary=summary))


@pytest.mark.parametrize(("make", "check", "advice"), BAD_BASELINES, ids=[check for _, check, _ in BAD_BASELINES])
def test_a_bad_baseline_fails_a_check_with_advice(
    monkeypatch: pytest.MonkeyPatch, make: Any, check: str, advice: str
) -> None:
    found = dict(failed("baseline", baseline(monkeypatch, make)))

    assert advice in found[check]


def test_a_baseline_needs_a_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    ((found, text),) = failed("baseline", baseline(monkeypatch, grey, summary=""))

    assert found == "record_is_complete"
    assert "summary" in text


def test_every_check_of_objectives_and_baselines_catches_something() -> None:
    objectives, baselines = ({item.name for item in checks(kind)} for kind in ("objective", "baseline"))

    assert {check for _, _, check, _ in BAD_OBJECTIVES} == objectives - {ELSEWHERE, "works_on_a_network"}
    assert {check for _, check, _ in BAD_BASELINES} | {"record_is_complete"} == baselines


def test_a_good_baseline_fails_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failed("baseline", baseline(monkeypatch, grey)) == []
