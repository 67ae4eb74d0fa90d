"""The captum plugin: equal to captum and autograd where they are right, refused where the method is wrong."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import captum.attr
import pytest
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr._core.lime import get_exp_kernel_similarity_function
from torch import Tensor, nn

from tests.plugins.captum_networks import (
    CHEAP,
    NAMES,
    SIDE,
    ToyConv,
    from_timm,
    images,
    randomised,
    values,
    wrapped,
)
from xaihub import Model, get_explainer
from xaihub.masking import baseline_image, coalition_scores, make_features, make_removal
from xaihub.randomness import seeded
from xaihub_captum.scores import completeness
from xaihub_shap.method import shap  # imported there without the warnings of its import


@pytest.fixture(scope="module")
def resnet() -> Model:
    return from_timm("test_resnet")


@pytest.fixture
def image() -> Tensor:
    return images(1)


@pytest.fixture
def toy() -> Model:
    return wrapped(ToyConv(), (1, 4, 4))


TOY_INPUT = torch.arange(16.0).view(1, 1, 4, 4)


def test_every_explainer_is_registered_and_gives_one_finite_map(resnet: Model, image: Tensor) -> None:
    for name in NAMES:
        found = get_explainer(name, **CHEAP.get(name, {})).explain(resnet, image)[0]
        assert found.values.shape[1:] == (SIDE, SIDE), name
        assert float(found.values.abs().sum()) > 0, name
        assert not any("hook" in warning or "require" in warning for warning in found.warnings), name


def test_saliency_is_the_gradient_of_autograd_exactly(resnet: Model) -> None:
    inputs = images(2).requires_grad_()
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
    inputs = images(2)
    explainer = get_explainer("integrated_gradients", steps=9, rule=rule, baseline="zero")
    expected = captum.attr.IntegratedGradients(resnet).attribute(inputs, target=5, n_steps=9, method=rule)
    torch.testing.assert_close(values(explainer, resnet, inputs, 5), expected.float(), rtol=0, atol=1e-6)


def test_smoothgrad_equals_captum_with_the_same_seed(resnet: Model, image: Tensor) -> None:
    span = float(image.max() - image.min())
    torch.manual_seed(3)
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(resnet))
    smooth = tunnel.attribute(image, nt_samples=5, stdevs=0.1 * span, abs=False, target=5)
    explainer = get_explainer("smoothgrad", samples=5, noise=0.1, absolute=False)
    torch.testing.assert_close(values(explainer, resnet, image, 5, seed=3), smooth, rtol=1e-4, atol=1e-7)


def flat(*layers: nn.Module) -> Model:
    """A network on 3 x 8 x 8 pixels."""
    return wrapped(nn.Sequential(nn.Flatten(), *layers), (3, 8, 8))


def test_gradient_shap_of_a_linear_model_is_weight_times_difference() -> None:
    torch.manual_seed(1)
    linear = nn.Linear(192, 3)
    model, image = flat(linear), images(1, (3, 8, 8))
    white = baseline_image("white", model, image[0])
    expected = linear.weight[2].view(3, 8, 8) * (image[0] - white)
    for samples in (1, 70):
        found = get_explainer("gradient_shap", samples=samples, baselines="white").explain(model, image, 2)[0]
        torch.testing.assert_close(found.values, expected.detach(), rtol=0, atol=1e-5)
        assert found.metadata["completeness_gap"] < 1e-4
        assert found.metadata["backward_passes"] == samples
        assert found.metadata["forward_passes"] == samples + 2  # the image and the baseline, for the gap


def test_gradient_shap_agrees_with_the_shap_library_and_closes_its_gap() -> None:
    torch.manual_seed(2)
    model, image = flat(nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 3)), images(1, (3, 8, 8))
    few, many, contrast = (
        get_explainer("gradient_shap", samples=samples, baselines="zero,white").explain(model, image, target)[0]
        for samples, target in [(4, 1), (4000, 1), (4000, "1 vs 2")]
    )
    background = torch.stack([baseline_image(name, model, image[0]) for name in ("zero", "white")])
    with seeded(0):  # shap leaves NumPy's generator seeded
        peer = shap.GradientExplainer(model.module, background).shap_values(image, nsamples=4000, rseed=4)
    expected = torch.from_numpy(peer[0]).float()  # (3, 8, 8, 3)
    error = 0.05 * float(expected.abs().max())
    torch.testing.assert_close(many.values, expected[..., 1], rtol=0, atol=error)
    torch.testing.assert_close(contrast.values, expected[..., 1] - expected[..., 2], rtol=0, atol=2 * error)
    assert many.metadata["completeness_gap"] < few.metadata["completeness_gap"]


def test_gradient_shap_is_seeded(resnet: Model, image: Tensor) -> None:
    explainer = get_explainer("gradient_shap", samples=3, noise=0.1)
    first, again, other = (values(explainer, resnet, image, 5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-4)


def test_occlusion_equals_captum(resnet: Model, image: Tensor) -> None:
    expected = captum.attr.Occlusion(resnet).attribute(
        image, (3, 32, 32), strides=(3, 16, 16), baselines=0, target=5, perturbations_per_eval=8
    )
    explainer = get_explainer("occlusion", window=32, stride=16, baseline="zero")
    torch.testing.assert_close(values(explainer, resnet, image, 5), expected[:, :1], rtol=0, atol=1e-5)


def test_feature_ablation_equals_captum_with_the_same_feature_mask(resnet: Model, image: Tensor) -> None:
    labels = make_features("grid:4", resnet, image[0]).spread(torch.arange(16))
    expected = captum.attr.FeatureAblation(resnet).attribute(
        image, baselines=0, target=5, feature_mask=labels[None, None], perturbations_per_eval=8
    )
    explainer = get_explainer("feature_ablation", features="grid:4", baseline="zero")
    torch.testing.assert_close(values(explainer, resnet, image, 5), expected[:, :1], rtol=0, atol=1e-5)


def test_lime_equals_captum_on_pixels(resnet: Model, image: Tensor) -> None:
    labels = make_features("grid:4", resnet, image[0]).spread(torch.arange(16))

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
            image, baselines=0, feature_mask=labels[None, None], n_samples=64, perturbations_per_eval=16
        )
    explainer = get_explainer("lime", features="grid:4", baseline="zero", samples=64, tolerance=0.0)
    torch.testing.assert_close(values(explainer, resnet, image, 5), expected[:, :1], rtol=1e-4, atol=1e-7)


def test_kernel_shap_approaches_the_exact_shapley_values(resnet: Model, image: Tensor) -> None:
    players = 4
    features = make_features("grid:2", resnet, image[0])
    every = torch.tensor([[float(bits >> player & 1) for player in range(players)] for bits in range(2**players)])
    removal = make_removal("zero", resnet, image[0])
    score = coalition_scores(resnet, image[0], features, every, removal=removal, score=lambda out: out[:, 5])

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
    found = explainer.explain(resnet, image, 5)[0]
    # The coalitions are drawn with replacement: the error falls as 1 / sqrt(3000), about 2 % of the spread.
    torch.testing.assert_close(
        found.values[0], features.spread(exact), rtol=0, atol=0.05 * float(exact.max() - exact.min())
    )
    assert found.metadata["completeness_gap"] < 1e-4 * float(score.abs().max())
    assert found.metadata["forward_passes"] == 2**players  # each coalition is evaluated once


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


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet", "resnet10t"])
def test_deeplift_is_complete_on_relu_networks_with_max_pooling(name: str, image: Tensor) -> None:
    model = from_timm(name)
    found = get_explainer("deeplift", baseline="zero").explain(model, image, 5)[0]
    change = float((model.predict(image) - model.predict(torch.zeros_like(image)))[0, 5])
    assert float(found.values.sum()) == pytest.approx(change, rel=1e-3, abs=1e-5)
    assert found.metadata["completeness_gap"] < 1e-3 * abs(change)
    assert found.warnings == []


@pytest.mark.filterwarnings("ignore:\\s*Setting forward:UserWarning")  # captum's own notice
def test_deeplift_equals_captum_where_there_is_no_pooling(image: Tensor) -> None:
    network = randomised(
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * (SIDE - 4) ** 2, 3),
        )
    )
    model = wrapped(network, (3, SIDE, SIDE))
    expected = captum.attr.DeepLift(model.module).attribute(
        image.clone().requires_grad_(), torch.zeros_like(image), target=1
    )
    found = values(get_explainer("deeplift", baseline="zero"), model, image, 1)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-7)


def test_deeplift_keeps_every_window_that_shares_its_largest_pixel() -> None:
    network = nn.Sequential(nn.MaxPool2d(2, stride=1), nn.Flatten(), nn.Linear(4, 2, bias=False))
    network[2].weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    model = wrapped(network, (1, 3, 3))
    image = torch.tensor([[0.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.0]]).view(1, 1, 3, 3)
    found = values(get_explainer("deeplift", baseline="zero"), model, image, 0)[0, 0]
    assert found.tolist() == [[0, 0, 0], [0, 90, 0], [0, 0, 0]]


def test_integrated_gradients_warn_when_too_few_steps_leave_a_gap() -> None:
    torch.manual_seed(2)
    model, image = flat(nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 3)), images(1, (3, 8, 8))
    coarse = get_explainer("integrated_gradients", steps=2, rule="riemann_left").explain(model, image, 1)[0]
    fine = get_explainer("integrated_gradients", steps=300).explain(model, image, 1)[0]
    assert any("use more steps" in warning for warning in coarse.warnings)
    assert fine.warnings == []
    assert fine.metadata["completeness_gap"] < coarse.metadata["completeness_gap"]


@pytest.mark.parametrize(
    ("miss", "said"),
    [
        (0.04, ""),
        (0.08, "the values miss the change in score from the baseline by 8.0% of it; use more steps"),
        (0.5, "the sizes of the values are unreliable: they miss the change in score by 50% of it; use more steps"),
        (
            14.0,
            "the values do not explain the score: their sum misses the change in score from the baseline by 14 times",
        ),
    ],
)
def test_the_warning_about_a_completeness_gap_grows_with_it(miss: float, said: str) -> None:
    values = torch.full((1, 1, 2, 2), (1 + miss) / 4)

    _, _, warnings = completeness(values, torch.ones(1), tolerance=0.05, remedy="use more steps")

    assert len(warnings) == bool(said)
    assert all(warning.startswith(said) for warning in warnings)
