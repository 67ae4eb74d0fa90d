"""Metrics of explanations of images: exact cases, the definition, common random numbers, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xaihub import (
    Attribution,
    Case,
    Explainer,
    Metric,
    MetricRefused,
    Model,
    ParameterError,
    Preprocessing,
    ResolvedTarget,
    Scene,
    Target,
    generator_for,
)
from xaihub.hub import Hub
from xaihub.masking import make_features, make_removal
from xaihub_expo import xaihub_register_metrics
from xaihub_expo.metrics import (
    NeighbourhoodFidelity,
    PointFidelity,
    RelativeNeighbourhoodFidelity,
    RelativeSaliencyStability,
    RelativeSurrogateStability,
    SaliencyStability,
    SurrogateStability,
)

SIZE = (3, 12, 12)
LOCAL: list[Metric] = [PointFidelity(), NeighbourhoodFidelity(), SurrogateStability()]
GRID = {"features": "grid:3", "baseline": "zero", "output": "logit"}


class Linear(nn.Module):
    """Two classes: a weighted sum of the input, and its negative."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
        self.register_buffer("weights", weights)

    def forward(self, inputs: Tensor) -> Tensor:
        score = (inputs * self.weights).flatten(1).sum(1)
        return torch.stack([score + 0.5, -score], dim=1)


