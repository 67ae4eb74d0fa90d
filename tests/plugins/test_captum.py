"""The captum plugin: equal to captum and autograd where they are right, refused where the method is wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import combinations
from math import comb

import captum.attr
import pytest
import timm
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
from captum.attr._core.lime import get_exp_kernel_similarity_function
from captum.testing.helpers.basic_models import BasicModel_ConvNet_One_Conv, ReLUDeepLiftModel
from torch import Tensor, nn

from xaihub import Explainer, ExplainerRefused, Model, ParameterError, Preprocessing, Runtime, get_explainer
from xaihub.masking import coalition_scores, make_features, make_removal

NAMES = [
    "deeplift",
    "feature_ablation",
    "gradient_shap",
    "guided_backprop",
    "input_x_gradient",
    "integrated_gradients",
    "kernel_shap",
    "lime",
    "occlusion",
    "saliency",
    "smoothgrad",
]
CHEAP = {
    "gradient_shap": {"samples": 3},
    "smoothgrad": {"samples": 3},
    "integrated_gradients": {"steps": 6},
    "kernel_shap": {"samples": 12, "features": "grid:2"},
    "lime": {"samples": 12, "features": "grid:2"},
    "feature_ablation": {"features": "grid:3"},
    "occlusion": {"window": 80, "stride": 40},
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def randomised(network: nn.Module) -> nn.Module:
    """Give biases and running statistics random values: with those of a fresh network every rule agrees."""
    draw = torch.Generator().manual_seed(1)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name.endswith(("bias", "running_mean")):
            tensor.data = torch.randn(tensor.shape, generator=draw) * 0.1
        if name.endswith("running_var"):
            tensor.data = torch.rand(tensor.shape, generator=draw) + 0.5
    return network


def wrapped(network: nn.Module, size: tuple[int, int, int], name: str = "toy", **runtime: int) -> Model:
    channels = size[0]
    return Model(
        network,
        name=name,
        preprocessing=Preprocessing(spatial=[], size=size, mean=MEAN[:channels], std=STD[:channels]),
        runtime=Runtime(**runtime),
    )


def from_timm(name: str, **runtime: int) -> Model:
    torch.manual_seed(0)
    return wrapped(randomised(timm.create_model(name)), (3, 160, 160), name, **runtime)


def pictures(count: int, size: tuple[int, ...] = (3, 160, 160)) -> Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(2))


def values(
    explainer: Explainer, model: Model, inputs: Tensor, target: str | int | None = None, seed: int = 0
) -> Tensor:
    return torch.stack([one.values for one in explainer.explain(model, inputs, target, seed=seed)])


@pytest.fixture(scope="module")
def resnet() -> Model:
    return from_timm("test_resnet")


@pytest.fixture
def picture() -> Tensor:
    return pictures(1)


class ToyConv(BasicModel_ConvNet_One_Conv):
    """captum's toy; its own forward needs one memory order."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.fc1(self.relu1(self.conv1(x)).reshape(-1, 8)))


@pytest.fixture
def toy() -> Model:
    return wrapped(ToyConv(), (1, 4, 4))


TOY_INPUT = torch.arange(16.0).view(1, 1, 4, 4)


# Equality with captum, autograd and hand-computed values


def test_every_explainer_is_registered_and_gives_one_finite_map(resnet: Model, picture: Tensor) -> None:
    for name in NAMES:
        found = get_explainer(name, **CHEAP.get(name, {})).explain(resnet, picture)[0]
        assert found.values.shape[1:] == (160, 160), name
        assert float(found.values.abs().sum()) > 0, name
        assert not any("hook" in warning or "require" in warning for warning in found.warnings), name


def test_saliency_is_the_gradient_of_autograd_exactly(resnet: Model) -> None:
    inputs = pictures(2).requires_grad_()
    (expected,) = torch.autograd.grad(resnet(inputs)[:, 5].sum(), inputs)
    inputs = inputs.detach()
    signed = values(get_explainer("saliency", absolute=False), resnet, inputs, 5)
    assert torch.equal(signed, expected)
    assert torch.equal(values(get_explainer("saliency"), resnet, inputs, 5), expected.abs().amax(1, keepdim=True))
    assert torch.equal(values(get_explainer("input_x_gradient"), resnet, inputs, 5), expected * inputs)


