"""Attributions as measures: the engine, boxes, and each family against its definition, a peer or a closed form."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import pytest
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.inspection import partial_dependence
from torch import Tensor, nn

from xaihub import ExplainerRefused
from xaihub.errors import PluginError
from xaihub_first_principles import boxes, families, masks, recall
from xaihub_first_principles.hidden import OneHidden
from xaihub_first_principles.measures import FIXED, MeasureFamily, Points, integrate, measured

D = 5
Function = Callable[[Tensor], Tensor]


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _curved(seed: int = 0, d: int = D) -> Function:
    u = torch.randn(d, 9, generator=_rng(seed), dtype=torch.float64)
    a = torch.randn(9, generator=_rng(seed + 1), dtype=torch.float64)
    return lambda y: torch.tanh(y @ u + 0.3) @ a


def _uniform(*shape: int, seed: int = 5) -> Tensor:
    return torch.rand(*shape, generator=_rng(seed), dtype=torch.float64)


X, Z = _uniform(D), _uniform(3, D, seed=6)
EVERY: list[MeasureFamily] = [
    families.PartialDependence(Z),
    families.Independent(Z, samples=50),
    families.Conditional(Z),
    families.GaussianConditional(Z.mean(0), torch.eye(D, dtype=torch.float64), samples=50),
    families.LengthWeighted(samples=64),
    families.AxisDirac(),
    families.AxisLebesgue(nodes=8),
    families.SmoothGradStein(samples=60),
    families.FiniteDifferenceIG(),
    masks.KeepP(budget=60, background=Z),
    masks.SignedKeepP(budget=60, background=Z),
    masks.RISE(budget=60, background=Z),
    masks.Shapley(budget=60, background=Z),
    masks.Shapley(budget=60, background=Z, adjust=False),
    masks.Occlusion(background=Z),
    masks.KeepOne(background=Z),
    masks.LIME(budget=60, background=Z),
    masks.KeepP(budget=60, background=Z, adjust=True, centre=True),
    masks.SignedKeepP(budget=60, background=Z, adjust=True),
    masks.Mixture(ps=(0.3, 0.6), thetas=(0.5, 0.5), budget=60, background=Z),
]
MASS_ONE = [*EVERY[:6], EVERY[9], EVERY[15]]
MASS_ZERO = [EVERY[8], EVERY[10], EVERY[12], EVERY[14], *EVERY[16:]]


def _id(family: MeasureFamily) -> str:
    return family.name


# Boxes and the reference numbers of the authors' notebook (d = 2, N = 1000, f at lower corners).


def _seeded_net() -> nn.Sequential:
    torch.manual_seed(25)
    return nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1))


def _plain(net: nn.Module) -> Function:
    return lambda y: net(y.float()).detach().squeeze(1).double()


REFERENCE = [
    (lambda y: y.sum(1), lambda j: boxes.axis_lebesgue(2, j), (0.999, 0.999), (1.0, 1.0)),
    (
        lambda y: 2 * y[:, 0] - 1.7 * y[:, 1],
        lambda j: boxes.axis_dirac(torch.tensor([0.5, 0.1], dtype=torch.float64), j),
        (0.998, -0.168),
        (1.0, -0.17),
    ),
    (_plain(_seeded_net()), lambda j: boxes.axis_lebesgue(2, j), (-0.287, -0.490), (-0.28735, -0.49009)),
]


@pytest.mark.parametrize(("f", "integrator", "printed", "exact"), REFERENCE)
def test_the_riemann_sums_of_the_authors_notebook_are_reproduced(
    f: Function, integrator: Any, printed: tuple[float, float], exact: tuple[float, float]
) -> None:
    values = [boxes.riemann(f, integrator(j), d=2, cells=1000) for j in (0, 1)]
    assert values == pytest.approx(printed, abs=1e-3)
    assert values == pytest.approx(exact, abs=3e-3)


def test_points_give_the_exact_values_that_the_notebook_approximates() -> None:
    total = integrate(lambda y: y.sum(1), families.AxisLebesgue(nodes=4), torch.zeros(2))
    dirac = integrate(
        lambda y: 2 * y[:, 0] - 1.7 * y[:, 1], families.AxisDirac(), torch.tensor([0.5, 0.1], dtype=torch.float64)
    )
    assert total.values.tolist() == pytest.approx([1, 1], abs=1e-12)
    assert dirac.values.tolist() == pytest.approx([1, -0.17], abs=1e-12)
    seeded = OneHidden.of(_seeded_net()).axis_lebesgue()
    assert seeded.tolist() == pytest.approx([-0.28735, -0.49009], abs=1e-4)


def test_a_uniform_sampler_for_every_feature_gives_all_the_same_value_as_in_the_notebook() -> None:
    mean = float(_plain(_seeded_net())(_uniform(200_000, 2)).mean())
    assert mean == pytest.approx(-0.209, abs=2e-3)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_integrators_have_their_mass_in_even_and_odd_dimensions(d: int) -> None:
    x, low, high = torch.full((d,), 0.4, dtype=torch.float64), torch.zeros(1, d).double(), torch.ones(1, d).double()
    masses = [
        float(boxes.increments(G, low, high))
        for G in (boxes.axis_dirac(x, 0), boxes.axis_lebesgue(d, 0), boxes.length_weighted(x, 0))
    ]
    assert masses == pytest.approx([1, 2, 1], abs=1e-12)


def test_the_riemann_sum_has_the_right_sign_in_three_dimensions() -> None:
    value = boxes.riemann(lambda y: y.sum(1), boxes.axis_lebesgue(3, 1), d=3, cells=40)
    assert value == pytest.approx(1, abs=0.03)  # the authors' code returns -0.975


def _length_rule(x: Tensor, j: int) -> boxes.Atom:
    def atom(low: Tensor, high: Tensor) -> float:
        sides = high - low
        return float(sides.prod() / sides[j]) * float(low[j] < x[j] <= high[j])

    return atom


def test_the_length_weighted_atom_of_a_box_is_the_product_of_its_other_sides() -> None:
    x = torch.tensor([0.5, 0.4], dtype=torch.float64)
    low, high = torch.tensor([0.3, 0.1], dtype=torch.float64), torch.tensor([0.6, 0.9], dtype=torch.float64)
    for j, side in ((0, 0.8), (1, 0.3)):
        got = float(boxes.increments(boxes.length_weighted(x, j), low[None], high[None]))
        assert got == pytest.approx(side, abs=1e-12)
        assert _length_rule(x, j)(low, high) == pytest.approx(side, abs=1e-12)
        outside = float(boxes.increments(boxes.length_weighted(x, j), low[None] + 0.4, high[None]))
        assert outside == pytest.approx(0, abs=1e-12)
        boxes.require_measure(_length_rule(x, j), d=2)


def test_binary_membership_is_refused_because_split_boxes_do_not_add_up() -> None:
    with pytest.raises(ExplainerRefused, match="not a measure: a box gets 1, its two parts 2"):
        boxes.require_measure(lambda low, high: float(low[0] < 0.5 <= high[0]), d=2)


def test_a_grid_that_is_too_fine_is_refused() -> None:
    with pytest.raises(ExplainerRefused, match=r"1000\^3"):
        boxes.riemann(lambda y: y.sum(1), boxes.axis_lebesgue(3, 0), d=3, cells=1000)


# What every family promises.


@pytest.mark.parametrize("family", EVERY, ids=_id)
def test_a_family_is_linear_in_the_model_and_bounded_by_its_variation(family: MeasureFamily) -> None:
    f, g = _curved(1), _curved(2)
    points = family.points(X, _rng())
    answers_f, answers_g = f(points.values), g(points.values)
    phi_f, phi_g = measured(family, points, answers_f), measured(family, points, answers_g)
    both = measured(family, points, 2 * answers_f - 3 * answers_g)
    assert torch.allclose(both.values, 2 * phi_f.values - 3 * phi_g.values, atol=1e-10)
    distance = (answers_f - answers_g).abs().max()
    assert bool(((phi_f.values - phi_g.values).abs() <= phi_f.variation * distance + 1e-12).all())


@pytest.mark.parametrize("family", EVERY, ids=_id)
def test_many_targets_are_attributed_at_once_as_one_by_one(family: MeasureFamily) -> None:
    points = family.points(X, _rng())
    answers = torch.stack([_curved(1)(points.values), _curved(2)(points.values)], 1)
    together = measured(family, points, answers)
    for column in (0, 1):
        alone = measured(family, points, answers[:, column])
        assert torch.allclose(together.values[:, column], alone.values, atol=1e-12)
        assert torch.allclose(together.stderr[:, column], alone.stderr, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("family", MASS_ONE, ids=_id)
def test_probability_families_have_mass_one(family: MeasureFamily) -> None:
    result = integrate(_curved(), family, X)
    assert torch.allclose(result.mass, torch.ones(D).double(), atol=1e-12)
    assert torch.allclose(result.variation, torch.ones(D).double(), atol=1e-12)


@pytest.mark.parametrize("family", MASS_ZERO, ids=_id)
def test_difference_families_have_mass_zero(family: MeasureFamily) -> None:
    assert torch.allclose(integrate(_curved(), family, X).mass, torch.zeros(D).double(), atol=1e-12)


def test_axis_lebesgue_has_mass_two_and_shapley_a_variation_of_two() -> None:
    assert torch.allclose(integrate(_curved(), EVERY[6], X).mass, torch.full((D,), 2.0).double())
    shapley = integrate(_curved(), masks.Shapley(budget=1000), X)
    assert torch.allclose(shapley.variation, torch.full((D,), 2.0).double(), atol=1e-12)


def test_too_few_answers_are_refused() -> None:
    points = EVERY[5].points(X, _rng())
    with pytest.raises(ExplainerRefused, match="got 1 answers"):
        measured(EVERY[5], points, torch.zeros(1))


def test_a_third_party_family_needs_points_and_weights_only() -> None:
    class Corner(MeasureFamily):
        name = "corner"

        def points(self, x: Tensor, generator: torch.Generator) -> Points:
            return Points(values=torch.ones(1, len(x)).double(), x=x, count=len(x), cluster=torch.tensor([FIXED]))

        def weights(self, points: Points) -> Tensor:
            return torch.arange(points.count).double().unsqueeze(0)

    result = integrate(lambda y: y.sum(1), Corner(), torch.zeros(3))
    assert result.values.tolist() == [0, 3, 6]
    assert result.exact


@pytest.mark.parametrize(
    "name", ["gradient", "gradient_x_input", "integrated_gradients", "ig", "deeplift", "lrp", "gradcam"]
)
def test_what_is_no_measure_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ExplainerRefused, match=f"{name} is not a measure: .*(sup norm|not linear)"):
        integrate(_curved(), families.NotAMeasure(name), X)


@pytest.mark.parametrize("name", ["integrated_gradients", "ig"])
def test_integrated_gradients_of_one_feature_is_a_measure(name: str) -> None:
    one = integrate(lambda y: y[:, 0] ** 3, families.NotAMeasure(name), torch.tensor([0.7]))
    assert float(one.values) == pytest.approx(0.7**3, abs=1e-7)


def test_the_sup_norm_does_not_bound_integrated_gradients() -> None:
    eps, t = 0.1, (torch.arange(1000).double() + 0.5) / 1000
    line = t.unsqueeze(1).expand(-1, 2).clone().requires_grad_()
    value = eps * torch.sin((line[:, 0] - line[:, 1]) / eps**2)
    gradient = torch.autograd.grad(value.sum(), line)[0].mean(0)
    assert gradient.tolist() == pytest.approx([1 / eps, -1 / eps])  # though |f| <= eps


# Families of Table 1.


class _Estimator(RegressorMixin, BaseEstimator):
    def fit(self, X: Any, y: Any = None) -> _Estimator:
        self.fitted_ = True
        return self

    def predict(self, X: Any) -> Any:
        return _curved()(torch.as_tensor(X)).numpy()


@pytest.mark.parametrize("feature", range(D))
def test_partial_dependence_is_that_of_scikit_learn(feature: int) -> None:
    background = _uniform(30, D, seed=9)
    theirs = partial_dependence(
        _Estimator().fit(None), background.numpy(), [feature], method="brute", grid_resolution=4
    )
    for value, expected in zip(theirs["grid_values"][0], theirs["average"][0], strict=True):
        x = torch.full((D,), float(value), dtype=torch.float64)
        ours = integrate(_curved(), families.PartialDependence(background), x)
        assert float(ours.values[feature]) == pytest.approx(float(expected), abs=1e-10)
        assert ours.exact


def test_masks_that_keep_one_feature_are_partial_dependence() -> None:
    ours = integrate(_curved(), masks.KeepOne(background=Z), X)
    assert torch.allclose(ours.values, integrate(_curved(), families.PartialDependence(Z), X).values, atol=1e-12)


def test_all_of_table_1_agree_where_features_are_independent_and_uniform() -> None:
    background = _uniform(20_000, 3, seed=3)
    f, x = _curved(d=3), _uniform(3, seed=4)
    exact = integrate(f, families.LengthWeighted(samples=4096), x).values
    spread = float(f(background).std())
    for family in (
        families.PartialDependence(background),
        families.Independent(background, samples=20_000),
        families.Conditional(background, bandwidth=0.1),
    ):
        error = (integrate(f, family, x).values - exact).abs().max()
        assert float(error) < 0.05 * spread


def test_the_families_of_table_1_differ_for_correlated_gaussians_as_their_closed_forms_do() -> None:
    mean = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64)
    root = torch.tensor([[1.0, 0, 0], [0.8, 0.5, 0], [-0.6, 0.3, 0.7]], dtype=torch.float64)
    covariance, x = root @ root.T, torch.tensor([1.0, -0.5, 0.8], dtype=torch.float64)
    torch.manual_seed(3)
    net = OneHidden.of(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1)))
    draws = mean + torch.randn(40_000, 3, generator=_rng(), dtype=torch.float64) @ root.T
    cases = [
        (families.PartialDependence(draws), net.pdp_gaussian(x, mean, covariance)),
        (families.Independent(draws, samples=40_000), net.independent_gaussian(x, mean, covariance.diagonal().sqrt())),
        (families.GaussianConditional(mean, covariance, samples=40_000), net.conditional_gaussian(x, mean, covariance)),
        (families.Conditional(draws, bandwidth=0.05), net.conditional_gaussian(x, mean, covariance)),
    ]
    for (family, exact), allowed in zip(cases, (0.01, 0.01, 0.01, 0.05), strict=True):
        assert torch.allclose(integrate(net, family, x).values, exact, atol=allowed * float(net(draws).std()) + 0.004)
    first, second, third = cases[0][1], cases[1][1], cases[2][1]
    assert min(float((a - b).abs().max()) for a, b in combinations((first, second, third), 2)) > 0.01


def test_an_unused_feature_gets_the_mean_and_centred_nothing() -> None:
    def f(y: Tensor) -> Tensor:
        return _curved()(y * torch.tensor([1.0, 1, 0, 1, 1]))  # the third is not used

    plain = integrate(f, families.PartialDependence(Z), X)
    centred = integrate(f, families.PartialDependence(Z, centre=True), X)
    assert float(plain.values[2]) == pytest.approx(float(f(Z).mean()), abs=1e-12)
    assert float(centred.values[2]) == pytest.approx(0, abs=1e-12)
    assert torch.allclose(plain.values - centred.values, f(Z).mean(), atol=1e-12)
    for family in (masks.Shapley(budget=1000, background=Z), masks.SignedKeepP(budget=1000, background=Z)):
        assert float(integrate(f, family, X).values[2]) == pytest.approx(0, abs=1e-12)


# The recall theorem on linear models.

TAU = 0.3


@pytest.mark.parametrize("seed", range(5))
def test_recall_one_is_reached_exactly_where_the_condition_allows(seed: int) -> None:
    w = torch.randn(6, generator=_rng(seed), dtype=torch.float64)
    corners = torch.tensor(list(product((0.0, 1.0), repeat=6)), dtype=torch.float64)
    limit = float((corners @ w).abs().max())  # |w.m| is convex, so a corner of the cube is best
    for alpha in (0.5 * limit, limit - 1e-9, limit + 1e-9, 2 * limit):
        assert recall.feasible(w, alpha) == (alpha <= limit)
        assert (recall.found(w, recall.best_centres(w), tau=TAU, alpha=alpha).recall == 1) == (alpha <= limit)


def test_the_shared_centre_has_recall_one_and_shows_in_the_precision() -> None:
    w = torch.tensor([2.0, 0.1, -1.0, 0.05, 0.9], dtype=torch.float64)
    shared = recall.found(w, recall.best_centres(w), tau=TAU, alpha=TAU)
    axes = recall.found(w, torch.eye(5, dtype=torch.float64), tau=TAU, alpha=TAU)
    assert (shared.recall, shared.precision) == (1, 0.6)
    assert (axes.recall, axes.precision) == (1, 1)


def test_a_point_mass_at_e_j_gives_the_weights() -> None:
    w = torch.tensor([2.0, 0.1, -1.0], dtype=torch.float64)
    values = integrate(lambda y: y @ w, families.AxisDirac(), torch.ones(3).double()).values
    assert torch.allclose(values, w, atol=1e-12)


def test_a_centre_of_mass_does_not_decide_for_curved_models() -> None:
    def f(y: Tensor) -> Tensor:
        return (y.sum(1) - 1).relu()

    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    assert float(f(corners.mean(0, keepdim=True))) == 0
    assert float(f(corners).mean()) == 0.5


def test_a_family_that_gives_no_weights_is_named() -> None:
    class Forgetful(MeasureFamily):
        def points(self, x: Tensor, generator: torch.Generator) -> Points:
            return Points(values=x[None], x=x, count=len(x), cluster=torch.zeros(1))

    with pytest.raises(PluginError, match="the measure family Forgetful gives no weights"):
        integrate(lambda y: y.sum(1), Forgetful(), torch.zeros(3))
