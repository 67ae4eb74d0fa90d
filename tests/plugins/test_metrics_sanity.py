"""Randomisation tests: known similarities, copies that leave the model alone, and Quantus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import chain

import numpy as np
import pytest
import timm
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import conv2d, cosine_similarity

from xaihub import (
    Case,
    Explainer,
    ExplainerRefused,
    MetricRefused,
    Model,
    Preprocessing,
    ResolvedTarget,
    Runtime,
    Scene,
    Target,
)
from xaihub_controls.method import CentreControl, EdgesControl, RandomControl
from xaihub_metrics_sanity import xaihub_register_metrics
from xaihub_metrics_sanity.mprt import MPRT
from xaihub_metrics_sanity.random_logit import RandomLogit
from xaihub_metrics_sanity.randomise import copy_of, randomised, stages
from xaihub_metrics_sanity.similarity import similarity

SIDE = 16


class Gradient(Explainer):
    """Explain with the gradient, summed over channels."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        inputs.requires_grad_()
        return torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0].sum(1, keepdim=True)


class Fixed(nn.Linear):
    """A linear layer that starts anew always in the same way, whatever random numbers there are."""

    def reset_parameters(self) -> None:
        generator = torch.Generator().manual_seed(self.in_features)
        with torch.no_grad():
            self.weight.copy_(torch.randn(self.weight.shape, generator=generator))
            self.bias.copy_(torch.randn(self.bias.shape, generator=generator))


