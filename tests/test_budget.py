"""Budgets: every explainer that declares its number of passes keeps to one; the others are named."""

from __future__ import annotations

import signal
from typing import Annotated, Any

import pytest
import torch
from torch import Tensor

import xaihub
from tests.networks import SIDE, Net, model, noise
from xaihub import Attribution, Explainer, Explanation, Meta, Passes, Runtime, rounds
from xaihub.api.compare import compare_models
from xaihub.errors import ParameterError
from xaihub.explainers.budget import Budget, budgeted, of_passes, shortfall, within
from xaihub.masking import coalition_scores, make_features, make_removal
from xaihub.specs import ExplainerSpec

SMALL: dict[str, dict[str, Any]] = {
    name: {"features": "grid:7"} for name in ("lime", "kernel_shap", "shap", "shapley_values", "first_principles")
}
NEEDED = {"rise", "lime", "kernel_shap", "shapley_values", "first_principles"}


def _declared() -> dict[str, ExplainerSpec]:
    hub = xaihub.Hub()
    builtin = [spec for spec in hub.explainers if hub.get_explainer(spec.name).origin.builtin]
    return {spec.name: spec for spec in builtin if of_passes(spec.load()) is not None}


DECLARED = _declared()


def test_the_perturbation_methods_declare_their_number_of_passes() -> None:
    assert set(DECLARED) >= NEEDED


@pytest.mark.parametrize("passes", [120, 301])
@pytest.mark.parametrize("name", DECLARED)
def test_a_budget_of_passes_is_kept_by_the_pass_counter(name: str, passes: int) -> None:
    explainer = xaihub.get_explainer(name, **SMALL.get(name, {}))
    budget = Budget(passes=passes)
    record = within(explainer, budget).explain(model(Net), noise(1))[0].metadata
    spent = record["forward_passes"] + 2 * record["backward_passes"]
    marked = of_passes(type(explainer))
    assert marked is not None
    assert marked.passes is not None
    slack = max(0.02 * passes, marked.passes.each)
    assert spent <= passes + slack
    assert spent >= passes - slack or marked.passes.maximum
    assert record["budget"] == f"{passes} passes"
    assert explainer.granted == Budget()  # the explainer itself is unchanged
    assert ("maximum" in shortfall(explainer, budget)) == marked.passes.maximum


def test_explainers_that_cannot_choose_are_named() -> None:
    said: list[str] = []
    gradcam, occlusion = map(xaihub.get_explainer, ("gradcam", "occlusion"))
    assert budgeted([gradcam, occlusion], "500", said.append) == [gradcam, occlusion]
    assert [line.split()[0] for line in said] == ["gradcam", "occlusion"]
    assert "cannot choose its number of passes" in said[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500", Budget(passes=500)), (500, Budget(passes=500)), ("10s", Budget(seconds=10)),
        ("2.5 s", Budget(seconds=2.5)), ("2m", Budget(seconds=120)), (Budget(passes=3), Budget(passes=3)),
    ],
)  # fmt: skip
def test_budgets_are_read(text: Any, expected: Budget) -> None:
    assert Budget.parse(text) == expected
    assert Budget.parse(expected.typed) == expected


