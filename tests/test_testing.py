"""xaihub.testing for authors of plugins: toys, planted evidence, and the decorator."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import xaihub.testing
from xaihub import BaselineSpec, Explainer, Model, ParameterError, Target, hookimpl
from xaihub.errors import UnknownName
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.plugin_tools.conformance import check_plugin
from xaihub.testing import (
    conformance,
    exact_evidence,
    images,
    planted_case,
    planted_scenes,
    tiny_cnn,
    tiny_nhwc,
    tiny_vit,
)
from xaihub.testing.cost import announced
from xaihub.testing.kit import checks

TOYS = {"NCHW": tiny_cnn, "NTC": tiny_vit, "NHWC": tiny_nhwc}


@pytest.mark.parametrize("layout", TOYS)
def test_a_toy_has_the_layout_that_it_is_for_and_8_by_8_cells(layout: str) -> None:
    layer = TOYS[layout]().layer()

    assert (layer.layout, layer.grid) == (layout, (8, 8))


@pytest.mark.parametrize("make", TOYS.values())
def test_a_toy_is_the_same_each_time_and_another_with_another_seed(make: Any) -> None:
    torch.manual_seed(3)
    first = make()
    torch.manual_seed(4)

    assert make().weights_hash == first.weights_hash != make(seed=1).weights_hash
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("make", TOYS.values())
def test_no_bias_and_no_statistic_of_a_toy_is_what_a_fresh_network_has(make: Any) -> None:
    state = make().module.state_dict()
    plain = [name for name, value in state.items() if name.endswith(("bias", "running_mean")) and not value.any()]
    ones = [
        name for name, value in state.items() if name.endswith(("weight", "running_var")) and bool((value == 1).all())
    ]

    assert plain == ones == []


@pytest.mark.parametrize("make", TOYS.values())
def test_a_toys_probabilities_differ_from_image_to_image(make: Any) -> None:
    probabilities = make().predict(images(12, seed=9)).softmax(1)

    assert float(probabilities.max(0).values.max() - probabilities.min(0).values.max()) > 0.2
    assert len(probabilities.argmax(1).unique()) > 1


def literal_evidence(image: Tensor, colour: tuple[float, float, float], scale: float) -> Tensor:
    """The excess of a colour over its threshold, pixel by pixel."""
    found = torch.zeros(image.shape[1:])
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            amount = sum(colour[c] * float(image[c, row, column]) for c in range(3))
            found[row, column] = scale * max(0.0, amount - 1.2)
    return found


def test_planted_evidence_is_what_each_pixel_adds_to_the_score() -> None:
    scene = planted_scenes(2)[1]
    exact = exact_evidence(scene.image[None], scene.target)[0, 0]

    assert torch.allclose(exact, literal_evidence(scene.image, (-0.5, 1.0, -0.5), 4 / (0.8 * 400)), atol=1e-6)
    assert float(exact.sum()) == pytest.approx(float(scene.logits[1]), rel=1e-5)


def test_hiding_a_pixel_takes_away_its_evidence_whatever_else_is_hidden() -> None:
    scene = planted_scenes(1)[0]
    exact = exact_evidence(scene.image[None], scene.target)[0, 0]
    generator = torch.Generator().manual_seed(0)
    shown = torch.rand(20, 1, 64, 64, generator=generator) < 0.5

    scores = scene.model.predict(scene.image * shown)[:, 0]

    assert torch.allclose(scores, (exact * shown[:, 0]).sum((1, 2)), atol=1e-4)


def test_the_mask_of_a_planted_scene_is_where_its_evidence_lies() -> None:
    for scene in planted_scenes(4):
        exact = exact_evidence(scene.image[None], scene.target)[0, 0]

        assert scene.truth is not None
        assert bool(((exact > 0) == scene.truth).all())
        assert int(scene.logits.argmax()) == int(scene.target.index)
        assert sorted({index for _, index in scene.pool} | {int(scene.target.index)}) == [0, 1, 2, 3]


def test_the_map_of_a_contrast_is_the_difference_of_two_classes_evidence() -> None:
    scene = planted_scenes(2)[1]
    explainer = xaihub.testing.PlantedExplainer()

    (found,) = explainer.explain(scene.model, scene.image[None], Target(index=1, against=Target(index=2)))

    expected = exact_evidence(scene.image[None], 1) - exact_evidence(scene.image[None], 2)
    assert torch.allclose(found.values, expected[0], atol=1e-6)


def test_a_shuffled_map_has_the_truths_values_and_an_inverted_one_its_order_reversed() -> None:
    (scene,) = planted_scenes(1)
    oracle, shuffled, inverted = (planted_case(scene, kind).heat for kind in ("oracle", "shuffled", "inverted"))

    assert oracle.flatten().sort().values.equal(shuffled.flatten().sort().values)
    assert not oracle.equal(shuffled)
    assert torch.allclose(inverted, oracle.max() - oracle)


class Gradient(Explainer):
    """The gradient times the input."""

    def attribute(self, model: Model, inputs: Tensor, target: Any) -> Tensor:
        inputs.requires_grad_()
        return torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0] * inputs.detach()


class Constant(Gradient):
    def attribute(self, model: Model, inputs: Tensor, target: Any) -> Tensor:
        return torch.ones_like(inputs)


@conformance(Gradient)
def test_the_decorator_makes_one_test_for_each_check(check: Any) -> None:
    assert check().outcome == "passed"


@conformance("relevance_mass")
class TestsOfAClass:
    def test_a_registered_name_can_be_checked(self, check: Any) -> None:
        assert check().outcome == "passed"


def cases(**how: Any) -> dict[str, Any]:
    def test(check: Any) -> None:
        """Stands for an author's test."""

    (mark,) = conformance(Constant, **how)(test).pytestmark  # type: ignore[attr-defined]
    return dict(zip(mark.kwargs["ids"], mark.args[1], strict=True))