def model_of(module: nn.Module, *, channels: int = 1, side: int = SIDE, name: str = "toy") -> Model:
    size = (channels, side, side)
    preprocessing = Preprocessing(spatial=[], size=size, mean=(0.0,) * channels, std=(1.0,) * channels)
    return Model(module, name=name, preprocessing=preprocessing)


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """Stand in for training: every weight and running statistic is moved away from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        for buffer in (buffer for name, buffer in module.named_buffers() if name.endswith(("mean", "var"))):
            buffer.add_(torch.rand(buffer.shape, generator=generator))
    return module


def perceptron(kind: type[nn.Linear] = nn.Linear) -> nn.Module:
    layers = [kind(SIDE * SIDE, 20), nn.Softplus(), kind(20, 12), nn.Softplus(), kind(12, 5)]
    return trained(nn.Sequential(nn.Flatten(), *layers))


def case_of(
    explainer: Explainer, model: Model, *, image: Tensor | None = None, target: str | int = 0, seed: int = 0
) -> Case:
    image = torch.rand(model.input_size, generator=torch.Generator().manual_seed(0)) if image is None else image
    logits = model.predict(image[None])
    wanted = Target.parse(target)
    scene = Scene(model=model, image=image, logits=logits[0], target=wanted.resolve(logits))
    (explanation,) = explainer.explain(model, image[None], wanted, seed=seed)
    return Case(scene=scene, explanation=explanation, explainer=explainer, seed=seed)


def maps(count: int, side: int = SIDE) -> Iterator[Tensor]:
    yield from torch.randn(count, side, side, generator=torch.Generator().manual_seed(1))


# Similarity of maps

KINDS = ["ssim", "spearman", "cosine"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_map_is_like_itself_at_any_scale(kind: str, absolute: bool) -> None:
    for heat in maps(3):
        assert similarity(heat, heat * 1e-20, kind, absolute=absolute) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("kind", ["spearman", "cosine"])
def test_the_opposite_map_is_unlike_unless_signs_do_not_matter(kind: str) -> None:
    (heat,) = maps(1)
    assert similarity(heat, -heat, kind, absolute=False) == pytest.approx(-1)
    assert similarity(heat, -heat, kind, absolute=True) == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_unrelated_noise_is_about_zero(kind: str) -> None:
    first, second = maps(2, side=64)
    assert similarity(first, second, kind, absolute=False) == pytest.approx(0, abs=0.05)


def test_rank_correlation_equals_scipy_with_ties() -> None:
    a, b = ((heat * 2).round() for heat in maps(2))
    b = a + 2 * b
    expected = spearmanr(a.flatten().numpy(), b.flatten().numpy()).statistic
    assert similarity(a, b, "spearman", absolute=False) == pytest.approx(expected, abs=1e-12)
    assert len(a.unique()) < 20


def test_structural_similarity_is_the_mean_of_the_published_formula_over_gaussian_windows() -> None:
    a, b = maps(2, side=30)
    b = a + 0.5 * b
    x, y = (heat.double().abs() / heat.double().abs().max() for heat in (a, b))
    window = torch.exp(-(torch.arange(-5, 6).double() ** 2) / (2 * 1.5**2))
    window = torch.outer(window, window) / window.sum() ** 2

    def blur(values: Tensor) -> Tensor:
        return conv2d(values[None, None], window[None, None])[0, 0]

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + 0.01**2) * (2 * cov + 0.03**2)
    expected = top / ((mean_x**2 + mean_y**2 + 0.01**2) * (var_x + var_y + 0.03**2))
    assert similarity(a, b, "ssim", absolute=True) == pytest.approx(expected.mean().item(), abs=1e-6)


def test_a_map_that_says_nothing_is_unrelated() -> None:
    (heat,) = maps(1)
    assert similarity(heat, torch.full_like(heat, 3.0), "spearman", absolute=True) == 0
    assert similarity(heat, torch.zeros_like(heat), "cosine", absolute=True) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_compared_with_an_empty_map(kind: str) -> None:
    with pytest.raises(MetricRefused, match="zero everywhere"):
        similarity(torch.zeros(SIDE, SIDE), torch.rand(SIDE, SIDE), kind, absolute=True)


def test_ranks_of_a_constant_map_and_windows_on_a_tiny_one_are_refused() -> None:
    with pytest.raises(MetricRefused, match="constant"):
        similarity(torch.ones(SIDE, SIDE), torch.rand(SIDE, SIDE), "spearman", absolute=True)
    with pytest.raises(MetricRefused, match="at least 11 pixels"):
        similarity(torch.rand(10, 20), torch.rand(10, 20), "ssim", absolute=True)


# Randomised copies


def network(name: str) -> Model:
    torch.manual_seed(0)
    return model_of(trained(timm.create_model(name, num_classes=10)), channels=3, side=96, name=name)


def changed_parameters(model: Model, copy: Model) -> set[str]:
    before = dict(model.module.named_parameters())
    return {name for name, parameter in copy.module.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("weights", ["initial", "shuffled"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_a_cascade_goes_down_from_the_output_until_every_parameter_is_new(name: str, weights: str) -> None:
    model = network(name)
    groups = stages(model.module, 4)
    sets = [
        changed_parameters(model, copy) for _, copy in randomised(model, order="cascading", layers=4, weights=weights)
    ]
    owners = [{parameter.rpartition(".")[0] for parameter in changed} for changed in sets]
    assert owners == [set(chain(*groups[: index + 1])) for index in range(4)]
    assert sets[-1] == {name for name, parameter in model.module.named_parameters() if parameter.numel() > 1}
    assert f"{model.structure.head}.weight" in sets[0]


def test_one_stage_at_a_time_leaves_the_others_as_they_were() -> None:
    model = network("test_resnet")
    groups = stages(model.module, 5)
    copies = randomised(model, order="independent", layers=5, weights="initial")
    owners = [{name.rpartition(".")[0] for name in changed_parameters(model, copy)} for _, copy in copies]
    assert owners == [set(group) for group in groups]


def test_tokens_and_embeddings_of_a_transformer_are_randomised_last() -> None:
    torch.manual_seed(0)
    model = model_of(trained(timm.create_model("test_vit", num_classes=10)), channels=3, side=160)
    before, *_, after = (
        changed_parameters(model, copy)
        for _, copy in randomised(model, order="cascading", layers=100, weights="initial")
    )
    assert before == {"head.weight", "head.bias"}
    assert after == {name for name, _ in model.module.named_parameters()}
    assert {"cls_token", "pos_embed"} < after


def test_parameters_without_an_initialisation_keep_their_mean_and_spread() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, SIDE, SIDE) * 3 + 7)
            self.head = nn.Linear(SIDE * SIDE, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head((inputs + self.token).flatten(1))

    torch.manual_seed(0)
    model = model_of(Token())
    *_, (_, copy) = randomised(model, order="cascading", layers=2, weights="initial")
    token = copy.module.get_parameter("token")
    assert token.mean().item() == pytest.approx(7, abs=0.8)
    assert token.std().item() == pytest.approx(3, abs=0.5)


def test_shuffling_keeps_the_values_of_each_parameter() -> None:
    model = network("test_resnet")
    *_, (_, copy) = randomised(model, order="cascading", layers=3, weights="shuffled")
    before = dict(model.module.named_parameters())
    for name, parameter in copy.module.named_parameters():
        assert torch.equal(parameter.flatten().sort().values, before[name].flatten().sort().values)


@pytest.mark.parametrize("layers", [1, 3, 7, 1000])
def test_stages_cover_every_module_once_and_are_of_like_size(layers: int) -> None:
    module = network("test_resnet").module
    groups = stages(module, layers)
    names = list(chain(*groups))
    owners = {name.rpartition(".")[0] for name, _ in module.named_parameters()}
    assert len(groups) == min(layers, len(owners))
    assert len(names) == len(set(names)) == len(owners)
    assert set(names) == owners
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_a_copy_reads_the_same_layers_from_its_own_modules() -> None:
    model = network("test_resnet")
    copy = copy_of(model)
    layer = copy.layer()
    assert layer.name == model.layer().name
    assert layer.reason == model.layer().reason
    assert layer.module is copy.module.get_submodule(layer.name)
    assert layer.module is not model.layer().module
    assert copy.preprocessing is model.preprocessing


def test_a_progress_bar_is_shared_and_never_copied() -> None:
    class Bar:
        def __call__(self, done: int, total: int) -> None: ...

        def __deepcopy__(self, memo: object) -> Bar:
            raise AssertionError("a bar holds a lock")

    model = model_of(perceptron())
    model.runtime = Runtime(progress=Bar())
    assert copy_of(model).runtime is model.runtime


# Model parameter randomisation test

SETTINGS = [MPRT(similarity=kind, order=order) for kind in KINDS for order in ("cascading", "independent")]


@pytest.mark.parametrize("metric", [*SETTINGS, MPRT(weights="shuffled", absolute=False)], ids=repr)
@pytest.mark.parametrize("control", [RandomControl(), EdgesControl(), CentreControl()], ids=repr)
def test_a_map_that_ignores_the_network_scores_one(control: Explainer, metric: MPRT) -> None:
    assert metric.measure(case_of(control, model_of(perceptron())))[0].value == pytest.approx(1, abs=1e-9)


def test_the_gradient_of_a_linear_model_scores_the_cosine_of_old_and_new_weights() -> None:
    module = trained(nn.Sequential(nn.Flatten(), Fixed(SIDE * SIDE, 4)))
    new = deepcopy(module[1])
    new.reset_parameters()
    expected = cosine_similarity(module[1].weight[2], new.weight[2], dim=0).item()
    found = MPRT(similarity="cosine", absolute=False).measure(case_of(Gradient(), model_of(module), target=2))[0]
    assert found.value == pytest.approx(expected, abs=1e-6)
    assert found.details["modules"] == ["1"]


def test_the_more_of_a_map_is_fixed_the_higher_it_scores() -> None:
    class Mixed(Explainer):
        def __init__(self, *, share: float = 0.5) -> None:
            self.share = share

        def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
            fixed = inputs.detach().clone()
            gradient = Gradient().attribute(model, inputs, target)
            return self.share * fixed / fixed.norm() + (1 - self.share) * gradient / gradient.norm()

    model = model_of(perceptron())
    scores = [MPRT(layers=2).measure(case_of(Mixed(share=share), model))[0].value for share in (0.0, 0.5, 0.8, 1.0)]
    assert scores == sorted(scores)
    assert scores[0] < 0.4
    assert scores[-1] == pytest.approx(1)


@pytest.mark.parametrize(("order", "theirs"), [("cascading", "top_down"), ("independent", "independent")])
def test_equals_quantus_where_both_draw_the_same_weights(order: str, theirs: str) -> None:
    quantus = pytest.importorskip("quantus")
    module = perceptron(Fixed)
    images = torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    explainer = Gradient()

    def explain(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: object) -> np.ndarray:
        rows = torch.as_tensor(inputs)
        found = explainer.explain(model_of(model), rows, int(targets[0]))
        return torch.stack([item.values for item in found]).numpy()

    metric = quantus.MPRT(
        similarity_func=quantus.similarity_func.correlation_spearman,
        layer_order=theirs,
        disable_warnings=True,
    )
    scores = metric(
        model=deepcopy(module).eval(),
        x_batch=images.numpy(),
        y_batch=np.full(3, 1),
        explain_func=explain,
        channel_first=True,
    )
    # Their own average counts the untouched network as well, which is 1 by definition.
    peers = np.mean([scores[name] for name in ("1", "3", "5")], axis=0)
    assert scores["original"] == pytest.approx([1, 1, 1])
    ours = [
        MPRT(order=order, layers=3).measure(case_of(explainer, model_of(module), image=image, target=1))[0].value
        for image in images
    ]
    assert ours == pytest.approx([float(value) for value in peers], abs=1e-6)
    assert len(set(ours)) == 3


def state(model: Model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_the_model_is_left_bit_for_bit_as_it_was(order: str) -> None:
    model = network("test_resnet")
    case = case_of(Gradient(), model)
    before, digest, logits = state(model), model.weights_hash, model.predict(case.scene.image[None])
    MPRT(order=order, layers=3).measure(case)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert model.weights_hash == digest
    assert torch.equal(model.predict(case.scene.image[None]), logits)


class Fails(Explainer):
    """Draw noise for the first network, and fail on any other."""

    error: Callable[[], Exception] = staticmethod(lambda: ExplainerRefused("it has no taste"))
    known: str = ""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        self.known = self.known or model.weights_hash
        known = {self.known: torch.rand(1, 1, SIDE, SIDE)}
        if model.weights_hash not in known:
            raise self.error()
        return known[model.weights_hash]


def test_a_copy_that_cannot_be_explained_is_named() -> None:
    with pytest.raises(MetricRefused, match="randomised at '5' cannot be explained: it has no taste"):
        MPRT().measure(case_of(Fails(), model_of(perceptron())))


def test_the_model_is_left_as_it_was_when_the_explainer_breaks() -> None:
    class Breaks(Fails):
        error = staticmethod(lambda: KeyError("no such thing"))

    model = model_of(perceptron())
    model.module.train()
    before, case = state(model), case_of(Breaks(), model)
    with pytest.raises(KeyError):
        MPRT().measure(case)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert model.module.training
    assert all(parameter.requires_grad for parameter in model.module.parameters())


class Hashes(Explainer):
    """Note the weights of every network that is explained."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        self.seen = [*getattr(self, "seen", []), model.weights_hash]
        torch.rand(len(self.seen))  # a greedy user of random numbers
        return inputs.clone()


