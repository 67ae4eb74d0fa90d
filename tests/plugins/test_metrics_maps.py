"""Concentration metrics: known values, a literal second implementation, and Quantus."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xaihub import Case, Explainer, Metric, MetricRefused, Model, Preprocessing, ResolvedTarget, Scene, Target
from xaihub_controls.method import RandomControl
from xaihub_metrics_maps import xaihub_register_metrics
from xaihub_metrics_maps.method import Complexity, EffectiveComplexity, Sparseness

SIDE = 16
PIXELS = SIDE * SIDE
METRICS = [Sparseness(), Complexity(), EffectiveComplexity()]
SPECS = {spec.name: spec for spec in xaihub_register_metrics()}


def the_model() -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 3))
    return Model(
        module, name="linear", preprocessing=Preprocessing(spatial=[], size=(1, SIDE, SIDE), mean=(0.0,), std=(1.0,))
    )


def case_of(heat: Tensor | Explainer, image: Tensor | None = None) -> Case:
    class Given(Explainer):
        def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
            return heat.expand(1, 1, SIDE, SIDE)

    explainer = heat if isinstance(heat, Explainer) else Given()
    model = the_model()
    image = torch.zeros(1, SIDE, SIDE) if image is None else image
    logits = model.predict(image[None])
    scene = Scene(model=model, image=image, logits=logits[0], target=Target().resolve(logits))
    return Case(scene=scene, explanation=explainer.explain(model, image[None])[0], explainer=explainer)


def value(metric: Metric, heat: Tensor) -> float:
    return metric.measure(case_of(heat))[0].value


def equal_pixels(count: int) -> Tensor:
    """A map in which `count` pixels hold 0.3 each."""
    heat = torch.zeros(PIXELS)
    heat[torch.randperm(PIXELS, generator=torch.Generator().manual_seed(count))[:count]] = 0.3
    return heat.view(SIDE, SIDE)


@pytest.mark.parametrize("count", [1, 2, 77, PIXELS])
def test_a_map_of_k_equal_pixels_has_known_values(count: int) -> None:
    heat = equal_pixels(count)
    assert value(Sparseness(), heat) == pytest.approx(1 - count / PIXELS, abs=1e-12)
    assert value(Complexity(), heat) == pytest.approx(math.log(count), abs=1e-12)
    assert value(EffectiveComplexity(), heat) == count


def test_uniform_noise_has_the_expected_values_of_a_uniform_variable() -> None:
    images = torch.rand(40, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    cases = [case_of(RandomControl(), image) for image in images]

    def mean(metric: Metric) -> float:
        return float(np.mean([metric.measure(case)[0].value for case in cases]))

    # The Gini index of U(0, 1) is 1/3, E[U log U] = -1/4.
    assert mean(Sparseness()) == pytest.approx(1 / 3, abs=0.01)
    assert mean(Complexity()) == pytest.approx(math.log(PIXELS) + 0.5 - math.log(2), abs=0.01)
    assert mean(EffectiveComplexity(threshold=0.25)) == pytest.approx(0.75 * PIXELS, rel=0.02)


def test_sparseness_is_the_mean_difference_of_all_pairs() -> None:
    heat = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    values = heat.double().abs().flatten().tolist()
    pairs = sum(abs(a - b) for a in values for b in values)
    assert value(Sparseness(), heat) == pytest.approx(pairs / (2 * PIXELS * sum(values)), abs=1e-12)


def test_the_threshold_is_a_share_of_the_peak_and_the_pixel_must_exceed_it() -> None:
    heat = torch.zeros(SIDE, SIDE)
    heat[0, :4] = torch.tensor([-8.0, 4.0, 2.0, 1.0])
    assert value(EffectiveComplexity(threshold=0.25), heat) == 2
    assert value(EffectiveComplexity(threshold=0.2), heat) == 3
    assert value(EffectiveComplexity(threshold=0), heat) == 4


@pytest.mark.parametrize("metric", METRICS, ids=repr)
@pytest.mark.parametrize("factor", [-1.0, 1e-30, 1e30])
def test_neither_scale_nor_sign_matters(metric: Metric, factor: float) -> None:
    heat = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(2)).pow(3)
    assert value(metric, heat * factor) == pytest.approx(value(metric, heat), rel=1e-6)


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_a_concentrated_map_beats_a_spread_one(metric: Metric) -> None:
    better = SPECS[
        {"EffectiveComplexity": "effective_complexity"}.get(type(metric).__name__, type(metric).__name__.lower())
    ]
    noise = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    spread, middle, narrow = (value(metric, noise.pow(power)) for power in (1, 4, 16))
    assert sorted([spread, middle, narrow], reverse=not better.higher_is_better) == [spread, middle, narrow]
    assert spread != narrow


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_a_map_of_zeros_is_refused(metric: Metric) -> None:
    with pytest.raises(MetricRefused, match="zero everywhere"):
        metric.measure(case_of(torch.zeros(SIDE, SIDE)))


def test_the_channels_of_a_map_are_summed_first() -> None:
    class TwoSigns(Explainer):
        def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
            return torch.stack([torch.ones(SIDE, SIDE), torch.eye(SIDE) - 1, torch.zeros(SIDE, SIDE)]).unsqueeze(0)

    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * PIXELS, 2))
    size = (3, SIDE, SIDE)
    model = Model(
        module, name="colour", preprocessing=Preprocessing(spatial=[], size=size, mean=(0.0,) * 3, std=(1.0,) * 3)
    )
    image = torch.zeros(size)
    logits = model.predict(image[None])
    scene = Scene(model=model, image=image, logits=logits[0], target=Target().resolve(logits))
    case = Case(scene=scene, explanation=TwoSigns().explain(model, image[None])[0])
    assert EffectiveComplexity().measure(case)[0].value == SIDE


@pytest.mark.parametrize(
    ("metric", "peer", "options", "tolerance"),
    [
        # Quantus adds 1e-7 to each value, which is some 3e-6 of the mean value of these maps.
        (Sparseness(), "Sparseness", {}, 1e-5),
        (Complexity(), "Complexity", {}, 1e-6),
        (EffectiveComplexity(threshold=0.1), "EffectiveComplexity", {"eps": 0.1}, 0),
    ],
)
def test_equals_quantus(metric: Metric, peer: str, options: dict[str, float], tolerance: float) -> None:
    quantus = pytest.importorskip("quantus")
    maps = torch.randn(4, SIDE, SIDE, generator=torch.Generator().manual_seed(4)).pow(3)
    # One map a call: Quantus divides by the largest value of the whole batch.
    theirs = [
        getattr(quantus, peer)(disable_warnings=True, **options)(
            model=the_model().module,
            x_batch=np.zeros((1, 1, SIDE, SIDE), dtype=np.float32),
            y_batch=np.zeros(1, dtype=int),
            a_batch=heat.double().view(1, 1, SIDE, SIDE).numpy(),
            channel_first=True,
        )[0]
        for heat in maps
    ]
    ours = [value(metric, heat) for heat in maps]
    assert ours == pytest.approx([float(v) for v in theirs], abs=tolerance)
    assert len(set(ours)) == 4


def test_every_record_loads_and_names_its_metric() -> None:
    assert set(SPECS) == {"sparseness", "complexity", "effective_complexity"}
    assert all(issubclass(spec.load(), Metric) for spec in SPECS.values())
    assert "threshold variant" in SPECS["effective_complexity"].variant


def test_no_pass_through_the_model_is_made() -> None:
    case = case_of(equal_pixels(5))
    assert [metric.measure(case)[1].forward_passes for metric in METRICS] == [0, 0, 0]
