"""The three penalties as functions: closed forms, known values, gradients, batching and randomness."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xaihub_expo.penalties import (
    line_fit,
    local_fit,
    neighbour_outputs,
    relative_change,
    squared_change,
    unexplained_fraction,
)
from xaihub_expo.reproduction.penalties import (
    gaussian_neighbours,
    line_neighbours,
    penalise_fidelity,
    penalise_line,
    penalise_stability,
)

SIGMA = 0.5
PENALTIES = [penalise_fidelity, penalise_line, penalise_stability]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def smooth(inputs: int = 4, outputs: int = 3, seed: int = 0) -> nn.Module:
    """A small network with curvature everywhere, random biases, in float64."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, 16), nn.Softplus(), nn.Linear(16, outputs))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network.double()


def lstsq(points: Tensor, outputs: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients, intercepts and residuals of one point, by NumPy on [X 1]."""
    A = np.concatenate([points.numpy(), np.ones((len(points), 1))], axis=1)
    solution, *_ = np.linalg.lstsq(A, outputs.numpy(), rcond=None)
    return solution[:-1], solution[-1], outputs.numpy() - A @ solution


def test_the_local_fit_is_that_of_lstsq() -> None:
    X, Y = draws(6, 24, 12), draws(6, 24, 3, seed=1)

    fit = local_fit(X, Y)

    for row in range(6):
        coefficients, intercepts, residuals = lstsq(X[row], Y[row])
        np.testing.assert_allclose(fit.coefficients[row], coefficients, atol=1e-8)
        np.testing.assert_allclose(fit.intercepts[row], intercepts, atol=1e-8)
        np.testing.assert_allclose(fit.residuals[row], residuals, atol=1e-8)


def test_float32_is_enough_for_points_thirty_deviations_from_the_origin() -> None:
    X, Y = (draws(6, 24, 12) * 0.5 + 30).float(), draws(6, 24, 3, seed=1).float()

    fit = local_fit(X, Y)

    for row in range(6):
        coefficients, _, residuals = lstsq(X[row].double(), Y[row].double())
        np.testing.assert_allclose(
            fit.coefficients[row], coefficients, rtol=1e-3, atol=1e-3 * np.abs(coefficients).max()
        )
        mean = float(fit.residuals[row].square().mean())
        assert mean == pytest.approx(np.mean(residuals**2), rel=1e-3)


def test_constant_and_collinear_features_do_not_disturb_the_fit() -> None:
    X, Y = draws(4, 24, 6), draws(4, 24, 2, seed=1)
    X[0, :, 2] = 3.0
    X[1, :, 3] = 2 * X[1, :, 4] - 1
    X[2] = 1.0

    fit = local_fit(X, Y)

    for row in range(4):
        _, _, residuals = lstsq(X[row], Y[row])
        np.testing.assert_allclose(fit.residuals[row], residuals, atol=1e-8)
    assert bool(fit.coefficients.isfinite().all())


def test_as_many_parameters_as_samples_leave_no_residual() -> None:
    fit = local_fit(draws(3, 8, 7), draws(3, 8, 2, seed=1))

    assert float(fit.residuals.abs().max()) < 1e-10


def test_the_closed_form_of_a_line_is_that_of_lstsq() -> None:
    t, Y = draws(5, 20), draws(5, 20, 3, seed=1)

    fit = line_fit(t, Y)

    for row in range(5):
        slope, intercept, residuals = lstsq(t[row].unsqueeze(1), Y[row])
        np.testing.assert_allclose(fit.coefficients[row], slope, atol=1e-8)
        np.testing.assert_allclose(fit.intercepts[row], intercept, atol=1e-8)
        np.testing.assert_allclose(fit.residuals[row], residuals, atol=1e-8)


def test_affine_functions_cost_nothing_but_their_slope() -> None:
    w = draws(5, 2, seed=3)
    points = draws(2000, 5)

    def affine(x: Tensor) -> Tensor:
        return x @ w + 7

    assert float(penalise_fidelity(affine, points, generator=seeded())) < 1e-10
    assert float(penalise_line(affine, points, generator=seeded())) < 1e-10
    stability = float(penalise_stability(affine, points, generator=seeded(), samples=20))
    assert stability == pytest.approx(SIGMA**2 * float(w.square().sum(0).mean()), rel=0.05)


def square(x: Tensor) -> Tensor:
    return x[:, :1] ** 2


def product(x: Tensor) -> Tensor:
    return x[:, :1] * x[:, 1:2]


def test_a_square_costs_twice_sigma_to_the_fourth_with_many_neighbours_and_less_with_few() -> None:
    points = draws(2000, 5)

    many = float(penalise_fidelity(square, points, generator=seeded(), samples=400))
    few = float(penalise_fidelity(square, points, generator=seeded(), samples=20))

    assert many == pytest.approx(2 * SIGMA**4, rel=0.05)
    assert 0.06 < few < 0.08


def test_along_a_line_a_square_costs_its_share_of_the_features() -> None:
    points = draws(8000, 5)

    def mean(samples: int) -> float:
        found = [float(penalise_line(square, points, generator=seeded(seed), samples=samples)) for seed in range(6)]
        return float(np.mean(found))

    many, few = mean(400), mean(20)

    assert many == pytest.approx(2 * SIGMA**4 / 5, rel=0.05)
    assert few == pytest.approx(0.75 * many, rel=0.06)


def test_along_lines_interactions_are_not_seen() -> None:
    points = draws(2000, 5)

    assert float(penalise_fidelity(product, points, generator=seeded(), samples=400)) == pytest.approx(
        SIGMA**4, rel=0.05
    )
    assert float(penalise_line(product, points, generator=seeded())) < 1e-10


@pytest.mark.parametrize("penalise", PENALTIES)
def test_every_weight_but_the_last_bias_gets_a_gradient_and_no_input_does(penalise: Callable[..., Tensor]) -> None:
    network, points = smooth(), draws(8, 4).requires_grad_()

    penalise(network, points.detach(), generator=seeded()).backward()

    for name, weight in network.named_parameters():
        assert weight.grad is not None
        assert bool(weight.grad.isfinite().all())
        assert bool((weight.grad.abs().max() > 1e-12) == (name != "4.bias")), name


@pytest.mark.parametrize("penalise", [penalise_fidelity, penalise_line])
def test_no_gradient_reaches_the_points_through_the_fit(penalise: Callable[..., Tensor]) -> None:
    points = draws(8, 4).requires_grad_()

    with pytest.raises(RuntimeError, match="does not require grad"):
        penalise(lambda x: x.detach().tanh(), points, generator=seeded()).backward()


@pytest.mark.parametrize("detach", [True, False])
def test_the_gradient_is_the_same_whether_the_coefficients_are_held_constant_or_not(detach: bool) -> None:
    network = smooth()
    neighbours = gaussian_neighbours(draws(6, 4), 20, SIGMA, seeded())
    ours = local_fit(neighbours, neighbour_outputs(network, neighbours)).residuals.square().mean()
    gradients = torch.autograd.grad(ours, [*network.parameters()][:-1])

    outputs = neighbour_outputs(network, neighbours)
    A = torch.cat([neighbours, torch.ones(6, 20, 1, dtype=torch.float64)], 2)
    beta = torch.linalg.lstsq(A, outputs.detach() if detach else outputs).solution
    literal = (outputs - A @ beta).square().mean()

    for found, wanted in zip(gradients, torch.autograd.grad(literal, [*network.parameters()][:-1]), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("penalise", PENALTIES)
def test_the_gradient_agrees_with_finite_differences(penalise: Callable[..., Tensor]) -> None:
    network, points = smooth(), draws(3, 4)
    names = [name for name, _ in network.named_parameters()]

    def cost(*weights: Tensor) -> Tensor:
        state = dict(zip(names, weights, strict=True))
        return penalise(lambda x: torch.func.functional_call(network, state, (x,)), points, generator=seeded())

    assert torch.autograd.gradcheck(cost, tuple(network.parameters()), eps=1e-6, atol=1e-5)


# Relative penalties


def missed(y: Tensor) -> Tensor:
    return unexplained_fraction(local_fit(draws(5, 20, 4, seed=1), y), y)


def missed_along_a_line(y: Tensor) -> Tensor:
    return unexplained_fraction(line_fit(draws(5, 20, seed=1), y), y)


def changed(y: Tensor) -> Tensor:
    return relative_change(y[:, 1:], y[:, :1])


RELATIVE = [missed, missed_along_a_line, changed]


def test_the_unexplained_fraction_is_residual_over_variance_pooled_over_points_and_outputs() -> None:
    X, Y = draws(5, 20, 4), draws(5, 20, 3, seed=1)

    found = float(unexplained_fraction(local_fit(X, Y), Y))

    rest = spread = 0.0
    for row in range(5):
        _, _, residuals = lstsq(X[row], Y[row])
        rest += float((residuals**2).sum())
        spread += float(((Y[row].numpy() - Y[row].numpy().mean(axis=0)) ** 2).sum())
    assert found == pytest.approx(rest / (spread + 5 * 20 * 3 * 1e-4), rel=1e-9)
    assert 0.5 < found < 1


def test_a_relative_change_is_over_the_mean_square_of_the_reference() -> None:
    Y = draws(5, 4, 3, seed=1)

    found = float(relative_change(Y[:, 1:], Y[:, :1]))

    change = [(Y[i, j, k] - Y[i, 0, k]) ** 2 for i in range(5) for j in (1, 2, 3) for k in range(3)]
    size = [Y[i, 0, k] ** 2 for i in range(5) for k in range(3)]
    assert found == pytest.approx(float(np.mean(change)) / (float(np.mean(size)) + 1e-4), rel=1e-9)


@pytest.mark.parametrize("penalise", RELATIVE)
def test_smaller_outputs_gain_nothing_from_a_relative_penalty(penalise: Callable[[Tensor], Tensor]) -> None:
    outputs, factor = draws(5, 20, 3), torch.ones((), dtype=torch.float64, requires_grad=True)

    whole, tenth = float(penalise(10 * outputs)), float(penalise(outputs))
    penalise(factor * 10 * outputs).backward()

    assert whole == pytest.approx(tenth, rel=2e-4)
    assert factor.grad is not None
    assert abs(float(factor.grad)) < 1e-4 * whole


@pytest.mark.parametrize("penalise", RELATIVE)
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-6, 1e-2, 1e10])
def test_a_relative_penalty_and_its_gradient_are_finite_where_outputs_hardly_vary(
    penalise: Callable[[Tensor], Tensor], scale: float
) -> None:
    outputs = (draws(5, 20, 3).float() * scale).requires_grad_()

    value = penalise(outputs)
    value.backward()

    assert bool(value.isfinite())
    assert outputs.grad is not None
    assert bool(outputs.grad.isfinite().all())
    assert float(outputs.grad.norm()) <= 200


@pytest.mark.parametrize("penalise", RELATIVE)
def test_the_gradient_of_a_relative_penalty_agrees_with_finite_differences(
    penalise: Callable[[Tensor], Tensor],
) -> None:
    assert torch.autograd.gradcheck(penalise, draws(5, 20, 3).requires_grad_())


def test_all_points_at_once_cost_the_mean_of_each_alone() -> None:
    network, points = smooth(), draws(7, 4)
    neighbours = gaussian_neighbours(points, 20, SIGMA, seeded())
    moved, steps, _ = line_neighbours(points, 20, SIGMA, seeded())
    with torch.no_grad():
        alone = [local_fit(part[None], network(part)[None]).residuals.square().mean() for part in neighbours]
        whole = local_fit(neighbours, neighbour_outputs(network, neighbours)).residuals.square().mean()
        lines = [
            line_fit(t[None], network(x)[None]).residuals.square().mean() for t, x in zip(steps, moved, strict=True)
        ]
        line = line_fit(steps, neighbour_outputs(network, moved)).residuals.square().mean()
        shift = squared_change(neighbour_outputs(network, neighbours), network(points).unsqueeze(1))
        shifts = [(network(x) - network(p[None])).square().mean() for x, p in zip(neighbours, points, strict=True)]

    torch.testing.assert_close(whole, torch.stack(alone).mean())
    torch.testing.assert_close(line, torch.stack(lines).mean())
    torch.testing.assert_close(shift, torch.stack(shifts).mean())


def test_lines_go_along_one_feature_a_point_and_not_all_along_the_same() -> None:
    points = draws(50, 6)

    neighbours, steps, features = line_neighbours(points, 20, SIGMA, seeded())

    moved = (neighbours - points.unsqueeze(1)).abs() > 0
    assert bool((moved.any(1).sum(1) == 1).all())
    assert torch.equal(moved.any(1).long().argmax(1), features)
    torch.testing.assert_close((neighbours - points.unsqueeze(1)).sum(2), steps)
    assert len(features.unique()) == 6


@pytest.mark.parametrize("penalise", PENALTIES)
def test_a_seed_fixes_the_penalty(penalise: Callable[..., Tensor]) -> None:
    network, points = smooth(), draws(8, 4)

    first, again, other = (float(penalise(network, points, generator=seeded(seed)).detach()) for seed in (1, 1, 2))

    assert first == again != other


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_neighbours_have_the_given_spread_and_number(sigma: float) -> None:
    neighbours = gaussian_neighbours(torch.zeros(500, 3), 40, sigma, seeded())
    _, steps, _ = line_neighbours(torch.zeros(500, 3), 40, sigma, seeded())

    assert neighbours.shape == (500, 40, 3)
    assert float(neighbours.std()) == pytest.approx(sigma, rel=0.02)
    assert float(steps.std()) == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize(
    ("penalise", "features", "rows"),
    [(penalise_fidelity, 4, 20), (penalise_fidelity, 12, 24), (penalise_line, 12, 20), (penalise_stability, 12, 2)],
)
def test_a_point_costs_the_papers_number_of_rows(penalise: Callable[..., Tensor], features: int, rows: int) -> None:
    seen: list[int] = []

    def network(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x[:, :1].tanh()

    penalise(network, draws(16, features), generator=seeded())

    assert seen == [16 * rows]


def test_under_autocast_the_fit_is_in_float32() -> None:
    X, Y = draws(4, 24, 6).float(), draws(4, 24, 2, seed=1).float()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = local_fit(X, Y)
        line = line_fit(X[:, :, 0], Y)
        half = local_fit(X, Y.bfloat16())

    assert found.residuals.dtype == half.residuals.dtype == torch.float32
    assert torch.equal(found.residuals, local_fit(X, Y).residuals)
    assert torch.equal(line.residuals, line_fit(X[:, :, 0], Y).residuals)