def hashes(model: Model, image: Tensor, seed: int) -> list[str]:
    explainer = Hashes()
    case = case_of(explainer, model, image=image, seed=seed)
    explainer.seen = []
    MPRT(layers=3).measure(case)
    return explainer.seen


def test_every_picture_meets_the_same_copies_and_another_seed_others() -> None:
    model = model_of(perceptron())
    first, second = torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    seen = hashes(model, first, seed=0)
    assert seen == hashes(model, second, seed=0)
    assert len({*seen, *hashes(model, first, seed=1), model.weights_hash}) == 7


def test_passes_through_the_copies_are_counted() -> None:
    _, counts = MPRT(layers=3).measure(case_of(Gradient(), model_of(perceptron())))
    # Each explanation also asks for the prediction.
    assert (counts.forwards, counts.backwards) == (6, 3)


def test_a_cascade_gives_a_curve_that_starts_with_the_map_itself() -> None:
    found = MPRT(layers=3).measure(case_of(Gradient(), model_of(perceptron())))[0]
    alike = found.details["similarities"]
    assert found.curve == ([0.0, 1 / 3, 2 / 3, 1.0], [1.0, *alike])
    assert found.value == pytest.approx(sum(alike) / 3)
    assert found.details["modules"] == ["5", "3", "1"]