@pytest.mark.parametrize(
    "rule", ["gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]
)
def test_integrated_gradients_equal_captums_same_rule(resnet: Model, rule: str) -> None:
    inputs = pictures(2)
    explainer = get_explainer("integrated_gradients", steps=9, rule=rule, baseline="zero")
    expected = captum.attr.IntegratedGradients(resnet).attribute(inputs, target=5, n_steps=9, method=rule)
    torch.testing.assert_close(values(explainer, resnet, inputs, 5), expected.float(), rtol=0, atol=1e-6)


def test_smoothgrad_and_gradient_shap_equal_captum_with_the_same_seed(resnet: Model, picture: Tensor) -> None:
    span = float(picture.max() - picture.min())
    torch.manual_seed(3)
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(resnet))
    smooth = tunnel.attribute(picture, nt_samples=5, stdevs=0.1 * span, abs=False, target=5)
    explainer = get_explainer("smoothgrad", samples=5, noise=0.1, absolute=False)
    torch.testing.assert_close(values(explainer, resnet, picture, 5, seed=3), smooth, rtol=1e-4, atol=1e-7)

    shap = get_explainer("gradient_shap", samples=400, baselines="zero")
    found = shap.explain(resnet, picture, 5)[0]
    path = captum.attr.IntegratedGradients(resnet).attribute(picture, target=5, n_steps=100)
    # With one baseline and no noise the expectation is the integral; 400 points leave a few percent.
    cosine = torch.nn.functional.cosine_similarity(found.values.flatten(), path.float().flatten(), dim=0)
    assert float(cosine) > 0.97


def test_occlusion_equals_captum(resnet: Model, picture: Tensor) -> None:
    expected = captum.attr.Occlusion(resnet).attribute(
        picture, (3, 40, 40), strides=(3, 20, 20), baselines=0, target=5, perturbations_per_eval=8
    )
    explainer = get_explainer("occlusion", window=40, stride=20, baseline="zero")
    torch.testing.assert_close(values(explainer, resnet, picture, 5), expected[:, :1], rtol=0, atol=1e-5)


def test_feature_ablation_equals_captum_with_the_same_feature_mask(resnet: Model, picture: Tensor) -> None:
    labels = make_features("grid:4", resnet, picture[0]).spread(torch.arange(16))
    expected = captum.attr.FeatureAblation(resnet).attribute(
        picture, baselines=0, target=5, feature_mask=labels[None, None], perturbations_per_eval=8
    )
    explainer = get_explainer("feature_ablation", features="grid:4", baseline="zero")
    torch.testing.assert_close(values(explainer, resnet, picture, 5), expected[:, :1], rtol=0, atol=1e-5)


def test_lime_equals_captum_on_pixels(resnet: Model, picture: Tensor) -> None:
    labels = make_features("grid:3", resnet, picture[0]).spread(torch.arange(9))

    # captum measures similarity on pixels; ours is on features, as the paper has it.
    def similarity(_original: Tensor, _perturbed: Tensor, coalition: Tensor, **_others: object) -> float:
        kernel: Callable[..., float] = get_exp_kernel_similarity_function("cosine", kernel_width=0.25)
        return kernel(torch.ones_like(coalition), coalition, coalition)

    lime = captum.attr.Lime(
        lambda rows: resnet(rows).softmax(1)[:, 5],
        interpretable_model=SkLearnRidge(alpha=1.0),
        similarity_func=similarity,
    )
    torch.manual_seed(0)
    with torch.no_grad():
        expected = lime.attribute(
            picture, baselines=0, feature_mask=labels[None, None], n_samples=64, perturbations_per_eval=16
        )
    explainer = get_explainer("lime", features="grid:3", baseline="zero", samples=64)
    torch.testing.assert_close(values(explainer, resnet, picture, 5), expected[:, :1], rtol=1e-4, atol=1e-7)


def test_kernel_shap_approaches_the_exact_shapley_values(resnet: Model, picture: Tensor) -> None:
    players = 4
    features = make_features("grid:2", resnet, picture[0])
    every = torch.tensor([[float(bits >> player & 1) for player in range(players)] for bits in range(2**players)])
    removal = make_removal("zero", resnet, picture[0])
    score = coalition_scores(resnet, picture[0], features, every, removal=removal, score=lambda out: out[:, 5])

    def worth(members: tuple[int, ...]) -> float:
        return float(score[sum(1 << member for member in members)])

    exact = torch.zeros(players)
    for player in range(players):
        others = [other for other in range(players) if other != player]
        for size in range(players):
            for group in combinations(others, size):
                gain = worth((*group, player)) - worth(group)
                exact[player] += gain / (players * comb(players - 1, size))
    explainer = get_explainer("kernel_shap", features="grid:2", baseline="zero", samples=3000)
    found = explainer.explain(resnet, picture, 5)[0]
    # The coalitions are drawn with replacement: the error falls as 1 / sqrt(3000), about 2 % of the spread.
    torch.testing.assert_close(
        found.values[0], features.spread(exact), rtol=0, atol=0.05 * float(exact.max() - exact.min())
    )
    assert found.metadata["completeness_gap"] < 1e-4 * float(score.abs().max())
    # 14 coalitions between the empty and the full one: each is asked for once, the ends once more for the gap.
    assert found.metadata["forwards"] == 2**players + 2


