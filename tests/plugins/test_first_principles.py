"""Attributions as measures: the engine, and each family against its definition, a peer or a closed form."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.inspection import partial_dependence
from torch import Tensor, nn

from tests.plugins.measure_cases import D, Function, X, Z, curved, rng, uniform
from xaihub import ExplainerRefused
from xaihub.errors import PluginError
from xaihub_first_principles import families, mask_families
from xaihub_first_principles.measures import FIXED, MeasureFamily, Points, combine, integrate
from xaihub_first_principles.vectors import attribute_vector, feature_laws
from xaihub_first_principles.vectors.exact import Network

EVERY: list[MeasureFamily] = [
    feature_laws.PartialDependence(background=Z),
    feature_laws.Independent(background=Z, samples=50),
    feature_laws.Conditional(background=Z),
    feature_laws.GaussianConditional(mean=Z.mean(0), covariance=torch.eye(D, dtype=torch.float64), samples=50),
    families.LengthWeighted(samples=64),
    families.AxisDirac(),
    families.AxisLebesgue(nodes=8),
    families.SmoothGradStein(samples=60),
    families.FiniteDifferenceIG(),
    mask_families.KeepP(budget=60, background=Z),
    mask_families.SignedKeepP(budget=60, background=Z),
    mask_families.RISE(budget=60, background=Z),
    mask_families.Shapley(budget=60, background=Z),
    mask_families.Shapley(budget=60, background=Z, adjust=False),
    mask_families.Occlusion(background=Z),
    mask_families.KeepOne(background=Z),
    mask_families.LIME(budget=60, background=Z),
    mask_families.KeepP(budget=60, background=Z, adjust=True, centre=True),
    mask_families.SignedKeepP(budget=60, background=Z, adjust=True),
    mask_families.Mixture(ps=(0.3, 0.6), thetas=(0.5, 0.5), budget=60, background=Z),
]
MASS_ONE = [*EVERY[:6], EVERY[9], EVERY[15]]
MASS_ZERO = [EVERY[8], EVERY[10], EVERY[12], EVERY[14], *EVERY[16:]]


def _id(family: MeasureFamily) -> str:
    return family.name


# The authors' notebook (d = 2, N = 1000, f at lower corners): sums over boxes (a, b], whose masses are increments
# sum_e (-1)^(d - |e|) G(a + e (b - a)) of an integrator G, with e in {0, 1}^d.


def _seeded_net() -> nn.Sequential:
    torch.manual_seed(25)
    return nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1))


def _plain(net: nn.Module) -> Function:
    return lambda y: net(y.float()).detach().squeeze(1).double()


def _axis(kind: str, x: Tensor, j: int) -> Function:
    """The integrators of `axis_dirac`, `axis_lebesgue` and `length_weighted`."""

    def integrator(y: Tensor) -> Tensor:
        others = y[:, [k for k in range(len(x)) if k != j]]
        if kind == "length_weighted":
            return (y[:, j] >= x[j]) * others.prod(1)
        return (2 * y[:, j] if kind == "axis_lebesgue" else (y[:, j] >= x[j]).double()) * (others > 0).all(1)

    return integrator


def _riemann(f: Function, G: Function, d: int, cells: int) -> float:
    side = torch.arange(cells, dtype=torch.float64) / cells
    lower = torch.cartesian_prod(*[side] * d).view(-1, d)
    corners = product((0.0, 1.0), repeat=d)
    masses = sum((-1) ** (d - sum(e)) * G(lower + torch.tensor(e).double() / cells) for e in corners)
    return float(f(lower) @ masses)


HERE = torch.tensor([0.5, 0.1], dtype=torch.float64)
REFERENCE = [
    ("axis_lebesgue", lambda y: y.sum(1), (0.999, 0.999)),
    ("axis_dirac", lambda y: 2 * y[:, 0] - 1.7 * y[:, 1], (0.998, -0.168)),
    ("axis_lebesgue", _plain(_seeded_net()), (-0.287, -0.490)),
]


@pytest.mark.parametrize(("family", "f", "printed"), REFERENCE)
def test_families_are_what_the_riemann_sums_of_the_authors_notebook_approximate(
    family: str, f: Function, printed: tuple[float, float]
) -> None:
    sums = [_riemann(f, _axis(family, HERE, j), 2, 1000) for j in (0, 1)]
    ours = attribute_vector(lambda rows: f(torch.from_numpy(rows)), HERE, family=family).values
    assert sums == pytest.approx(printed, abs=1e-3)
    assert ours.tolist() == pytest.approx(sums, abs=3e-3)


def test_the_exact_values_that_the_notebook_approximates() -> None:
    total = integrate(lambda y: y.sum(1), families.AxisLebesgue(nodes=4), torch.zeros(2))
    dirac = integrate(lambda y: 2 * y[:, 0] - 1.7 * y[:, 1], families.AxisDirac(), HERE)
    assert total.values.tolist() == pytest.approx([1, 1], abs=1e-12)
    assert dirac.values.tolist() == pytest.approx([1, -0.17], abs=1e-12)
    seeded = attribute_vector(_seeded_net(), HERE, family="axis_lebesgue", exact=True).values
    assert seeded.tolist() == pytest.approx([-0.28735, -0.49009], abs=1e-4)


@pytest.mark.parametrize("family", ["axis_dirac", "axis_lebesgue", "length_weighted"])
def test_families_agree_with_riemann_sums_in_three_dimensions(family: str) -> None:
    # The authors' code has the sign (-1)^|e|, which negates all sums in odd dimensions.
    f, x = curved(d=3), uniform(3, seed=8)
    sums = [_riemann(f, _axis(family, x, j), 3, 60) for j in range(3)]
    ours = attribute_vector(lambda rows: f(torch.from_numpy(rows)), x, family=family).values
    assert ours.tolist() == pytest.approx(sums, abs=0.05)


# What every family promises.


@pytest.mark.parametrize("family", EVERY, ids=_id)
def test_a_family_is_linear_in_the_model_and_bounded_by_its_variation(family: MeasureFamily) -> None:
    f, g = curved(1), curved(2)
    points = family.points(X, rng())
    outputs_f, outputs_g = f(points.values), g(points.values)
    phi_f, phi_g = combine(family, points, outputs_f), combine(family, points, outputs_g)
    both = combine(family, points, 2 * outputs_f - 3 * outputs_g)
    assert torch.allclose(both.values, 2 * phi_f.values - 3 * phi_g.values, atol=1e-10)
    distance = (outputs_f - outputs_g).abs().max()
    assert bool(((phi_f.values - phi_g.values).abs() <= phi_f.variation * distance + 1e-12).all())


@pytest.mark.parametrize("family", EVERY, ids=_id)
def test_many_targets_are_attributed_at_once_as_one_by_one(family: MeasureFamily) -> None:
    points = family.points(X, rng())
    outputs = torch.stack([curved(1)(points.values), curved(2)(points.values)], 1)
    together = combine(family, points, outputs)
    for column in (0, 1):
        alone = combine(family, points, outputs[:, column])
        assert torch.allclose(together.values[:, column], alone.values, atol=1e-12)
        assert torch.allclose(together.stderr[:, column], alone.stderr, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("family", MASS_ONE, ids=_id)
def test_probability_families_have_mass_one(family: MeasureFamily) -> None:
    result = integrate(curved(), family, X)
    assert torch.allclose(result.mass, torch.ones(D).double(), atol=1e-12)
    assert torch.allclose(result.variation, torch.ones(D).double(), atol=1e-12)


@pytest.mark.parametrize("family", MASS_ZERO, ids=_id)
def test_difference_families_have_mass_zero(family: MeasureFamily) -> None:
    assert torch.allclose(integrate(curved(), family, X).mass, torch.zeros(D).double(), atol=1e-12)


def test_axis_lebesgue_has_mass_two_and_shapley_a_variation_of_two() -> None:
    assert torch.allclose(integrate(curved(), EVERY[6], X).mass, torch.full((D,), 2.0).double())
    shapley = integrate(curved(), mask_families.Shapley(budget=1000), X)
    assert torch.allclose(shapley.variation, torch.full((D,), 2.0).double(), atol=1e-12)


def test_too_few_outputs_are_refused() -> None:
    points = EVERY[5].points(X, rng())
    with pytest.raises(ExplainerRefused, match="there are 1 outputs"):
        combine(EVERY[5], points, torch.zeros(1))


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
def test_what_is_not_a_measure_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ExplainerRefused, match=f"{name} is not a measure: .*(sup norm|not linear)"):
        integrate(curved(), families.NotAMeasure(method=name), X)


@pytest.mark.parametrize("name", ["integrated_gradients", "ig"])
def test_integrated_gradients_of_one_feature_is_a_measure(name: str) -> None:
    one = integrate(lambda y: y[:, 0] ** 3, families.NotAMeasure(method=name), torch.tensor([0.7]))
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
        return curved()(torch.as_tensor(X)).numpy()


@pytest.mark.parametrize("feature", range(D))
def test_partial_dependence_is_that_of_scikit_learn(feature: int) -> None:
    background = uniform(30, D, seed=9)
    theirs = partial_dependence(
        _Estimator().fit(None), background.numpy(), [feature], method="brute", grid_resolution=4
    )
    for value, expected in zip(theirs["grid_values"][0], theirs["average"][0], strict=True):
        x = torch.full((D,), float(value), dtype=torch.float64)
        ours = integrate(curved(), feature_laws.PartialDependence(background=background), x)
        assert float(ours.values[feature]) == pytest.approx(float(expected), abs=1e-10)
        assert ours.exact


def test_masks_that_keep_one_feature_are_partial_dependence() -> None:
    ours = integrate(curved(), mask_families.KeepOne(background=Z), X)
    assert torch.allclose(
        ours.values, integrate(curved(), feature_laws.PartialDependence(background=Z), X).values, atol=1e-12
    )


def test_all_of_table_1_agree_where_features_are_independent_and_uniform() -> None:
    background = uniform(20_000, 3, seed=3)
    f, x = curved(d=3), uniform(3, seed=4)
    exact = integrate(f, families.LengthWeighted(samples=4096), x).values
    spread = float(f(background).std())
    for family in (
        feature_laws.PartialDependence(background=background),
        feature_laws.Independent(background=background, samples=20_000),
        feature_laws.Conditional(background=background, bandwidth=0.1),
    ):
        error = (integrate(f, family, x).values - exact).abs().max()
        assert float(error) < 0.05 * spread


def test_the_families_of_table_1_differ_for_correlated_gaussians_as_their_closed_forms_do() -> None:
    mean = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64)
    root = torch.tensor([[1.0, 0, 0], [0.8, 0.5, 0], [-0.6, 0.3, 0.7]], dtype=torch.float64)
    covariance, x = root @ root.T, torch.tensor([1.0, -0.5, 0.8], dtype=torch.float64)
    torch.manual_seed(3)
    network = Network.of(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1)), 0)
    f, net = network.f, network.one_hidden
    draws = mean + torch.randn(40_000, 3, generator=rng(), dtype=torch.float64) @ root.T
    cases = [
        (feature_laws.PartialDependence(background=draws), net.pdp_gaussian(x, mean, covariance)),
        (
            feature_laws.Independent(background=draws, samples=40_000),
            net.pdp_gaussian(x, mean, torch.diag(covariance.diagonal())),
        ),
        (
            feature_laws.GaussianConditional(mean=mean, covariance=covariance, samples=40_000),
            net.conditional_gaussian(x, mean, covariance),
        ),
        (feature_laws.Conditional(background=draws, bandwidth=0.05), net.conditional_gaussian(x, mean, covariance)),
    ]
    for (family, exact), allowed in zip(cases, (0.01, 0.01, 0.01, 0.05), strict=True):
        assert torch.allclose(integrate(f, family, x).values, exact, atol=allowed * float(f(draws).std()) + 0.004)
    first, second, third = cases[0][1], cases[1][1], cases[2][1]
    assert min(float((a - b).abs().max()) for a, b in combinations((first, second, third), 2)) > 0.01


def test_an_unused_feature_gets_the_mean_and_centred_nothing() -> None:
    def f(y: Tensor) -> Tensor:
        return curved()(y * torch.tensor([1.0, 1, 0, 1, 1]))  # the third is not used

    plain = integrate(f, feature_laws.PartialDependence(background=Z), X)
    centred = integrate(f, feature_laws.PartialDependence(background=Z, centre=True), X)
    assert float(plain.values[2]) == pytest.approx(float(f(Z).mean()), abs=1e-12)
    assert float(centred.values[2]) == pytest.approx(0, abs=1e-12)
    assert torch.allclose(plain.values - centred.values, f(Z).mean(), atol=1e-12)
    for family in (
        mask_families.Shapley(budget=1000, background=Z),
        mask_families.SignedKeepP(budget=1000, background=Z),
    ):
        assert float(integrate(f, family, X).values[2]) == pytest.approx(0, abs=1e-12)


def test_a_point_mass_at_e_j_gives_the_weights() -> None:
    w = torch.tensor([2.0, 0.1, -1.0], dtype=torch.float64)
    values = integrate(lambda y: y @ w, families.AxisDirac(), torch.ones(3).double()).values
    assert torch.allclose(values, w, atol=1e-12)


def test_a_family_that_gives_no_weights_is_named() -> None:
    class Forgetful(MeasureFamily):
        def points(self, x: Tensor, generator: torch.Generator) -> Points:
            return Points(values=x[None], x=x, count=len(x), cluster=torch.zeros(1))

    with pytest.raises(PluginError, match="the measure family Forgetful gives no weights"):
        integrate(lambda y: y.sum(1), Forgetful(), torch.zeros(3))
