"""Infidelity, against captum, the formula and linear models."""

from __future__ import annotations

import captum.metrics
import numpy as np
import pytest
import torch

from tests.plugins.fidelity_cases import STD, LinearScores, Network, case_of, image, model_of, scene_of, value
from xaihub import (
    ParameterError,
)
from xaihub_metrics_fidelity.infidelity import Infidelity, draw_noise, draw_squares, without_squares


def test_noise_and_squares_have_their_distribution() -> None:
    model = model_of(Network())
    noise = torch.cat(list(draw_noise(200, 0.1, model, seed=0)))
    torch.testing.assert_close(noise.std((0, 2, 3)), 0.1 / torch.tensor(STD), rtol=0.02, atol=0)
    top, left, side = draw_squares(3000, 0.5, (12, 20), seed=0).unbind(1)
    assert side.unique().tolist() == [1, 2, 3, 4, 5, 6]
    assert top[side == 6].unique().tolist() == list(range(7))
    assert left[side == 6].unique().tolist() == list(range(15))
    assert not torch.equal(side, draw_squares(3000, 0.5, (12, 20), seed=1)[:, 2])


def test_infidelity_of_the_exact_attribution_of_a_linear_model_is_zero() -> None:
    weights = image(1)
    scene = scene_of(LinearScores(weights), image())
    exact = scene.image * weights  # gradient times what the baseline of zeros takes away
    for scaling in ("optimal", "none"):
        measured, _ = Infidelity(scaling=scaling, samples=30).measure(case_of(scene, exact))
        assert measured.value == pytest.approx(0, abs=1e-8)
        assert measured.details["scale"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("options", [{"baseline": "white"}, {"baseline": "blur"}, {"perturbation": "noise"}], ids=str)
def test_infidelity_of_the_gradient_of_a_linear_model_is_zero(options: dict[str, str]) -> None:
    weights = image(1)
    scene = scene_of(LinearScores(weights), image())
    measured, _ = Infidelity(units="gradient", scaling="none", samples=30, **options).measure(case_of(scene, weights))
    assert measured.details["zero_map"] > 0.1
    assert measured.value == pytest.approx(0, abs=1e-7)


def test_infidelity_of_a_wrong_scale_is_known() -> None:
    weights = image(1)
    scene = scene_of(LinearScores(weights), image())
    exact = scene.image * weights
    zero = Infidelity(scaling="none", samples=30).measure(case_of(scene, exact))[0].details["zero_map"]
    plain, best = Infidelity(scaling="none", samples=30), Infidelity(samples=30)
    assert value(plain, case_of(scene, 3 * exact)) == pytest.approx(4 * zero, rel=1e-5)
    assert value(plain, case_of(scene, 0 * exact)) == pytest.approx(zero, rel=1e-9)
    assert value(best, case_of(scene, 3 * exact)) == pytest.approx(0, abs=1e-7)
    # A negative scale would make the opposite of the map perfect.
    assert value(best, case_of(scene, -exact)) == pytest.approx(zero, rel=1e-9)


@pytest.mark.parametrize("scaling", ["none", "optimal"])
@pytest.mark.parametrize("perturbation", ["squares", "noise"])
def test_infidelity_equals_captum(perturbation: str, scaling: str) -> None:
    scene = scene_of(Network(), image())
    inputs = scene.image[None].clone().requires_grad_()
    scene.model.module(inputs)[0, 0].backward()
    assert inputs.grad is not None
    values = inputs.grad + 0.01 * image(4)
    kept = without_squares(draw_squares(20, 0.5, (12, 12), seed=3), (12, 12))
    perturbations = {
        "squares": ~kept * scene.image,
        "noise": torch.cat(list(draw_noise(20, 0.1, scene.model, seed=3))),
    }[perturbation]
    theirs = captum.metrics.infidelity(
        scene.model.module,
        lambda rows: (perturbations, rows - perturbations),
        scene.image[None],
        values,
        target=0,
        n_perturb_samples=20,
        normalize=scaling == "optimal",
    )
    metric = Infidelity(perturbation=perturbation, units="gradient", scaling=scaling, samples=20)
    measured, _ = metric.measure(case_of(scene, values[0], seed=3))
    assert measured.details["scale"] > 0
    assert measured.value == pytest.approx(float(theirs[0]), rel=1e-3)


def test_infidelity_sums_the_map_over_each_square() -> None:
    scene = scene_of(Network(), image(size=(3, 12, 20)))
    values = image(4, (3, 12, 20))
    errors = []
    for top, left, side in draw_squares(15, 1.0, (12, 20), seed=3).tolist():
        assert top + side <= 12
        assert left + side <= 20
        rest = scene.image.clone()
        rest[:, top : top + side, left : left + side] = 0
        foretold = values[:, top : top + side, left : left + side].sum()
        errors.append(float(foretold - (scene.logits[0] - scene.model.predict(rest[None])[0, 0])) ** 2)
    metric = Infidelity(scaling="none", samples=15, largest=1.0)
    assert value(metric, case_of(scene, values, seed=3)) == pytest.approx(np.mean(errors), rel=1e-5)


def test_noise_is_refused_for_values_in_units_of_the_score() -> None:
    scene = scene_of(Network(), image())
    with pytest.raises(ParameterError, match="'noise' cannot be used with units 'attribution'"):
        Infidelity(perturbation="noise").measure(case_of(scene, image(1)))