class Curved(nn.Module):
    """A small network with curvature and random biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Softplus())
        self.head = nn.Linear(8, 4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs).mean((2, 3)))


class Means(Explainer):
    """A local linear model whose coefficients are the mean input of each cell: e(x) = x."""

    stochastic = True  # one image at a time, as its details hold one intercept

    def __init__(self, *, features: str = "grid:3", baseline: str = "zero", output: str = "logit") -> None:
        self.features, self.baseline, self.output = features, baseline, output

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        cells = make_features(self.features, model, inputs[0])
        flat = inputs[0].mean(0).flatten()
        means = torch.zeros(cells.count).index_add_(0, cells.labels.flatten(), flat) / cells.sizes
        return Attribution(values=cells.spread(means)[None, None], details={"intercept": 0.0})


def model_of(module: nn.Module) -> Model:
    plain = Preprocessing(spatial=(), size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Model(module, name="small", preprocessing=plain)


def scene_of(module: nn.Module, index: int = 0) -> Scene:
    model = model_of(module)
    image = torch.randn(SIZE, generator=torch.Generator().manual_seed(3))
    logits = model.predict(image[None])
    return Scene(model=model, image=image, logits=logits[0], target=Target(index=index).resolve(logits))


def case_of(scene: Scene, explainer: Explainer, seed: int = 0) -> Case:
    target = Target(index=int(scene.target.index[0]))
    explanation = explainer.explain(scene.model, scene.image[None], target, seed=seed)[0]
    return Case(scene=scene, explanation=explanation, explainer=explainer, seed=seed)


def explainer(name: str, **values: Any) -> Explainer:
    return Hub().get_explainer(name, **values)


def value(metric: Metric, case: Case) -> float:
    return metric.measure(case)[0].value


@pytest.mark.parametrize("name", ["lime", "kernel_shap"])
def test_a_linear_model_is_explained_exactly_and_stably(name: str) -> None:
    values = {**GRID, "ridge": 0.0} if name == "lime" else GRID
    case = case_of(scene_of(Linear()), explainer(name, samples=200, **values))

    scale = float(case.scene.logits[0].square())
    assert value(PointFidelity(), case) < 1e-6 * scale
    found = NeighbourhoodFidelity().measure(case)[0]
    assert found.value < 1e-6 * found.details["variance"]
    assert value(RelativeNeighbourhoodFidelity(), case) < 1e-6
    # With the image its cells change, and with them the coefficients; hidden pixels' score does not.
    noise_of_a_cell = 0.2**2 / 3 * float(scene_of(Linear()).model.module.weights.square().sum())
    assert value(SurrogateStability(draws=30), case) == pytest.approx(noise_of_a_cell, rel=0.4)


def test_lime_notes_the_intercept_of_its_model() -> None:
    scene = scene_of(Curved(), index=1)
    case = case_of(scene, explainer("lime", samples=400, **GRID))
    cells = make_features("grid:3", scene.model, scene.image)
    removal = make_removal("zero", scene.model, scene.image)
    masks = (torch.rand(400, 9, generator=torch.Generator().manual_seed(1)) < 0.5).float()

    with torch.no_grad():
        outputs = removal(scene.model, scene.image, cells.masks(masks))[:, 1]
    heat = case.heat
    coefficients = torch.stack([heat[cells.labels == k][0] for k in range(9)])
    predicted = masks @ coefficients + case.explanation.metadata["details"]["intercept"]

    assert float((predicted - outputs).mean().abs()) < 0.1 * float(outputs.std())
    assert float((predicted - outputs).var() / outputs.var()) < 0.1


@pytest.mark.parametrize("keep", [0.7, None])
def test_neighbourhood_fidelity_is_the_mean_squared_error_under_fresh_masks(keep: float | None) -> None:
    scene = scene_of(Curved(), index=2)
    case = case_of(scene, explainer("kernel_shap", samples=200, **GRID), seed=4)
    cells = make_features("grid:3", scene.model, scene.image)
    generator = generator_for("masks around an image 4", scene.image)
    chance = torch.tensor(keep) if keep else torch.rand(30, 1, generator=generator)
    masks = (torch.rand(30, 9, generator=generator) < chance).float()

    errors, outputs = [], []
    for mask in masks:
        shown = mask[cells.labels]
        with torch.no_grad():
            output = float(scene.model((scene.image * shown)[None])[0, 2])
        predicted = case.explanation.metadata["details"]["intercept"] + sum(
            float(case.heat[cells.labels == k][0]) * float(mask[k]) for k in range(9)
        )
        errors.append((predicted - output) ** 2)
        outputs.append(output)

    mean = sum(errors) / 30
    variance = float(torch.tensor(outputs).var(correction=0))
    assert value(NeighbourhoodFidelity(masks=30, keep=keep), case) == pytest.approx(mean, rel=1e-4)
    assert value(RelativeNeighbourhoodFidelity(masks=30, keep=keep), case) == pytest.approx(mean / variance, rel=1e-4)


def test_point_fidelity_of_kernel_shap_is_zero_and_that_of_lime_is_not() -> None:
    scene = scene_of(Curved(), index=2)

    assert value(PointFidelity(), case_of(scene, explainer("kernel_shap", samples=200, **GRID))) < 1e-10
    assert value(PointFidelity(), case_of(scene, explainer("lime", samples=200, **GRID))) > 1e-6


def test_stability_explains_the_noisy_copy_and_not_the_image_again() -> None:
    found = SurrogateStability(draws=60, radius=0.1).measure(case_of(scene_of(Curved()), Means()))[0]

    # Nine means of 16 pixels and three channels, of uniform noise up to 0.1 / 0.25.
    assert found.value == pytest.approx(9 * (0.1 / 0.25) ** 2 / 3 / (16 * 3), rel=0.1)
    relative = value(RelativeSurrogateStability(draws=60, radius=0.1), case_of(scene_of(Curved()), Means()))
    assert relative == pytest.approx(found.value / found.details["squared_norm"])


def test_with_common_random_numbers_a_stochastic_explainer_is_stable_where_the_model_is() -> None:
    scene = scene_of(Curved(), index=2)
    lime = explainer("lime", samples=40, **GRID)
    case = case_of(scene, lime)
    tiny = value(SurrogateStability(draws=4, radius=1e-4), case)

    vectors = [case_of(scene, lime, seed=seed).heat for seed in (0, 1)]
    resampled = float((vectors[0] - vectors[1]).square().sum()) / 16

    assert tiny < 1e-3 * resampled


@pytest.mark.parametrize("factor", [0.1, 7.0])
def test_scale_free_forms_do_not_see_the_scale_of_the_logits(factor: float) -> None:
    plain, scaled = Curved(), Curved()
    scaled.head.weight.data *= factor
    scaled.head.bias.data *= factor
    lime = explainer("lime", samples=100, **GRID)
    saliency = explainer("saliency", absolute=False)

    for made, metric in [
        (lime, RelativeNeighbourhoodFidelity()),
        (lime, RelativeSurrogateStability()),
        (saliency, RelativeSaliencyStability()),
    ]:
        one, other = (value(metric, case_of(scene_of(network, index=1), made)) for network in (plain, scaled))
        assert other == pytest.approx(one, rel=1e-3)
    for made, metric in [
        (lime, NeighbourhoodFidelity()),
        (lime, SurrogateStability()),
        (saliency, SaliencyStability()),
    ]:
        one, other = (value(metric, case_of(scene_of(network, index=1), made)) for network in (plain, scaled))
        assert other == pytest.approx(one * factor**2, rel=1e-3)


def test_a_constant_added_to_the_logits_changes_nothing() -> None:
    plain, raised = Curved(), Curved()
    raised.head.bias.data += 50
    shap = explainer("kernel_shap", samples=100, **GRID)

    for metric in (RelativeNeighbourhoodFidelity(), RelativeSurrogateStability()):
        one, other = (value(metric, case_of(scene_of(network, index=1), shap)) for network in (plain, raised))
        assert other == pytest.approx(one, rel=1e-2)


def test_the_saliency_of_a_linear_model_is_perfectly_stable() -> None:
    case = case_of(scene_of(Linear()), explainer("saliency", absolute=False))

    found = SaliencyStability().measure(case)[0]

    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.details["cosine"] == pytest.approx(1)


def test_saliency_stability_is_the_mean_squared_change_per_pixel() -> None:
    scene = scene_of(Curved(), index=1)
    case = case_of(scene, explainer("saliency", absolute=False), seed=2)
    generator = generator_for("noise on an image 2", scene.image)
    noise = (torch.rand(2, *SIZE, generator=generator) * 2 - 1) * 0.05 / 0.25

    changes = []
    for shift in noise:
        noisy = (scene.image + shift)[None].requires_grad_()
        gradient = torch.autograd.grad(scene.model(noisy)[0, 1], noisy)[0][0]
        changes.append(float((gradient - case.explanation.values).square().mean()))

    assert value(SaliencyStability(draws=2), case) == pytest.approx(sum(changes) / 2, rel=1e-4)


def test_explainers_of_one_image_share_the_masks_and_their_forward_passes() -> None:
    scene = scene_of(Curved(), index=1)
    first, second = (case_of(scene, explainer(name, samples=60, **GRID)) for name in ("lime", "kernel_shap"))

    with scene.model.counting() as made:
        charged = [NeighbourhoodFidelity(masks=20).measure(case)[1].forward_passes for case in (first, second, first)]

    assert made.forward_passes == 20
    assert charged == [20, 20, 20]


def test_probabilities_are_judged_as_probabilities() -> None:
    values = {**GRID, "output": "probability"}
    case = case_of(scene_of(Curved(), index=1), explainer("kernel_shap", samples=200, **values))

    assert value(PointFidelity(), case) < 1e-10
    assert NeighbourhoodFidelity().measure(case)[0].details["variance"] < 0.25


def test_noise_that_hides_is_the_noise_that_the_explainer_drew() -> None:
    values = {**GRID, "baseline": "noise", "ridge": 0.0}
    case = case_of(scene_of(Linear()), explainer("lime", samples=200, **values), seed=6)

    assert value(RelativeNeighbourhoodFidelity(), case) < 1e-6


@pytest.mark.parametrize("metric", LOCAL, ids=repr)
def test_maps_without_a_local_linear_model_are_refused(metric: Metric) -> None:
    case = case_of(scene_of(Curved()), explainer("saliency"))

    with pytest.raises(MetricRefused, match="saliency gives no local linear model"):
        metric.measure(case)


def test_stability_on_superpixels_is_refused() -> None:
    scene = scene_of(Curved())
    scene.image[:, :, :6] = 2 - 0.1 * scene.image[:, :, :6]
    scene.image[:, :, 6:] = -2 + 0.1 * scene.image[:, :, 6:]
    scene.logits = scene.model.predict(scene.image[None])[0]
    case = case_of(scene, explainer("lime", **{**GRID, "features": "superpixels:4"}))

    assert value(NeighbourhoodFidelity(), case) >= 0
    with pytest.raises(MetricRefused, match="superpixels"):
        SurrogateStability().measure(case)


def test_relative_forms_of_nothing_are_refused() -> None:
    class Constant(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.new_ones(len(inputs), 2) + 0 * inputs.sum((1, 2, 3)).unsqueeze(1)

    case = case_of(scene_of(Constant()), explainer("lime", **GRID))

    for metric in (RelativeNeighbourhoodFidelity(), RelativeSurrogateStability(), RelativeSaliencyStability()):
        with pytest.raises(MetricRefused, match="no meaning"):
            metric.measure(case)


@pytest.mark.parametrize("values", [{"masks": "1"}, {"keep": "1"}, {"keep": "x"}])
def test_wrong_parameters_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(ParameterError, match=f"'{next(iter(values))}'"):
        Hub().get_metric("neighbourhood_fidelity", **values)


def test_every_metric_can_be_made_by_its_name_and_prefers_small_values() -> None:
    specs = xaihub_register_metrics()

    assert len({type(Hub().get_metric(spec.name)) for spec in specs}) == len(specs) == 7
    assert all(spec.higher_is_better is False for spec in specs)