def test_the_tests_are_named_after_the_checks() -> None:
    assert list(cases()) == [item.name for item in checks("explainer")]


def test_a_failed_check_says_what_to_change() -> None:
    with pytest.raises(AssertionError, match="are identical: explain `target.score"):
        cases()["depends_on_the_target"]()


def test_what_does_not_apply_is_skipped_with_the_reason() -> None:
    with pytest.raises(pytest.skip.Exception, match="not applicable: it does not declare `completeness`"):
        cases()["values_are_complete"]()


def test_an_expected_failure_is_skipped_and_an_unexpected_success_is_an_error() -> None:
    found = cases(expected={"depends_on_the_target": "it is a constant", "values_are_finite": "they are not"})

    with pytest.raises(pytest.skip.Exception, match="expected: it is a constant"):
        found["depends_on_the_target"]()
    with pytest.raises(AssertionError, match="passed: remove 'values_are_finite' from `expected` .they are not"):
        found["values_are_finite"]()


@pytest.mark.parametrize(
    ("thing", "how", "error", "message"),
    [
        (Gradient, {"expected": {"values_are_finite": ""}}, ParameterError, "has no reason"),
        (Gradient, {"expected": {"values_finite": "so it is"}}, UnknownName, "did you mean 'values_are_finite'"),
        ("risee", {}, UnknownName, "nothing is named 'risee'"),
        (dict, {}, ParameterError, "cannot be checked"),
    ],
)
def test_a_wrong_use_of_the_decorator_is_one_line(thing: Any, how: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        conformance(thing, **how)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ("none", 0),
        ("masks forward passes", 40),
        ("1 forward pass and 1 backward pass", 1),
        ("samples + 1 forward pass and samples backward passes", 9),
        ("samples forward and backward passes, and 2 forward passes for the gap", 10),
        ("at most 2 x (samples + 1) forward passes", 18),
        ("2 samples^2 forward passes", 128),
        ("1 forward pass, and 1 for each feature", None),
        ("name forward passes", None),
        ("unknown forward passes", None),
        ("as many forward passes as it takes", None),
        ("", None),
    ],
)
def test_a_cost_is_read_as_a_number_of_passes(cost: str, expected: float | None) -> None:
    assert announced(cost, {"masks": 40, "samples": 8, "name": "grid:7"}) == expected


@pytest.fixture
def hub() -> Hub:
    return Hub(PluginHost(environ={"XAIHUB_LOAD_PLUGINS": ""}).load())


def test_a_plugins_name_stands_for_all_that_it_registered(hub: Hub) -> None:
    results = check_plugin("controls", hub, only=["constructor_only_stores", "loads"])

    assert [(item.subject, item.check) for item in results] == [
        ("controls", "loads"),
        ("control_centre", "loads"),
        ("control_centre", "constructor_only_stores"),
        ("control_edges", "loads"),
        ("control_edges", "constructor_only_stores"),
        ("control_random", "loads"),
        ("control_random", "constructor_only_stores"),
    ]
    assert {item.outcome for item in results} == {"passed"}


def test_results_are_told_as_they_come(hub: Hub) -> None:
    told: list[Any] = []

    results = check_plugin("rise", hub, only=["constructor_only_stores"], each=told.append)

    assert told == results != []


@pytest.mark.parametrize(
    ("name", "only", "message"),
    [
        ("risee", [], "no plugin, explainer, metric or model is named 'risee' .did you mean 'rise'"),
        ("rise", ["shape"], "no check is named 'shape' .did you mean 'shape_is_that_of_the_input'"),
    ],
)
def test_a_name_that_does_not_exist_is_one_line(hub: Hub, name: str, only: list[str], message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        check_plugin(name, hub, only=only)


def test_a_broken_plugin_is_a_result(hub: Hub) -> None:
    hub.host.problem(hub.host.plugin("rise"), "it is broken")

    result, of_the_method = check_plugin("rise", hub, only=["loads"])

    assert (result.kind, result.outcome, result.advice) == ("plugin", "failed", "it is broken: correct it")
    assert (of_the_method.kind, of_the_method.outcome) == ("explainer", "passed")


class LeadsNowhere:
    @hookimpl
    def xaihub_register_baselines(self) -> list[BaselineSpec]:
        return [BaselineSpec(name="gone", target="xaihub_nowhere:Gone")]


def test_a_record_that_leads_nowhere_is_a_failure() -> None:
    host = PluginHost(entry_points=[])
    host.register(LeadsNowhere(), name="nowhere")

    (result,) = [item for item in check_plugin("nowhere", Hub(host)) if item.subject == "gone"]

    assert (result.check, result.plugin, result.outcome) == ("loads", "nowhere", "failed")
    assert "there is no module 'xaihub_nowhere': correct its target" in result.advice


def test_the_checks_run_where_pytest_is_not_installed() -> None:
    script = """
import sys
sys.modules["pytest"] = None
from xaihub.hub import Hub
from xaihub.plugin_tools.conformance import check_plugin
(result,) = check_plugin("control_centre", Hub(), only=["constructor_only_stores"])
print(result.outcome)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.stdout, done.returncode) == ("passed\n", 0), done.stderr
