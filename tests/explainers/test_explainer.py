"""The base class of explainers: everything around `attribute`."""

from __future__ import annotations

import json
import random
import warnings
from contextlib import suppress
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.toy_explainers import CLASSES, Attribute, explainer, gradient
from xaihub import (
    Attribution,
    Explainer,
    Explanation,
    Meta,
    Model,
    ResolvedTarget,
)
from xaihub.errors import ExplainerRefused, ModelError, ParameterError, PluginError


def noise(_self: Explainer, _model: Model, inputs: Tensor, _target: ResolvedTarget) -> Tensor:
    drawn = torch.rand(inputs.shape) + float(np.random.rand()) + random.random()
    return drawn * inputs


class Points(Explainer):
    def __init__(self, *, points: Annotated[int, Meta(ge=1)] = 4) -> None:
        self.points = points

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        return sum(target.score(model(inputs)) for _ in range(self.points))[:, None, None, None].expand(-1, 1, 8, 8)


class HalfWay(Exception):
    pass


def dirty(self: Explainer, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
    """Leave behind whatever can be left behind."""
    model.module.train()
    model.module[0].register_forward_hook(lambda *_: None)
    model.module[2].register_full_backward_hook(lambda *_: None)
    model.module[5].register_forward_pre_hook(lambda *_: None)
    for weight in model.module.parameters():
        weight.requires_grad_(True)
        weight.grad = torch.ones_like(weight)
    inputs.mul_(0)
    random.random()
    np.random.rand()
    torch.rand(3)
    return torch.ones_like(inputs)


def breaks(self: Explainer, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
    dirty(self, model, inputs, target)
    raise HalfWay


def hooks(module: nn.Module) -> list[int]:
    return [
        len(table)
        for part in module.modules()
        for table in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    ]


class TestNothingIsLeftBehind:
    @pytest.mark.parametrize("attribute", [gradient, dirty, breaks])
    def test_of_the_models_modes_flags_gradients_and_hooks(
        self, model: Model, inputs: Tensor, attribute: Attribute
    ) -> None:
        own = model.module[3].register_forward_hook(lambda *_: None)
        model.module[1].train()
        model.module[0].weight.requires_grad_(False)
        model.module[5].bias.grad = torch.full((CLASSES,), 7.0)
        modes = [part.training for part in model.module.modules()]
        flags = [weight.requires_grad for weight in model.module.parameters()]
        grads = [weight.grad for weight in model.module.parameters()]
        before, tables = model.weights_hash, hooks(model.module)
        with suppress(HalfWay, PluginError):
            explainer(attribute).explain(model, inputs)
        assert [part.training for part in model.module.modules()] == modes
        assert [weight.requires_grad for weight in model.module.parameters()] == flags
        assert all(weight.grad is grad for weight, grad in zip(model.module.parameters(), grads, strict=True))
        assert hooks(model.module) == tables
        assert model.weights_hash == before
        own.remove()

    @pytest.mark.parametrize("attribute", [gradient, dirty, breaks])
    def test_of_the_inputs_and_the_random_states(self, model: Model, inputs: Tensor, attribute: Attribute) -> None:
        copy = inputs.clone()
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        with suppress(HalfWay, PluginError):
            explainer(attribute).explain(model, inputs, seed=9)
        assert torch.equal(inputs, copy)
        assert not inputs.requires_grad
        assert random.getstate() == states[0]
        assert np.array_equal(np.random.get_state()[1], states[1][1])
        assert torch.equal(torch.get_rng_state(), states[2])

    def test_inputs_that_ask_for_a_gradient_get_none(self, model: Model, inputs: Tensor) -> None:
        inputs.requires_grad_()
        explainer(gradient).explain(model, inputs)
        assert inputs.grad is None

    def test_the_model_is_in_evaluation_mode_inside_whatever_it_was(self, model: Model, inputs: Tensor) -> None:
        seen: list[bool] = []

        def look(_self: Explainer, model: Model, inputs: Tensor, _target: ResolvedTarget) -> Tensor:
            seen.extend(part.training for part in model.module.modules())
            seen.extend(weight.requires_grad for weight in model.module.parameters())
            return inputs

        model.module.train()
        explainer(look).explain(model, inputs)
        assert seen
        assert not any(seen)


class TestSeeds:
    def values(self, made: Explainer, model: Model, inputs: Tensor, seed: int) -> list[bytes]:
        return [found.values.numpy().tobytes() for found in made.explain(model, inputs, seed=seed)]

    def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(self, model: Model, inputs: Tensor) -> None:
        made = explainer(noise, stochastic=True)
        first = self.values(made, model, inputs, 3)
        torch.rand(5)
        assert self.values(made, model, inputs, 3) == first
        assert all(a != b for a, b in zip(self.values(made, model, inputs, 4), first, strict=True))

    def test_a_stochastic_batch_equals_its_single_rows(self, model: Model, inputs: Tensor) -> None:
        made = explainer(noise, stochastic=True)
        together = self.values(made, model, inputs, 3)
        assert together == [self.values(made, model, row[None], 3)[0] for row in inputs]

    def test_a_stochastic_method_sees_one_row_at_a_time_and_others_see_all(self, model: Model, inputs: Tensor) -> None:
        sizes: list[tuple[int, int]] = []

        def look(_self: Explainer, _model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
            sizes.append((len(inputs), len(target)))
            return inputs

        explainer(look, stochastic=True).explain(model, inputs)
        explainer(look).explain(model, inputs)
        assert sizes == [(1, 1), (1, 1), (1, 1), (3, 3)]

    @pytest.mark.parametrize("seed", [-1, 0, 2**40])
    def test_any_whole_number_is_a_seed(self, model: Model, inputs: Tensor, seed: int) -> None:
        made = explainer(noise, stochastic=True)
        assert self.values(made, model, inputs, seed) == self.values(made, model, inputs, seed)


class TestRefusing:
    @pytest.mark.parametrize(
        ("result", "message"),
        [
            (torch.ones(3, 3, 8, 7), r"returned shape \(3, 3, 8, 7\) for inputs \(3, 3, 8, 8\)"),
            (torch.ones(3, 2, 8, 8), r"returned shape \(3, 2, 8, 8\)"),
            (torch.ones(3, 8, 8), r"returned shape \(3, 8, 8\)"),
            (torch.ones(1, 3, 8, 8), r"returned shape \(1, 3, 8, 8\)"),
            (torch.full((3, 3, 8, 8), torch.nan), "returned NaN or infinite values on 'toy'"),
            (torch.full((3, 1, 8, 8), -torch.inf), "returned NaN or infinite values on 'toy'"),
            (np.ones((3, 3, 8, 8)), "returned a ndarray instead of a tensor"),
            (None, "returned a NoneType instead of a tensor"),
            (Attribution(values=torch.ones(3, 3, 8, 8), completeness_gap=torch.ones(2)), r"gap of shape \(2,\)"),
            (Attribution(values=torch.ones(3, 3, 8, 8), completeness_gap=torch.ones(())), r"gap of shape \(\)"),
            (
                Attribution(values=torch.ones(3, 3, 8, 8), extras={"mask": torch.ones(2, 1, 8, 8)}),
                "did not return a tensor of 3 rows",
            ),
            (
                Attribution(values=torch.ones(3, 3, 8, 8), extras={"mask": torch.ones(())}),
                "did not return a tensor of 3 rows as 'mask'",
            ),
            (
                Attribution(values=torch.ones(3, 3, 8, 8), extras={"e": torch.full((3,), torch.nan)}),
                "infinite values as",
            ),
        ],
    )
    def test_a_result_that_cannot_be_drawn(self, model: Model, inputs: Tensor, result: Any, message: str) -> None:
        with pytest.raises(ExplainerRefused, match=f"Made {message}|Made returned.*{message}"):
            explainer(lambda *_: result).explain(model, inputs)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_a_model_whose_scores_are_not_finite(self, model: Model, inputs: Tensor, value: float) -> None:
        with torch.no_grad():
            model.module[5].bias[2] = value
        with pytest.raises(ModelError, match="model 'toy' returned NaN or infinite class scores"):
            explainer(gradient).explain(model, inputs)

    @pytest.mark.parametrize("shape", [(3, 8, 8), (0, 3, 8, 8), (2, 1, 8, 8), (1, 1, 3, 8, 8)])
    def test_inputs_of_another_shape(self, model: Model, shape: tuple[int, ...]) -> None:
        with pytest.raises(ParameterError, match=r"inputs have the shape .*\(B, 3, 8, 8\)"):
            explainer(gradient).explain(model, torch.zeros(shape))

    @pytest.mark.parametrize("target", ["top9", 7, "cat", "1 vs 1"])
    def test_a_target_that_the_model_lacks(self, model: Model, inputs: Tensor, target: Any) -> None:
        with pytest.raises(Exception, match=r"out of range|no class names|with itself") as caught:
            explainer(gradient).explain(model, inputs, target)
        assert type(caught.value).__module__ == "xaihub.errors"

    def test_a_parameter_out_of_range_however_it_was_set(self, model: Model, inputs: Tensor) -> None:
        with pytest.raises(ParameterError, match=r"parameter 'points' of Points cannot be 0: expected `int` >= 1"):
            Points(points=0).explain(model, inputs)
        named = Points()
        named.points, named.name = "many", "points"  # type: ignore[assignment]
        with pytest.raises(ParameterError, match="parameter 'points' of points cannot be 'many'"):
            named.explain(model, inputs)


class TestTheRecord:
    def first(self, made: Explainer, model: Model, inputs: Tensor, **options: Any) -> Explanation:
        return made.explain(model, inputs, **options)[0]

    def test_forward_passes_and_backward_passes_are_counted_an_image(self, model: Model, inputs: Tensor) -> None:
        found = self.first(Points(points=6), model, inputs).metadata
        assert (found["forward_passes"], found["backward_passes"]) == (6, 0)
        found = self.first(explainer(gradient), model, inputs).metadata
        assert (found["forward_passes"], found["backward_passes"]) == (1, 1)
        found = self.first(explainer(gradient, stochastic=True), model, inputs).metadata
        assert (found["forward_passes"], found["backward_passes"]) == (1, 1)

    @pytest.mark.parametrize("plain_first", [False, True])
    def test_known_logits_save_the_pass_that_fixes_the_target_and_change_nothing(
        self, model: Model, inputs: Tensor, plain_first: bool
    ) -> None:
        made, logits = explainer(gradient, plain_first=plain_first), model.predict(inputs)
        expected = made.explain(model, inputs, "top2")
        with model.counting() as counts:
            found = made.explain(model, inputs, "top2", logits=logits)
        assert counts.forward_passes == len(inputs)  # the gradient's own
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.values, other.values)
            assert {**one.to_dict(), "seconds": 0} == {**other.to_dict(), "seconds": 0}
        with pytest.raises(ParameterError, match=r"logits have the shape \(1, 5\)"):
            made.explain(model, inputs, logits=logits[:1])

    def test_calls_of_the_raw_network_count_as_well(self, model: Model, inputs: Tensor) -> None:
        def raw(_self: Explainer, model: Model, inputs: Tensor, _target: ResolvedTarget) -> Tensor:
            repeated = inputs.repeat(4, 1, 1, 1).requires_grad_()
            model.module(repeated)[:, 0].sum().backward()
            return inputs

        found = self.first(explainer(raw), model, inputs).metadata
        assert (found["forward_passes"], found["backward_passes"]) == (4, 4)

    def test_each_row_has_its_own_completeness_gap(self, model: Model, inputs: Tensor) -> None:
        def gaps(_self: Explainer, _model: Model, inputs: Tensor, _target: ResolvedTarget) -> Attribution:
            return Attribution(values=inputs, completeness_gap=torch.tensor([0.5, 1.5, torch.nan]))

        found = explainer(gaps).explain(model, inputs)
        assert [row.metadata["completeness_gap"] for row in found[:2]] == [0.5, 1.5]
        assert found[2].to_dict()["completeness_gap"] is None
        assert self.first(explainer(gradient), model, inputs).metadata["completeness_gap"] is None

    def test_each_row_has_its_own_further_tensors_and_masks_become_bytes(self, model: Model, inputs: Tensor) -> None:
        def extras(_self: Explainer, _model: Model, inputs: Tensor, _target: ResolvedTarget) -> Attribution:
            return Attribution(values=inputs, extras={"mask": inputs[:, :1] > 0, "row": torch.arange(3)})

        found = explainer(extras).explain(model, inputs)
        assert [int(row.extras["row"]) for row in found] == [0, 1, 2]
        assert all(torch.equal(row.extras["mask"], (inputs[i, :1] > 0).byte()) for i, row in enumerate(found))
        assert self.first(explainer(gradient), model, inputs).extras == {}

    def test_warnings_of_libraries_and_of_the_method_are_kept_each_time_and_once(
        self, model: Model, inputs: Tensor
    ) -> None:
        def warns(_self: Explainer, _model: Model, inputs: Tensor, _target: ResolvedTarget) -> Attribution:
            for _ in range(2):
                warnings.warn("the library is unsure", stacklevel=1)
            warnings.warn("old", DeprecationWarning, stacklevel=1)
            return Attribution(values=inputs, warnings=["the method is unsure"])

        for _ in range(2):
            found = self.first(explainer(warns), model, inputs)
            assert found.warnings == ["the method is unsure", "the library is unsure"]

    def test_it_names_everything_needed_to_make_it_again(self, model: Model, inputs: Tensor) -> None:
        found = self.first(Points(points=2), model, inputs, seed=5).to_dict()
        assert found["model"] == "toy"
        assert found["weights_sha256"] == model.weights_hash
        assert found["preprocessing"] == {"size": 8}
        assert found["explainer"] == "Points"
        assert found["parameters"] == {"points": 2}
        assert found["seed"] == 5
        assert found["device"] == "cpu"
        assert found["seconds"] > 0
        assert set(found["versions"]) >= {"xaihub", "torch", "timm"}
        json.dumps(found, allow_nan=False)

    def test_target_and_prediction_are_scored_row_by_row(self, model: Model, inputs: Tensor) -> None:
        logits = model.predict(inputs)
        for row, found in enumerate(explainer(gradient).explain(model, inputs, "top2 vs top1")):
            order = logits[row].argsort(descending=True)
            assert found.target.index == int(order[1])
            assert found.against is not None
            assert found.against.index == found.predicted.index == int(order[0])
            assert found.target.logit == pytest.approx(float(logits[row, order[1]]))
            assert found.target.probability == pytest.approx(float(logits[row].softmax(0)[order[1]]))
            assert found.target.name == f"class {int(order[1])}"

    def test_the_values_are_the_methods_own(self, model: Model, inputs: Tensor) -> None:
        asked = inputs.clone().requires_grad_()
        expected = torch.autograd.grad(model(asked)[:, 2].sum(), asked)[0]
        for row, found in enumerate(explainer(gradient).explain(model, inputs, 2)):
            assert torch.equal(found.values, expected[row])
            assert found.values.dtype == torch.float32
            assert not found.values.requires_grad


def test_an_explainer_shows_its_parameters() -> None:
    assert repr(Points(points=3)) == "Points(points=3)"
    assert Points(points=3).parameters == {"points": 3}
