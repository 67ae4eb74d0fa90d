"""Attribution of vectors: against scikit-learn, and each exact route against points and against a fine grid."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.inspection import partial_dependence
from torch import Tensor, nn

from xaihub import ExplainerRefused, ModelError, ParameterError
from xaihub_first_principles.families import AxisLebesgue, LengthWeighted
from xaihub_first_principles.measures import integrate
from xaihub_first_principles.vectors import VECTOR_FAMILIES, attribute_vector


def _net(*sizes: int, seed: int = 0, last: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(seed)
    linears = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
    parts: list[nn.Module] = [part for linear in linears[:-1] for part in (linear, nn.ReLU())]
    return nn.Sequential(*parts, linears[-1], *([] if last is None else [last]))


def _f(net: nn.Module, output: int = 0) -> Callable[[Tensor], Tensor]:
    double = type(net)(*net).double() if isinstance(net, nn.Sequential) else net.double()
    return lambda y: double(y).detach()[:, output]


def _x(d: int, seed: int = 3) -> Tensor:
    return torch.rand(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_partial_dependence_of_a_forest_is_that_of_scikit_learn() -> None:
    data = load_diabetes()
    background = data.data[:60]
    forest = RandomForestRegressor(10, random_state=0).fit(data.data, data.target)
    for feature in range(3):
        theirs = partial_dependence(forest, background, [feature], method="brute", grid_resolution=3, kind="average")
        for value, expected in zip(theirs["grid_values"][0], theirs["average"][0], strict=True):
            x = np.full(background.shape[1], value)
            ours = attribute_vector(forest.predict, x, family="pdp", background=background)
            assert float(ours.values[feature]) == pytest.approx(float(expected), abs=1e-10)
            assert ours.exact


def test_one_column_of_several_is_attributed() -> None:
    data = load_wine()
    forest = RandomForestClassifier(10, random_state=0).fit(data.data, data.target)
    background, x = data.data[:40], data.data[100]
    theirs = partial_dependence(
        forest, background, [0], method="brute", response_method="predict_proba", custom_values={0: x[:1]}
    )
    for output in range(3):
        ours = attribute_vector(forest.predict_proba, x, background=background, output=output)
        assert float(ours.values[0]) == pytest.approx(float(theirs["average"][output][0]), abs=1e-10)


def test_a_torch_module_and_the_same_function_of_arrays_agree() -> None:
    net, x = _net(4, 6, 2), _x(4)
    background = torch.rand(10, 4, generator=torch.Generator().manual_seed(1)).double().numpy()
    net.train()
    for family in ("shapley", "occlusion", "keep_p", "conditional", "axis_dirac"):
        module = attribute_vector(net, x, family=family, background=background, output=1)
        array = attribute_vector(
            lambda rows: net(torch.from_numpy(rows).float()).detach().numpy()[:, 1], x.tolist(), family=family,
            background=background,
        )  # fmt: skip
        assert torch.allclose(module.values, array.values, atol=1e-6)
    assert net.training
    assert next(net.parameters()).dtype is torch.float32


@pytest.mark.parametrize("family", VECTOR_FAMILIES)
def test_every_family_explains_a_vector(family: str) -> None:
    background = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)).numpy()
    first, again = (
        attribute_vector(_net(3, 5, 1), _x(3), family=family, background=background, samples=64, seed=1)
        for _ in range(2)
    )
    assert torch.equal(first.values, again.values)
    assert first.values.shape == (3,)
    assert bool(first.values.isfinite().all())


# Exact routes.


@pytest.mark.parametrize("sizes", [(3, 8, 1), (3, 6, 6, 1), (4, 6, 6, 1), (5, 6, 5, 1)])
def test_exact_length_weighted_values_equal_points(sizes: tuple[int, ...]) -> None:
    net, d = _net(*sizes), sizes[0]
    exact = attribute_vector(net, _x(d), family="length_weighted", exact=True)
    points = integrate(_f(net), LengthWeighted(samples=2**14), _x(d))
    assert exact.exact
    assert torch.allclose(exact.values, points.values, atol=2e-5)
    assert bool((exact.stderr == 0).all())


def test_exact_length_weighted_values_are_centred_by_the_exact_mean() -> None:
    net, x = _net(3, 6, 6, 1), _x(3)
    plain, centred = (
        attribute_vector(net, x, family="length_weighted", exact=True, centre=centre) for centre in (False, True)
    )
    side = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    mean = float(_f(net)(torch.cartesian_prod(side, side, side)).mean())
    assert torch.allclose(plain.values - centred.values, torch.tensor(mean).double(), atol=1e-5)
    assert centred.mass.tolist() == [0, 0, 0]


@pytest.mark.parametrize("sizes", [(2, 8, 1), (6, 8, 8, 1)])
def test_exact_axis_values_equal_points(sizes: tuple[int, ...]) -> None:
    net = _net(*sizes)
    exact = attribute_vector(net, _x(sizes[0]), family="axis_lebesgue", exact=True, centre=True)
    points = integrate(_f(net), AxisLebesgue(nodes=2000, centre=True), _x(sizes[0]))
    assert torch.allclose(exact.values, points.values, atol=1e-6)


def test_networks_other_than_a_multilayer_perceptron_are_marched() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, y: Tensor) -> Tensor:
            return self.last(y + nn.functional.leaky_relu(self.first(y), 0.1))

    torch.manual_seed(0)
    net = Residual()
    exact = attribute_vector(net, _x(3), family="axis_lebesgue", exact=True)
    points = attribute_vector(net.double(), _x(3), family="axis_lebesgue")
    assert torch.allclose(exact.values, points.values, atol=1e-3)
    with pytest.raises(ExplainerRefused, match="linear regions need a ReLU MLP"):
        attribute_vector(net, _x(3), family="length_weighted", exact=True)
    pair = nn.Sequential(nn.Linear(2, 4), nn.LeakyReLU(0.1), nn.Linear(4, 1))
    lines = attribute_vector(pair, _x(2), family="length_weighted", exact=True)
    assert torch.allclose(
        lines.values, attribute_vector(pair.double(), _x(2), family="length_weighted").values, atol=1e-4
    )


def test_a_module_whose_parts_mislead_is_not_read_as_a_perceptron() -> None:
    class Skewed(nn.Sequential):
        def forward(self, y: Tensor) -> Tensor:
            return super().forward(2 * y)

    net = Skewed(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    exact = attribute_vector(net, _x(2), family="axis_lebesgue", exact=True)
    points = integrate(lambda y: net.double()(y).detach()[:, 0], AxisLebesgue(nodes=2000), _x(2))
    assert torch.allclose(exact.values, points.values, atol=1e-6)


@pytest.mark.parametrize(
    "family", ["pdp", "occlusion", "axis_dirac", "shapley", "keep_p", "signed_keep_p", "lime_fixed"]
)
def test_finite_support_is_exact_for_any_function(family: str) -> None:
    background = torch.rand(3, 11, generator=torch.Generator().manual_seed(1)).numpy()

    def f(rows: np.ndarray) -> np.ndarray:
        return np.tanh(rows @ np.linspace(-1, 1, 11))

    found = attribute_vector(f, _x(11), family=family, background=background, exact=True)
    assert found.exact
    assert bool((found.stderr == 0).all())


@pytest.mark.parametrize("kind", ["pdp", "independent", "conditional"])
def test_normal_laws_have_closed_forms(kind: str) -> None:
    root = torch.tensor([[1.0, 0, 0], [0.8, 0.5, 0], [-0.6, 0.3, 0.7]]).double()
    mean, covariance = torch.tensor([0.2, -0.1, 0.4]).double(), root @ root.T
    net, x = _net(3, 6, 1), _x(3)
    exact = attribute_vector(net, x, family=kind, normal=(mean, covariance), exact=True)
    draws = mean + torch.randn(60_000, 3, generator=torch.Generator().manual_seed(0)).double() @ root.T
    law = {"normal": (mean, covariance)} if kind == "conditional" else {"background": draws.numpy()}
    points = attribute_vector(net.double(), x, family=kind, samples=60_000, **law)
    spread = float(_f(net)(draws).std())
    assert torch.allclose(exact.values, points.values, atol=5 * spread / 60_000**0.5)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (lambda rows: rows.sum(1), {"family": "axis_lebesgue"}, "needs a torch module, whose breakpoints are known"),
        (nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 1)), {"family": "axis_lebesgue"}, "calls 'gelu'"),
        (_net(3, 4, 1), {"family": "smoothgrad"}, "no exact route for smoothgrad"),
        (_net(3, 4, 1), {"family": "independent", "background": np.ones((2, 3))}, "no exact route for independent"),
        (_net(3, 4, 1), {"family": "conditional", "background": np.ones((2, 3))}, "no exact route for conditional"),
        (_net(3, 4, 4, 1), {"family": "pdp", "normal": (np.zeros(3), np.eye(3))}, "one hidden ReLU layer only"),
        (_net(3, 4, 1), {"family": "occlusion", "normal": (np.zeros(3), np.eye(3))}, "under a normal law"),
        (_net(3, 4, 1), {"family": "integrated_gradients"}, "is not a measure"),
    ],
)
def test_a_refusal_says_why_no_exact_route_applies(model: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExplainerRefused, match=reason):
        attribute_vector(model, _x(3), exact=True, **options)


def test_high_dimensions_are_refused_where_volumes_are_too_hard() -> None:
    with pytest.raises(ExplainerRefused, match="with one of 6 features held there are 5"):
        attribute_vector(_net(6, 4, 4, 1), _x(6), family="length_weighted", exact=True)
    with pytest.raises(ExplainerRefused, match="shapley on 17 features: its measure has too many points"):
        attribute_vector(lambda rows: rows.sum(1), _x(17), family="shapley", exact=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"x": np.ones((2, 3))}, r"x has the shape \(2, 3\)"),
        ({"background": np.ones(3)}, "the background has the shape"),
        ({"background": np.ones((4, 2))}, "the background has the shape"),
        ({"normal": (np.zeros(2), np.eye(3))}, "the normal law has the shapes"),
        ({"family": "pdp", "background": None}, "this family needs data"),
        ({"family": "unknown"}, "no family is named 'unknown'"),
        ({"output": 3}, "there is no output 3"),
        ({"x": np.array([0, np.nan, 1])}, "x has values that are not finite"),
        ({"background": np.full((2, 3), np.inf)}, "the background has values that are not finite"),
        ({"normal": (np.zeros(3), np.full((3, 3), np.nan))}, "the normal law has values that are not finite"),
        ({"p": 1.0}, r"p cannot be 1\.0"),
        ({"family": "smoothgrad", "samples": -3}, "samples cannot be -3"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], reason: str) -> None:
    values = {"x": np.ones(3), "background": np.zeros((2, 3)), **options}
    with pytest.raises(ParameterError, match=reason):
        attribute_vector(_net(3, 4, 2), **values)


def test_outputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ModelError, match="the model returned values that are not finite"):
        attribute_vector(
            lambda rows: np.full(len(rows), np.nan), np.ones(3), family="occlusion", background=np.zeros((2, 3))
        )