def test_a_network_without_parameters_is_refused() -> None:
    class Mean(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.mean((2, 3)).expand(-1, 2) + inputs[:, 0, 0, :2]

    with pytest.raises(MetricRefused, match="no parameters"):
        MPRT().measure(case_of(Gradient(), model_of(Mean())))


# Random logit test


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("control", [RandomControl(), EdgesControl(), CentreControl()], ids=repr)
def test_a_class_agnostic_map_scores_one(control: Explainer, kind: str) -> None:
    found = RandomLogit(similarity=kind).measure(case_of(control, model_of(perceptron())))[0]
    assert found.value == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("absolute", [True, False])
def test_the_gradient_of_a_linear_model_scores_the_cosine_of_two_classes(absolute: bool) -> None:
    module = trained(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 6)))
    metric = RandomLogit(similarity="cosine", absolute=absolute)
    found = metric.measure(case_of(Gradient(), model_of(module), target=3))[0]
    kept = {True: Tensor.abs, False: Tensor.clone}[absolute]
    rows = kept(module[1].weight.detach())
    assert found.value == pytest.approx(
        cosine_similarity(rows[3], rows[found.details["class"]], dim=0).item(), abs=1e-6
    )


def test_the_other_class_of_two_is_the_other_one() -> None:
    model = model_of(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)))
    others = [RandomLogit().measure(case_of(Gradient(), model, target=target))[0].details["class"] for target in (0, 1)]
    assert others == [1, 0]


