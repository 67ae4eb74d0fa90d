"""Families on masks, and the smooth ones: against enumeration, a peer or a closed form."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, ShapleyValues
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from tests.plugins.measure_cases import D, Function, X, Z, curved, rng, uniform
from xaihub import Model, Preprocessing
from xaihub_first_principles import families, mask_families
from xaihub_first_principles.measures import Points, combine, integrate
from xaihub_first_principles.vectors import feature_laws
from xaihub_rise.masks import RandomMasks
from xaihub_rise.method import RISE

# Families on masks, against enumeration and peers.


def _value(f: Function, kept: tuple[int, ...]) -> float:
    m = torch.zeros(D).double()
    m[list(kept)] = 1
    return float(f(m * X + (1 - m) * Z).mean())


def _brute_shapley(f: Function) -> Tensor:
    values = torch.zeros(D).double()
    for j in range(D):
        others = [i for i in range(D) if i != j]
        for s in range(D):
            share = math.factorial(s) * math.factorial(D - 1 - s) / math.factorial(D)
            for kept in combinations(others, s):
                values[j] += share * (_value(f, (*kept, j)) - _value(f, kept))
    return values


@pytest.mark.parametrize("adjust", [False, True])
@pytest.mark.parametrize("law", ["own", "uniform", "shared"])
def test_shapley_over_all_masks_is_the_definition_and_complete(adjust: bool, law: Any) -> None:
    f = curved()
    ours = integrate(f, mask_families.Shapley(budget=1000, background=Z, adjust=adjust, law=law), X)
    assert ours.exact
    assert torch.allclose(ours.values, _brute_shapley(f), atol=1e-10)
    assert float(ours.values.sum()) == pytest.approx(float(f(X[None]) - f(Z).mean()), abs=1e-10)


@pytest.mark.parametrize(
    ("law", "adjust"), [("own", False), ("own", True), ("uniform", True), ("shared", False), ("shared", True)]
)
def test_sampled_shapley_is_unbiased_and_its_standard_error_is_right(adjust: bool, law: Any) -> None:
    f = curved(d=9)
    x, z = uniform(9), uniform(1, 9, seed=6)
    exact = integrate(f, mask_families.Shapley(budget=600, background=z), x).values
    family = mask_families.Shapley(budget=120, background=z, adjust=adjust, law=law)
    runs = [integrate(f, family, x, seed=seed) for seed in range(60)]
    values = torch.stack([run.values for run in runs])
    spread = values.std(0)
    assert bool(((values.mean(0) - exact).abs() < 4 * spread / math.sqrt(60)).all())
    told = torch.stack([run.stderr for run in runs]).square().mean(0).sqrt()
    assert bool(((told / spread - 1).abs() < 0.5).all())
    assert float(told.mean() / spread.mean()) == pytest.approx(1, abs=0.25)


def test_adjusted_shapley_is_complete_for_every_draw_and_exact_for_additive_games() -> None:
    f, w = curved(d=9), uniform(9, seed=8)
    x, z = uniform(9), uniform(1, 9, seed=6)
    family = mask_families.Shapley(budget=60, background=z)
    assert float(integrate(f, family, x).values.sum()) == pytest.approx(float(f(x[None]) - f(z)), abs=1e-10)
    assert torch.allclose(integrate(lambda y: y @ w + 2, family, x).values, w * (x - z[0]), atol=1e-10)


def test_shapley_and_occlusion_equal_captum() -> None:
    f, baseline = curved(), Z[:1]
    ours = integrate(f, mask_families.Shapley(budget=1000, background=baseline), X).values
    theirs = ShapleyValues(f).attribute(X[None], baselines=baseline)[0]  # every order of the features
    assert torch.allclose(ours, theirs.double(), atol=1e-6)  # captum sums them in single precision
    occluded = integrate(f, mask_families.Occlusion(background=baseline), X).values
    assert torch.allclose(occluded, FeatureAblation(f).attribute(X[None], baselines=baseline)[0], atol=1e-12)


def _brute_keep(f: Function, p: float, j: int, kept: bool) -> float:
    total = 0.0
    others = [i for i in range(D) if i != j]
    for s in range(D):
        for shown in combinations(others, s):
            total += p**s * (1 - p) ** (D - 1 - s) * _value(f, (*shown, j) if kept else shown)
    return total


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_keep_p_over_all_masks_is_the_conditional_mean(p: float) -> None:
    f = curved()
    positive = integrate(f, mask_families.KeepP(p=p, budget=1000, background=Z), X).values
    signed = integrate(f, mask_families.SignedKeepP(p=p, budget=1000, background=Z), X).values
    centred = integrate(f, mask_families.KeepP(p=p, budget=1000, background=Z, centre=True), X).values
    for j in range(D):
        kept, dropped = _brute_keep(f, p, j, kept=True), _brute_keep(f, p, j, kept=False)
        assert float(positive[j]) == pytest.approx(kept, abs=1e-10)
        assert float(signed[j]) == pytest.approx(kept - dropped, abs=1e-10)
        assert float(centred[j]) == pytest.approx((1 - p) * (kept - dropped), abs=1e-10)


@pytest.mark.parametrize(("p", "centre"), [(0.3, False), (0.5, True)])
def test_adjusted_keep_p_is_exact_for_additive_models_and_unbiased_for_others(p: float, centre: bool) -> None:
    x, z, w = uniform(9), uniform(1, 9, seed=6), uniform(9, seed=8)
    family = mask_families.KeepP(p=p, budget=80, background=z, centre=centre, adjust=True)
    every = mask_families.KeepP(p=p, budget=600, background=z, centre=centre)

    def additive(y: Tensor) -> Tensor:
        return y @ w + 2

    assert torch.allclose(integrate(additive, family, x).values, integrate(additive, every, x).values, atol=1e-10)
    f = curved(d=9)
    exact = integrate(f, every, x).values
    errors = {}
    for adjust in (False, True):
        sampled = mask_families.KeepP(p=p, budget=80, background=z, centre=centre, adjust=adjust)
        runs = [integrate(f, sampled, x, seed=seed) for seed in range(60)]
        values = torch.stack([run.values for run in runs])
        errors[adjust] = float((values - exact).square().mean())
        told = torch.stack([run.stderr for run in runs]).square().mean().sqrt()
        assert float(told / values.std(0).square().mean().sqrt()) == pytest.approx(1, abs=0.3)
    assert bool(((values.mean(0) - exact).abs() < 4 * values.std(0) / 60**0.5 + 0.02).all())
    assert errors[True] < errors[False]


def test_adjusted_signed_keep_p_is_exact_over_all_masks() -> None:
    f = curved()
    plain, adjusted = (
        integrate(f, mask_families.SignedKeepP(p=0.3, budget=1000, background=Z, adjust=adjust), X).values
        for adjust in (False, True)
    )
    assert torch.allclose(plain, adjusted, atol=1e-10)


def test_keep_p_tends_to_partial_dependence_and_to_the_score() -> None:
    f = curved()
    rare = integrate(f, mask_families.KeepP(p=1e-9, budget=1000, background=Z), X).values
    assert torch.allclose(rare, integrate(f, feature_laws.PartialDependence(background=Z), X).values, atol=1e-6)
    sure = integrate(f, mask_families.KeepP(p=1 - 1e-9, budget=1000, background=Z), X).values
    assert torch.allclose(sure, f(X[None]).expand(D), atol=1e-6)


@pytest.mark.parametrize("family", [mask_families.KeepP, mask_families.SignedKeepP, mask_families.RISE])
@pytest.mark.parametrize("p", [0.35, 0.5])
def test_masks_drawn_once_serve_every_p_and_shapley_values(family: type[mask_families.KeepP], p: float) -> None:
    f, x, z = curved(d=9), uniform(9), uniform(1, 9, seed=6)
    exact = integrate(f, family(p=p, budget=600, background=z), x).values
    values, shapley = [], []
    for seed in range(80):
        points = mask_families.KeepP(budget=100, background=z, law="shared").points(x, rng(seed))
        outputs = f(points.values)
        values.append(family(p=p).weights(points).T @ outputs)
        shapley.append(mask_families.Shapley().weights(points).T @ outputs)
    for found, wanted in (
        (torch.stack(values), exact),
        (torch.stack(shapley), integrate(f, mask_families.Shapley(budget=600, background=z), x).values),
    ):
        assert bool(((found.mean(0) - wanted).abs() < 4 * found.std(0) / math.sqrt(80) + 0.01).all())


def test_rise_weights_are_those_of_the_rise_explainer_on_the_same_masks() -> None:
    side, count, p = 8, 30, 0.4
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 2))
    plain = Preprocessing(spatial=(), size=(1, side, side), mean=(0.0,), std=(1.0,))
    image = torch.randn(1, 1, side, side)
    explainer = RISE(masks=count, cell=3, keep=p, output="logit", estimator="plain")
    theirs = explainer.explain(Model(net, name="t", preprocessing=plain), image, 1, seed=2)[0].values[0]
    law = RandomMasks(size=(side, side), cell=3, keep=p)
    soft = law.expand(law.draw(count, torch.Generator().manual_seed(2), paired=False)).flatten(1).double()
    s = soft.sum(1)
    points = Points(
        values=soft * image.flatten().double(),
        x=image.flatten().double(),
        count=side * side,
        cluster=torch.arange(count),
        masks=soft,
        log_density=s * math.log(p) + (side * side - s) * math.log(1 - p),  # the design follows p
    )
    outputs = net(points.values.float()).detach()[:, 1]
    weights = mask_families.RISE(p=p).weights(points)
    assert torch.allclose(weights.T @ outputs.double(), theirs.flatten().double(), atol=1e-5)


def test_lime_is_a_weighted_ridge_regression() -> None:
    f, family = curved(), mask_families.LIME(budget=1000, background=Z[:1])
    points = family.points(X, rng())
    assert points.masks is not None
    outputs = f(points.values)
    ours = combine(family, points, outputs).values
    distance = 1 - (points.masks.double().sum(1) / D).sqrt()
    kernel = torch.exp(-((distance / 0.25) ** 2) / 2)
    theirs = Ridge(alpha=1.0).fit(points.masks.numpy(), outputs.numpy(), sample_weight=kernel.numpy()).coef_
    assert np.allclose(ours.numpy(), theirs, atol=1e-10)


def test_a_balanced_design_is_unbiased_has_less_variance_and_knows_its_error() -> None:
    d, budget = 20, 128
    first = torch.randn(d, generator=rng(1), dtype=torch.float64)
    triples = torch.randint(0, d, (60, 3), generator=rng(2))
    size = 0.3 * torch.randn(60, generator=rng(3), dtype=torch.float64)

    def f(y: Tensor) -> Tensor:
        z = 2 * y - 1
        return z @ first + z[:, triples].prod(2) @ size + (z @ first).square()

    exact = torch.zeros(d, dtype=torch.float64) + first  # the coefficients of the signs, from all terms
    for triple, value in zip(triples.tolist(), size.tolist(), strict=True):
        for j in set(triple):
            if triple.count(j) in (1, 3) and len(set(triple)) in (1, 2):
                exact[j] += value
    ones, zeros = torch.ones(d, dtype=torch.float64), torch.zeros(1, d, dtype=torch.float64)
    family = mask_families.KeepP(budget=budget, background=zeros, centre=True, adjust=True)
    found = [combine(family, points, f(points.values)) for points in (family.points(ones, rng(s)) for s in range(60))]
    values = torch.stack([one.values for one in found])
    assert bool(((values.mean(0) - exact).abs() < 4.5 * values.std(0) / 60**0.5).all())
    stderr = torch.stack([one.stderr for one in found]).square().mean().sqrt()
    assert float(stderr) == pytest.approx(float(values.var(0).mean().sqrt()), rel=0.1)
    shown = (torch.rand(60, budget // 2, d, generator=rng(9)) < 0.5).double()
    independent = []
    for half in shown:
        signs = 2 * half - 1
        odd = (f(half) - f(1 - half)) / 2
        independent.append(torch.linalg.lstsq(signs, odd).solution)
    # 64 pairs over 64 - 20 degrees of freedom.
    assert float(values.var(0).mean()) < 0.8 * float(torch.stack(independent).var(0).mean())


# Smooth families.


def test_stein_smoothgrad_is_the_mean_gradient_under_noise() -> None:
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    linear = integrate(lambda y: y @ w, families.SmoothGradStein(sigma=0.3, samples=200_000), torch.zeros(3))
    assert torch.allclose(linear.values, w, atol=0.03)
    # f = y^3: E 3 (x + sigma z)^2 = 3 x^2 + 3 sigma^2.
    cubic = integrate(lambda y: y[:, 0] ** 3, families.SmoothGradStein(sigma=0.3, samples=200_000), torch.tensor([0.5]))
    assert float(cubic.values) == pytest.approx(3 * 0.25 + 3 * 0.09, abs=0.03)


def test_finite_difference_ig_tends_to_integrated_gradients() -> None:
    f, b = curved(), Z[0]
    ours = integrate(f, families.FiniteDifferenceIG(baseline=b, h=1e-4, steps=64), X).values
    line = (b + (torch.arange(20_000).double().unsqueeze(1) + 0.5) / 20_000 * (X - b)).requires_grad_()
    gradient = torch.autograd.grad(f(line).sum(), line)[0].mean(0)
    assert torch.allclose(ours, gradient * (X - b), atol=1e-7)


def test_all_agree_on_affine_models() -> None:
    w, b = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64), Z[0]
    expected = w * (X - b)
    for family in (
        families.AxisDirac(baseline=b, centre=True),
        mask_families.Shapley(budget=100, background=b[None]),
        mask_families.Occlusion(background=b[None]),
        families.FiniteDifferenceIG(baseline=b),
    ):
        values = integrate(lambda y: y @ w + 0.7, family, X).values
        assert torch.allclose(values, expected, atol=1e-10)


def test_the_curvature_bound_of_theorem_2_1_holds_for_baseline_shapley() -> None:
    # |phi_j - d_j f(xi) (x_j - b_j)| <= L (d / 2) sup |Hess f|, with L = 2 for Shapley; here f = sum_k a_k sin(u_k y).
    for seed in range(20):
        u = torch.randn(4, 3, generator=rng(seed), dtype=torch.float64)
        a = torch.randn(4, generator=rng(seed + 50), dtype=torch.float64)
        x, b, xi = uniform(3, 3, seed=seed)
        values = integrate(
            lambda y, u=u, a=a: torch.sin(y @ u.T) @ a, mask_families.Shapley(background=b[None]), x
        ).values
        slope = (a * torch.cos(u @ xi)) @ u
        curvature = float((a.abs() * u.square().sum(1)).sum())
        assert float((values - slope * (x - b)).abs().max()) <= 2 * 1.5 * curvature