def test_the_toy_values_of_captums_own_tests_come_out(toy: Model) -> None:
    guided = values(get_explainer("guided_backprop"), toy, TOY_INPUT, 0)[0, 0]
    assert guided.tolist() == [[0, 1, 1, 1], [1, 3, 3, 2], [1, 3, 3, 2], [1, 2, 2, 1]]
    plain = values(get_explainer("saliency"), toy, TOY_INPUT, 0)[0, 0]
    assert plain.tolist() == [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
    path = values(get_explainer("integrated_gradients", baseline="zero", steps=50), toy, TOY_INPUT, 0)[0, 0]
    expected = [
        [0.0, 0.0805, 0.161, 0.2414],
        [1.1855, 3.2719, 3.9262, 2.506],
        [2.371, 5.8893, 6.5437, 3.938],
        [3.5564, 7.4606, 8.0345, 4.1629],
    ]
    torch.testing.assert_close(path, torch.tensor(expected), rtol=0, atol=1e-4)
    occluded = values(get_explainer("occlusion", window=2, stride=1, baseline="zero"), toy, TOY_INPUT, 0)[0, 0]
    literal = captum.attr.Occlusion(toy).attribute(TOY_INPUT, (1, 2, 2), baselines=0, target=0)[0, 0]
    torch.testing.assert_close(occluded, literal)


# Completeness


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet", "resnet10t"])
def test_deeplift_is_complete_on_relu_networks_with_max_pooling(name: str, picture: Tensor) -> None:
    model = from_timm(name)
    found = get_explainer("deeplift", baseline="zero").explain(model, picture, 5)[0]
    change = float((model.predict(picture) - model.predict(torch.zeros_like(picture)))[0, 5])
    assert float(found.values.sum()) == pytest.approx(change, rel=1e-3, abs=1e-5)
    assert found.metadata["completeness_gap"] < 1e-3 * abs(change)
    assert found.warnings == []


@pytest.mark.filterwarnings("ignore:\\s*Setting forward:UserWarning")  # captum's own notice
def test_deeplift_equals_captum_where_there_is_no_pooling(picture: Tensor) -> None:
    network = randomised(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 156**2, 3)
        )
    )
    model = wrapped(network, (3, 160, 160))
    expected = captum.attr.DeepLift(model.module).attribute(
        picture.clone().requires_grad_(), torch.zeros_like(picture), target=1
    )
    found = values(get_explainer("deeplift", baseline="zero"), model, picture, 1)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-7)


def test_deeplift_keeps_every_window_that_shares_its_largest_pixel() -> None:
    network = nn.Sequential(nn.MaxPool2d(2, stride=1), nn.Flatten(), nn.Linear(4, 2, bias=False))
    network[2].weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    model = wrapped(network, (1, 3, 3))
    picture = torch.tensor([[0.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.0]]).view(1, 1, 3, 3)
    found = values(get_explainer("deeplift", baseline="zero"), model, picture, 0)[0, 0]
    assert found.tolist() == [[0, 0, 0], [0, 90, 0], [0, 0, 0]]


def test_integrated_gradients_warn_when_too_few_steps_leave_a_gap(resnet: Model, picture: Tensor) -> None:
    coarse = get_explainer("integrated_gradients", steps=2, rule="riemann_left").explain(resnet, picture, 5)[0]
    fine = get_explainer("integrated_gradients", steps=300).explain(resnet, picture, 5)[0]
    assert any("use more steps" in warning for warning in coarse.warnings)
    assert fine.warnings == []
    assert fine.metadata["completeness_gap"] < coarse.metadata["completeness_gap"]


# Refusals


@pytest.mark.parametrize(
    ("name", "found"), [("test_vit", "GELU"), ("test_efficientnet", "SiLU"), ("tf_efficientnet_lite0", "ReLU6")]
)
def test_guided_backprop_refuses_other_activations_and_names_them(name: str, found: str, picture: Tensor) -> None:
    with pytest.raises(ExplainerRefused, match=rf"{name}' has {found} \(\d+\)"):
        get_explainer("guided_backprop").explain(from_timm(name), picture)


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
        (torch.relu, True, "computes 1 relus outside of modules"),
        (torch.nn.functional.gelu, True, "computes Gelu outside of modules"),
        (torch.relu, False, "computes 1 relus outside of modules"),
        (torch.square, False, "has none"),
    ],
)
def test_guided_backprop_refuses_activations_that_are_no_modules(
    function: Callable[[Tensor], Tensor], module: bool, reason: str, picture: Tensor
) -> None:
    with pytest.raises(ExplainerRefused, match=reason):
        get_explainer("guided_backprop").explain(wrapped(Functional(function, module=module), (3, 160, 160)), picture)