@pytest.mark.parametrize("text", ["0", "-5", "1.5", "ten", "", "10 h", "0s"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="budget cannot be"):
        Budget.parse(text)


def test_a_parameter_that_contradicts_the_budget_is_refused() -> None:
    explainer = xaihub.get_explainer("rise", masks=300)
    with pytest.raises(ParameterError, match="budget of 200 passes and masks=300 of rise contradict"):
        within(explainer, Budget(passes=200))
    assert within(explainer, Budget(passes=300)).parameters["tolerance"] == 0
    with pytest.raises(ParameterError, match="budget"):
        within(xaihub.get_explainer("first_principles"), Budget(passes=3))


class Slow(Net):
    """Each row takes 20 ms of a clock of its own, later ones twice as long."""

    clock = 0.0
    rows = 0

    def forward(self, x: Tensor) -> Tensor:
        Slow.rows += len(x)
        Slow.clock += 0.02 * len(x) * (2 if Slow.rows > 300 else 1)
        return super().forward(x)


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_a_budget_of_seconds_gives_maps_that_improve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xaihub.explainers.budget.now", lambda: Slow.clock)
    shown: list[Explanation] = []
    network = model(Slow)
    network.runtime = Runtime(preview=shown.append)
    explainer = within(xaihub.get_explainer(name, **SMALL.get(name, {})), Budget(seconds=10.0))
    Slow.rows, started = 0, Slow.clock
    last = explainer.explain(network, noise(1))[0]
    assert 5 < Slow.clock - started < 11  # the model became slower than it seemed at first
    assert last.metadata["budget"] == "10 s"
    assert shown[0].metadata["seconds"] < 4
    counts = [one.metadata["forward_passes"] for one in (*shown, last)]
    assert counts == sorted(counts)
    assert counts[0] <= 0.6 * counts[-1]
    assert all(one.values.shape == last.values.shape for one in shown)


def test_rounds_without_seconds_are_of_equal_size() -> None:
    assert list(rounds(100)) == [100]
    assert list(rounds(100, checks=4)) == [25, 50, 75, 100]
    assert list(rounds(2, checks=8)) == [1, 2]


class Third(Explainer):
    """A method of a third party, which takes part by one mark."""

    queries: Annotated[int, Meta(ge=1, description="Random coalitions."), Passes(extra=1)] = 40

    def attribute(self, model: xaihub.Model, inputs: Tensor, target: xaihub.ResolvedTarget) -> Attribution:
        features = make_features("grid:4", model, inputs[0])
        shown = torch.cat([torch.ones(1, 16), (torch.rand(self.queries, 16) < 0.5).float()])
        removal = make_removal("zero", model, inputs[0])
        scores = coalition_scores(model, inputs[0], features, shown, removal=removal, score=target.score)
        return Attribution(values=features.spread((scores @ shown) / len(shown))[None, None])


def test_third_parties_take_part_by_one_mark() -> None:
    third = within(Third(), Budget(passes=50))
    assert third.parameters == {"queries": 49}
    assert third.explain(model(Net), noise(1))[0].metadata["forward_passes"] == 50


def test_explain_takes_a_budget() -> None:
    image = torch.rand(SIDE, SIDE, 3).mul(255).byte().numpy()
    found = xaihub.explain(image, model=model(Net), explainer="rise", budget=96)
    assert found.metadata["forward_passes"] == 96
    assert found.metadata["parameters"]["masks"] == 96


RAN: list[str] = []


class Quick(Explainer):
    def attribute(self, model: xaihub.Model, inputs: Tensor, target: xaihub.ResolvedTarget) -> Tensor:
        RAN.append(self.name)
        return inputs[:, :1] * target.score(model(inputs))[:, None, None, None]


class Long(Quick):
    queries: Annotated[int, Meta(ge=1, description="Passes."), Passes()] = 40


class Stopped(Quick):
    queries: Annotated[int, Meta(ge=1, description="Passes."), Passes()] = 50

    def attribute(self, model: xaihub.Model, inputs: Tensor, target: xaihub.ResolvedTarget) -> Tensor:
        signal.raise_signal(signal.SIGINT)  # as Ctrl-C does
        return inputs[:, :1]


def test_compare_runs_fast_methods_first_and_keeps_what_is_finished() -> None:
    methods = [Stopped(), Long(), Quick()]
    for method in methods:
        method.name = type(method).__name__
    stops: list[bool] = []
    RAN.clear()
    rows, failures = compare_models(
        [model(Net)], methods, str(xaihub.sample_photo()), timeout=0, interrupted=lambda: stops.append(True)
    )
    assert stops == [True]
    assert RAN == ["Quick", "Long"]
    assert [one.explainer for one in rows[0]] == ["Long", "Quick"]  # in the order that was asked for
    assert not failures
    with pytest.raises(KeyboardInterrupt):
        compare_models([model(Net)], methods, str(xaihub.sample_photo()), timeout=0)