def test_the_other_class_varies_with_picture_and_seed_but_not_with_the_explainer() -> None:
    model = model_of(perceptron())
    images = torch.rand(40, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(4))

    def other(explainer: Explainer, image: Tensor, seed: int = 0) -> int:
        return RandomLogit().measure(case_of(explainer, model, image=image, seed=seed))[0].details["class"]

    drawn = [other(EdgesControl(), image) for image in images]
    assert set(drawn) == {1, 2, 3, 4}
    assert drawn[:5] == [other(Gradient(), image) for image in images[:5]]
    assert {other(EdgesControl(), images[0], seed) for seed in range(40)} == {1, 2, 3, 4}


def test_a_contrast_keeps_what_it_is_contrasted_with() -> None:
    module = trained(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3)))
    metric = RandomLogit(similarity="cosine")
    found = metric.measure(case_of(Gradient(), model_of(module), target="0 vs 1"))[0]
    rows = module[1].weight.detach()
    assert found.details["class"] == 2
    assert found.value == pytest.approx(cosine_similarity(rows[0] - rows[1], rows[2] - rows[1], dim=0).item(), abs=1e-6)


def test_a_model_without_another_class_is_refused() -> None:
    model = model_of(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)))
    with pytest.raises(MetricRefused, match="no other class"):
        RandomLogit().measure(case_of(Gradient(), model, target="0 vs 1"))


def test_every_record_loads_and_lower_is_better() -> None:
    specs = {spec.name: spec for spec in xaihub_register_metrics()}
    assert {name: spec.load() for name, spec in specs.items()} == {"mprt": MPRT, "random_logit": RandomLogit}
    assert not any(spec.higher_is_better for spec in specs.values())