@pytest.mark.parametrize(("name", "found"), [("test_vit", "GELU"), ("test_efficientnet", "SiLU")])
def test_deeplift_refuses_with_the_figure_where_its_values_miss_the_score(
    name: str, found: str, picture: Tensor
) -> None:
    with pytest.raises(ExplainerRefused, match=rf"its values miss .* by \d+%, and captum has no rule for {found}"):
        get_explainer("deeplift").explain(from_timm(name), picture)


def test_deeplift_refuses_modules_that_are_used_twice() -> None:
    class Twice(ReLUDeepLiftModel):
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
    twice = nn.Sequential(nn.Conv2d(3, 3, 1), relu, nn.Conv2d(3, 3, 1), relu, nn.Flatten(), nn.Linear(3 * 160**2, 2))
    made = {"test_resnet": from_timm, "test_vit": from_timm, "twice": lambda _: wrapped(twice, (3, 160, 160))}
    model = made[network](network)
    before = state(model)
    refused = False
    try:
        get_explainer(name).explain(model, pictures(1))
    except ExplainerRefused:
        refused = True
    assert refused == (
        (network, name) in {("test_vit", "deeplift"), ("test_vit", "guided_backprop"), ("twice", "deeplift")}
    )
    assert state(model) == before


@pytest.mark.parametrize(
    "name", ["integrated_gradients", "deeplift", "occlusion", "feature_ablation", "kernel_shap", "lime"]
)
def test_an_unknown_baseline_is_an_error_that_lists_the_known(name: str, resnet: Model, picture: Tensor) -> None:
    with pytest.raises(ParameterError, match=r"no baseline is named 'purple'.*blur, mean, zero"):
        get_explainer(name, **CHEAP.get(name, {}), baseline="purple").explain(resnet, picture)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("integrated_gradients", {"rule": "simpson"}, "expected one of gausslegendre"),
        ("integrated_gradients", {"baseline": "inpaint"}, "'inpaint' cannot be used here"),
        ("gradient_shap", {"baselines": "black,"}, "baselines cannot be 'black,'"),
        ("occlusion", {"window": 8, "stride": 9}, "leaves gaps between windows of 8"),
        ("occlusion", {"window": 200}, "larger than the input"),
        ("kernel_shap", {"samples": 10, "features": "grid:4"}, "10 samples cannot determine the values of 16 features"),
        ("lime", {"features": "grid:1"}, "make 1 part"),
    ],
)
def test_parameters_that_cannot_work_are_refused_in_one_sentence(
    name: str, parameters: dict[str, object], message: str, resnet: Model, picture: Tensor
) -> None:
    with pytest.raises(ParameterError, match=message):
        get_explainer(name, **parameters).explain(resnet, picture)


# Batches, seeds and targets


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_what_its_pictures_give_alone(name: str, resnet: Model) -> None:
    inputs = pictures(3)
    random_baseline = {"baseline": "noise"} if name in ("occlusion", "integrated_gradients") else {}
    explainer = get_explainer(name, **CHEAP.get(name, {}), **random_baseline)
    together = values(explainer, resnet, inputs, "top2")
    alone = torch.cat([values(explainer, resnet, inputs[row : row + 1], "top2") for row in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["integrated_gradients", "smoothgrad", "gradient_shap", "occlusion", "kernel_shap"])
def test_values_do_not_depend_on_the_batch_size_and_no_pass_is_larger(name: str, picture: Tensor) -> None:
    model = from_timm("test_resnet")
    sizes: list[int] = []
    model.module.register_forward_hook(lambda _module, _inputs, output: sizes.append(len(output)))
    explainer = get_explainer(name, **CHEAP.get(name, {}))
    whole = values(explainer, model, picture)
    sizes.clear()
    model.runtime = Runtime(batch_size=2)
    parts = values(explainer, model, picture)
    assert max(sizes) == 2
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["saliency", "integrated_gradients", "deeplift", "occlusion", "kernel_shap"])
def test_a_contrast_is_the_difference_of_two_classes(name: str, resnet: Model, picture: Tensor) -> None:
    signed = {"absolute": False} if name == "saliency" else {}
    explainer = get_explainer(name, **CHEAP.get(name, {}), **signed)
    contrast = values(explainer, resnet, picture, "3 vs 7")
    difference = values(explainer, resnet, picture, 3) - values(explainer, resnet, picture, 7)
    torch.testing.assert_close(contrast, difference, rtol=1e-3, atol=1e-5)


def test_passes_are_counted_as_the_cards_say(resnet: Model, picture: Tensor) -> None:
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
        found = get_explainer(name, **CHEAP.get(name, {})).explain(resnet, picture)[0]
        assert (found.metadata["forwards"], found.metadata["backwards"]) == passes, name
