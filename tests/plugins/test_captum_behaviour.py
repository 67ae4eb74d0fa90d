"""What every method through captum promises: refusals, batches, contrasts, passes, no traces."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
from torch import Tensor, nn

from tests.plugins.captum_networks import (
    CHEAP,
    NAMES,
    SIDE,
    ToyConv,
    from_timm,
    images,
    values,
    wrapped,
)
from xaihub import ExplainerRefused, Model, ParameterError, Runtime, get_explainer


@pytest.fixture(scope="module")
def resnet() -> Model:
    return from_timm("test_resnet")


@pytest.fixture
def image() -> Tensor:
    return images(1)


@pytest.fixture
def toy() -> Model:
    return wrapped(ToyConv(), (1, 4, 4))


@pytest.mark.parametrize(
    ("name", "found"), [("test_vit", "GELU"), ("test_efficientnet", "SiLU"), ("tf_efficientnet_lite0", "ReLU6")]
)
def test_guided_backprop_refuses_other_activations_and_names_them(name: str, found: str, image: Tensor) -> None:
    with pytest.raises(ExplainerRefused, match=rf"{name}' has {found} \(\d+\)"):
        get_explainer("guided_backprop").explain(from_timm(name), image)


class Functional(nn.Module):
    """A network that calls its activation as a function; with a module beside it, or without."""

    def __init__(self, function: Callable[[Tensor], Tensor], *, module: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU() if module else nn.Identity()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.act(self.convolution(x)) - 0.1).mean((2, 3))


@pytest.mark.parametrize(
    ("function", "module", "reason"),
    [
        (torch.relu, True, "computes Relu outside of modules"),
        (torch.nn.functional.gelu, True, "computes Gelu outside of modules"),
        (torch.relu, False, "computes Relu outside of modules"),
        (torch.square, False, "has none"),
    ],
)
def test_guided_backprop_refuses_activations_outside_of_modules(
    function: Callable[[Tensor], Tensor], module: bool, reason: str, image: Tensor
) -> None:
    with pytest.raises(ExplainerRefused, match=reason):
        get_explainer("guided_backprop").explain(wrapped(Functional(function, module=module), (3, SIDE, SIDE)), image)


@pytest.mark.parametrize(("name", "found"), [("test_vit", "GELU"), ("test_efficientnet", "SiLU")])
def test_deeplift_refuses_with_the_figure_where_its_values_miss_the_score(name: str, found: str, image: Tensor) -> None:
    with pytest.raises(ExplainerRefused, match=rf"its values miss .* by \d+%, and captum has no rule for {found}"):
        get_explainer("deeplift").explain(from_timm(name), image)


def test_deeplift_refuses_modules_that_are_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu1 = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            return self.relu1(self.relu1(flat) - 0.5)

    with pytest.raises(ExplainerRefused, match="a module is used more than once"):
        get_explainer("deeplift").explain(wrapped(Twice(), (1, 2, 2)), torch.ones(1, 1, 2, 2))


def state(model: Model) -> list[object]:
    """Everything that a method might leave behind on a module."""
    kept: list[object] = [id(rule) for rule in SUPPORTED_NON_LINEAR.values()]
    for module in model.module.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        kept += [set(vars(module)), module.training, *[len(some) for some in hooks]]
    return kept + [(weight.requires_grad, weight.grad) for weight in model.module.parameters()]


@pytest.mark.parametrize(
    ("network", "name", "outcome"),
    [
        ("test_resnet", "deeplift", nullcontext()),
        ("test_resnet", "guided_backprop", nullcontext()),
        ("test_vit", "deeplift", pytest.raises(ExplainerRefused)),
        ("test_vit", "guided_backprop", pytest.raises(ExplainerRefused)),
        ("twice", "deeplift", pytest.raises(ExplainerRefused)),
        ("twice", "guided_backprop", nullcontext()),
    ],
)
def test_nothing_stays_behind_on_the_network_whether_explained_or_refused(
    network: str, name: str, outcome: AbstractContextManager[object]
) -> None:
    relu = nn.ReLU()
    twice = nn.Sequential(nn.Conv2d(3, 3, 1), relu, nn.Conv2d(3, 3, 1), relu, nn.Flatten(), nn.Linear(3 * SIDE**2, 2))
    made = {"test_resnet": from_timm, "test_vit": from_timm, "twice": lambda _: wrapped(twice, (3, SIDE, SIDE))}
    model = made[network](network)
    before = state(model)
    refused = False
    try:
        get_explainer(name).explain(model, images(1))
    except ExplainerRefused:
        refused = True
    assert refused == (
        (network, name) in {("test_vit", "deeplift"), ("test_vit", "guided_backprop"), ("twice", "deeplift")}
    )
    assert state(model) == before


@pytest.mark.parametrize(
    "name", ["integrated_gradients", "deeplift", "occlusion", "feature_ablation", "kernel_shap", "lime"]
)
def test_an_unknown_baseline_is_an_error_that_lists_the_known(name: str, resnet: Model, image: Tensor) -> None:
    with pytest.raises(ParameterError, match=r"no baseline is named 'purple'.*blur, mean, zero"):
        get_explainer(name, **CHEAP.get(name, {}), baseline="purple").explain(resnet, image)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("integrated_gradients", {"rule": "simpson"}, "expected one of gausslegendre"),
        ("integrated_gradients", {"baseline": "inpaint"}, "'inpaint' cannot be used here"),
        ("gradient_shap", {"baselines": "black,"}, "baselines cannot be 'black,'"),
        ("gradient_shap", {"baselines": ""}, "baselines cannot be ''"),
        ("gradient_shap", {"baselines": "black,,white"}, "baselines cannot be 'black,,white'"),
        ("gradient_shap", {"baselines": "inpaint"}, "'inpaint' cannot be used here"),
        ("gradient_shap", {"baselines": "purple"}, "no baseline is named 'purple'"),
        ("occlusion", {"window": 8, "stride": 9}, "leaves gaps between windows of 8"),
        ("occlusion", {"window": 200}, "larger than the input"),
        ("kernel_shap", {"samples": 10, "features": "grid:4"}, "10 samples cannot determine the values of 16 features"),
        ("lime", {"features": "grid:1"}, "gives only 1 region"),
    ],
)
def test_parameters_that_cannot_work_are_refused_in_one_sentence(
    name: str, parameters: dict[str, object], message: str, resnet: Model, image: Tensor
) -> None:
    with pytest.raises(ParameterError, match=message):
        get_explainer(name, **parameters).explain(resnet, image)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_what_its_images_give_alone(name: str, resnet: Model) -> None:
    inputs = images(3)
    random_baseline = {"baseline": "noise"} if name in ("occlusion", "integrated_gradients") else {}
    explainer = get_explainer(name, **CHEAP.get(name, {}), **random_baseline)
    together = values(explainer, resnet, inputs, "top2")
    alone = torch.cat([values(explainer, resnet, inputs[row : row + 1], "top2") for row in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["integrated_gradients", "smoothgrad", "gradient_shap", "occlusion", "kernel_shap"])
def test_values_do_not_depend_on_the_batch_size_and_no_pass_is_larger(name: str, image: Tensor) -> None:
    model = from_timm("test_resnet")
    sizes: list[int] = []
    model.module.register_forward_hook(lambda _module, _inputs, output: sizes.append(len(output)))
    explainer = get_explainer(name, **CHEAP.get(name, {}))
    whole = values(explainer, model, image)
    sizes.clear()
    model.runtime = Runtime(batch_size=2)
    parts = values(explainer, model, image)
    assert max(sizes) == 2
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["saliency", "integrated_gradients", "deeplift", "occlusion", "kernel_shap"])
def test_a_contrast_is_the_difference_of_two_classes(name: str, resnet: Model, image: Tensor) -> None:
    signed = {"absolute": False} if name == "saliency" else {}
    explainer = get_explainer(name, **CHEAP.get(name, {}), **signed)
    contrast = values(explainer, resnet, image, "3 vs 7")
    difference = values(explainer, resnet, image, 3) - values(explainer, resnet, image, 7)
    torch.testing.assert_close(contrast, difference, rtol=1e-3, atol=1e-5)


def test_passes_are_counted_as_the_cards_say(resnet: Model, image: Tensor) -> None:
    expected = {
        "saliency": (1, 1),
        "integrated_gradients": (6 + 2, 6),
        "gradient_shap": (3 + 3, 3),
        "smoothgrad": (3, 3),
        "guided_backprop": (2, 1),
        "deeplift": (4, 2),
        "feature_ablation": (1 + 9, 0),
        "occlusion": (1 + 9, 0),
    }
    for name, passes in expected.items():
        found = get_explainer(name, **CHEAP.get(name, {})).explain(resnet, image)[0]
        assert (found.metadata["forward_passes"], found.metadata["backward_passes"]) == passes, name
