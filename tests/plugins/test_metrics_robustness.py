"""Robustness metrics against analytic values, captum and Quantus."""

from __future__ import annotations

import captum.attr
import captum.metrics
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.plugins.fidelity_cases import Network
from xaihub import (
    Case,
    Explainer,
    Metric,
    MetricRefused,
    Model,
    Preprocessing,
    ResolvedTarget,
    Runtime,
    Scene,
    Target,
)
from xaihub_metrics_robustness import xaihub_register_metrics
from xaihub_metrics_robustness.method import LocalLipschitz, MaxSensitivity, draw_noise

SIZE = (3, 10, 10)
BOTH = [MaxSensitivity(samples=6), LocalLipschitz(samples=6)]


class Linear(nn.Module):
    """Two classes: a weighted sum of the input, and its negative."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, inputs: Tensor) -> Tensor:
        score = (inputs * self.weights).flatten(1).sum(1)
        return torch.stack([score, -score], dim=1)


class Constant(Explainer):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        return torch.ones_like(inputs)


class Gradient(Explainer):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        inputs.requires_grad_()
        return torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0]


class InputTimesGradient(Explainer):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        inputs.requires_grad_()
        return inputs * torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0]


class Noise(Explainer):
    """Random numbers, whatever the image."""

    stochastic = True

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        return torch.rand_like(inputs)


def case_of(
    explainer: Explainer,
    module: nn.Module,
    *,
    std: tuple[float, ...] = (0.2, 0.25, 0.5),
    seed: int = 0,
    batch_size: int | None = None,
    target: str | int | None = None,
    map_seed: int | None = None,
) -> Case:
    image = torch.randn(SIZE, generator=torch.Generator().manual_seed(9))
    model = Model(
        module,
        name="toy",
        preprocessing=Preprocessing(spatial=[], size=SIZE, mean=(0.5, 0.4, 0.3), std=std),
        runtime=Runtime(batch_size=batch_size),
    )
    logits = model.predict(image[None])
    explanation = explainer.explain(model, image[None], target, seed=seed if map_seed is None else map_seed)[0]
    resolved = Target.parse(target).resolve(logits)
    scene = Scene(model=model, image=image, logits=logits[0], target=resolved)
    return Case(scene=scene, explanation=explanation, explainer=explainer, seed=seed)


def value(metric: Metric, case: Case) -> float:
    return metric.measure(case)[0].value


@pytest.mark.parametrize("metric", BOTH, ids=repr)
def test_a_constant_map_never_changes(metric: Metric) -> None:
    assert value(metric, case_of(Constant(), Network())) == 0


@pytest.mark.parametrize("relative", [True, False])
def test_input_times_gradient_of_a_linear_model_changes_by_weight_times_noise(relative: bool) -> None:
    weights = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    case = case_of(InputTimesGradient(), Linear(weights), target=1, seed=4)
    sensitivities, constants = [], []
    norm = float((weights * case.scene.image).norm()) if relative else 1.0
    for noise in draw_noise(7, 0.05, SIZE, seed=4):
        change = float((weights * noise / torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)).norm()) / norm
        sensitivities.append(change)
        constants.append(change / float(noise.norm()))
    largest, lipschitz = (kind(samples=7, radius=0.05, relative=relative) for kind in (MaxSensitivity, LocalLipschitz))
    assert value(largest, case) == pytest.approx(max(sensitivities), rel=1e-4)
    assert value(lipschitz, case) == pytest.approx(max(constants), rel=1e-4)


def test_the_lipschitz_constant_of_a_map_that_is_the_input_is_known() -> None:
    case = case_of(InputTimesGradient(), Linear(torch.full(SIZE, -3.0)), std=(0.25, 0.25, 0.25))
    for radius in (0.001, 0.1):  # one pixel unit is 4 of the model's, of which each counts 3 times
        assert value(LocalLipschitz(radius=radius, relative=False), case) == pytest.approx(12, rel=1e-3)


def test_max_sensitivity_equals_captum_for_the_same_noise() -> None:
    case = case_of(Gradient(), Network(), seed=2, target=1)
    noise = draw_noise(9, 0.03, SIZE, seed=2) / torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)
    peer = captum.attr.Saliency(Network())  # in the memory order that captum's `view` needs
    theirs = captum.metrics.sensitivity_max(
        lambda inputs, **kwargs: peer.attribute(inputs, abs=False, **kwargs),
        case.scene.image[None].clone().requires_grad_(),
        perturb_func=lambda rows: (rows.detach() + noise).requires_grad_(),
        n_perturb_samples=9,
        target=1,
    )
    assert value(MaxSensitivity(samples=9, radius=0.03), case) == pytest.approx(float(theirs[0]), rel=1e-4)


@pytest.mark.parametrize("peer", ["MaxSensitivity", "LocalLipschitzEstimate"])
def test_both_equal_quantus_for_the_same_noise(peer: str) -> None:
    quantus = pytest.importorskip("quantus")
    case = case_of(Gradient(), Network(), seed=2, target=1, std=(1.0, 1.0, 1.0))
    noise = iter(draw_noise(5, 0.03, SIZE, seed=2))

    def gradient(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: object) -> np.ndarray:
        rows = torch.as_tensor(inputs, dtype=torch.float32).view(-1, *SIZE).requires_grad_()
        score = model(rows)[torch.arange(len(rows)), torch.as_tensor(targets)].sum()
        return torch.autograd.grad(score, rows)[0].numpy()

    theirs = getattr(quantus, peer)(
        nr_samples=5,
        abs=False,
        normalise=False,
        perturb_func=lambda arr, **_: arr + next(noise).view(1, -1).numpy(),
        disable_warnings=True,
    )(
        model=case.model.module,
        x_batch=case.scene.image[None].numpy(),
        y_batch=np.array([1]),
        a_batch=case.explanation.values[None].numpy(),
        explain_func=gradient,
    )
    ours = {
        "MaxSensitivity": MaxSensitivity(samples=5, radius=0.03),
        "LocalLipschitzEstimate": LocalLipschitz(samples=5, radius=0.03, relative=False),
    }[peer]
    assert value(ours, case) == pytest.approx(float(theirs[0]), rel=1e-4)


def test_a_map_that_follows_the_image_more_steeply_scores_worse() -> None:
    class Power(Explainer):
        def __init__(self, *, exponent: int = 1) -> None:
            self.exponent = exponent

        def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
            return inputs**self.exponent

    for metric in BOTH:
        found = [value(metric, case_of(Power(exponent=exponent), Network())) for exponent in (0, 1, 3)]
        assert found[0] == 0
        assert 0 < 1.2 * found[1] < found[2]


def test_the_class_stays_fixed_when_the_prediction_changes() -> None:
    asked: list[int] = []

    class Asked(Explainer):
        def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
            asked.extend(target.index.tolist())
            return inputs

    weights = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    case = case_of(Asked(), Linear(weights))
    noisy = case.scene.image + draw_noise(20, 1.0, SIZE, seed=0) / 0.2
    assert case.model.predict(noisy).argmax(1).unique().tolist() == [0, 1]
    asked.clear()
    MaxSensitivity(samples=20, radius=1.0).measure(case)
    assert asked == [int(case.scene.target.index)] * 20


def test_both_metrics_share_the_explanations() -> None:
    case = case_of(Gradient(), Network())
    metrics = (MaxSensitivity(samples=6), LocalLipschitz(samples=6), LocalLipschitz(samples=6, radius=0.1))
    with case.model.counting() as made:
        charged = [metric.measure(case)[1].backward_passes for metric in metrics]
    assert charged == [6, 6, 6]
    assert made.backward_passes == 12


@pytest.mark.parametrize("metric", BOTH, ids=repr)
def test_copies_are_explained_in_batches_that_fit_and_the_result_is_the_same(metric: Metric) -> None:
    rows: list[int] = []

    class Watched(Gradient):
        def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
            rows.append(len(inputs))
            return super().attribute(model, inputs, target)

    whole = value(metric, case_of(Watched(), Network()))
    assert rows == [1, 6]
    rows.clear()
    assert value(metric, case_of(Watched(), Network(), batch_size=4)) == pytest.approx(whole, rel=1e-4)
    assert rows == [1, 4, 2]


@pytest.mark.parametrize("metric", BOTH, ids=repr)
def test_the_seed_fixes_the_result(metric: Metric) -> None:
    found = [value(metric, case_of(Gradient(), Network(), seed=seed)) for seed in (1, 1, 2)]
    assert found[0] == found[1]
    assert found[0] != pytest.approx(found[2], rel=1e-6)


@pytest.mark.parametrize("metric", BOTH, ids=repr)
def test_the_randomness_of_the_explainer_is_no_sensitivity_to_the_image(metric: Metric) -> None:
    assert value(metric, case_of(Noise(), Network(), seed=3, map_seed=8)) == 0


def test_noise_stays_within_the_radius_and_more_samples_extend_fewer() -> None:
    noise = draw_noise(50, 0.02, SIZE, seed=0)
    assert 0.0199 < float(noise.abs().max()) <= 0.02
    assert float(noise.mean()) == pytest.approx(0, abs=3e-4)
    torch.testing.assert_close(noise[:7], draw_noise(7, 0.02, SIZE, seed=0), rtol=0, atol=0)
    few, many = (value(MaxSensitivity(samples=samples), case_of(Gradient(), Network())) for samples in (3, 12))
    assert few <= many


@pytest.mark.parametrize("kind", [MaxSensitivity, LocalLipschitz])
def test_a_zero_map_is_refused_unless_changes_are_absolute(kind: type[MaxSensitivity] | type[LocalLipschitz]) -> None:
    case = case_of(InputTimesGradient(), Linear(torch.zeros(SIZE)))
    with pytest.raises(MetricRefused, match="the map is zero"):
        kind().measure(case)
    assert value(kind(relative=False), case) == 0


@pytest.mark.parametrize("metric", BOTH, ids=repr)
def test_a_map_of_unknown_origin_is_refused(metric: Metric) -> None:
    case = case_of(Gradient(), Network())
    case.explainer = None
    with pytest.raises(MetricRefused, match="the map's explainer is unknown"):
        metric.measure(case)


def test_every_record_loads_a_metric_with_defaults() -> None:
    specs = list(xaihub_register_metrics())
    assert [spec.name for spec in specs] == ["max_sensitivity", "local_lipschitz"]
    assert all(isinstance(spec.load()(), Metric) for spec in specs)
