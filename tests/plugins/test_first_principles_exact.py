"""Closed forms and exact lines, against numerical integration and against each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import timm
import torch
from torch import Tensor, nn

from xaihub import ExplainerRefused
from xaihub_first_principles.families import FiniteDifferenceIG
from xaihub_first_principles.line_integrals import line_integrals
from xaihub_first_principles.vectors import attribute_vector
from xaihub_first_principles.vectors.exact import Network, exact_integrals
from xaihub_first_principles.vectors.linear_regions import linear_regions
from xaihub_first_principles.vectors.one_hidden import OneHidden

Function = Callable[[Tensor], Tensor]


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _one_hidden(d: int, seed: int = 0) -> tuple[OneHidden, Function]:
    torch.manual_seed(seed)
    network = Network.of(nn.Sequential(nn.Linear(d, 7), nn.ReLU(), nn.Linear(7, 2)), 1)
    assert network.one_hidden is not None
    return network.one_hidden, network.f


def _shake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give biases and batch norms values of their own: fresh networks are linear along rays from 0."""
    generator = _rng(seed)
    for part in module.modules():
        for name, low, high in (("bias", -0.3, 0.3), ("running_mean", -0.3, 0.3), ("running_var", 0.5, 1.5)):
            tensor = getattr(part, name, None)
            values = torch.zeros(0) if tensor is None else torch.rand(tensor.shape, generator=generator)
            (torch.zeros(0) if tensor is None else tensor.data).copy_(low + (high - low) * values)
    return module.double().eval().requires_grad_(False)


# One hidden layer.

MEAN = torch.tensor([0.2, -0.1, 0.4, 0.0], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0, 0, 0], [0.8, 0.5, 0, 0], [-0.6, 0.3, 0.7, 0], [0.1, 0.2, 0.3, 0.6]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T
HERE = torch.tensor([1.0, -0.5, 0.8, 0.3], dtype=torch.float64)
DRAWS = 1_000_000


def _independent(j: int, noise: Tensor) -> Tensor:
    return (MEAN + noise * COVARIANCE.diagonal().sqrt()).index_fill(1, torch.tensor([j]), float(HERE[j]))


def _partial(j: int, noise: Tensor) -> Tensor:
    return (MEAN + noise @ ROOT.T).index_fill(1, torch.tensor([j]), float(HERE[j]))


def _conditional(j: int, noise: Tensor) -> Tensor:
    others = [k for k in range(4) if k != j]
    column = COVARIANCE[others, j] / COVARIANCE[j, j]
    mean = MEAN[others] + column * (HERE[j] - MEAN[j])
    rest = COVARIANCE[others][:, others] - torch.outer(column, COVARIANCE[others, j])
    points = torch.empty(len(noise), 4, dtype=torch.float64)
    points[:, others] = mean + noise[:, :3] @ torch.linalg.cholesky(rest).T
    points[:, j] = HERE[j]
    return points


def _cube(j: int, noise: Tensor) -> Tensor:
    uniform = torch.special.ndtr(noise)
    return uniform.index_fill(1, torch.tensor([j]), float(HERE[j]))


@pytest.mark.parametrize(
    ("closed", "draw"),
    [
        (lambda net: net.pdp_gaussian(HERE, MEAN, torch.diag(COVARIANCE.diagonal())), _independent),
        (lambda net: net.pdp_gaussian(HERE, MEAN, COVARIANCE), _partial),
        (lambda net: net.conditional_gaussian(HERE, MEAN, COVARIANCE), _conditional),
        (lambda net: net.length_weighted(HERE), _cube),
    ],
)
def test_a_closed_form_is_within_four_standard_errors_of_monte_carlo(
    closed: Callable[[OneHidden], Tensor], draw: Callable[[int, Tensor], Tensor]
) -> None:
    (net, f), noise = _one_hidden(4), torch.randn(DRAWS, 4, generator=_rng(1), dtype=torch.float64)
    exact = closed(net)
    for j in range(4):
        outputs = f(draw(j, noise))
        error = float(outputs.std()) / DRAWS**0.5
        assert float(exact[j]) == pytest.approx(float(outputs.mean()), abs=4 * error)


def test_weights_of_zero_do_not_divide() -> None:
    net = OneHidden(
        u=torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64),
        v=torch.tensor([0.7, 0.1], dtype=torch.float64),
        a=torch.tensor([2.0, 0.0], dtype=torch.float64),
    )
    x = torch.tensor([0.3, 0.4], dtype=torch.float64)
    assert net.length_weighted(x).tolist() == pytest.approx([1.4, 1.4])
    assert net.pdp_gaussian(x, x, torch.eye(2).double()).tolist() == pytest.approx([1.4, 1.4])


def test_the_uniform_formula_is_refused_where_it_would_cancel() -> None:
    net, _ = _one_hidden(4)
    tiny = OneHidden(u=net.u * 1e-4, v=net.v + 2, a=net.a, c=net.c)
    with pytest.raises(ExplainerRefused, match="would be wrong by up to"):
        tiny.length_weighted(HERE)
    with pytest.raises(ExplainerRefused, match="13 uniform features"):
        _one_hidden(14)[0].length_weighted(torch.rand(14).double())


# Lines.


class _Residual(nn.Module):
    """Convolution, batch norm, ReLU6, max-pool and a residual sum on 1 x 10 x 10 images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])
        self.clip, self.pool, self.head = nn.ReLU6(), nn.MaxPool2d(3, 2, 1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(self.clip(4 * self.norms[0](self.first(x))))
        return self.head(nn.functional.relu(h + self.norms[1](self.second(h))).mean((2, 3)))


def _network(seed: int = 0) -> Function:
    torch.manual_seed(seed)
    net = _shake(_Residual())
    return lambda images: net(images)[:, 1]


def _ends(seed: int = 1, rows: int = 2) -> tuple[Tensor, Tensor]:
    start, end = torch.randn(2, rows, 1, 10, 10, generator=_rng(seed), dtype=torch.float64)
    return start, end


def test_marching_finds_every_breakpoint_of_a_convolutional_network() -> None:
    f, (start, end) = _network(), _ends()
    found = line_integrals(f, start, end)
    assert min(map(len, found.breakpoints)) > 50
    for row, knots in enumerate(found.breakpoints):
        # Between breakpoints the function is a chord: checked at a quarter and at the middle of each piece.
        for share in (0.25, 0.5):
            inside = knots[:-1] + share * knots.diff()
            left, right, value = (
                f(start[row] + t.view(-1, 1, 1, 1) * (end[row] - start[row])) for t in (knots[:-1], knots[1:], inside)
            )
            assert torch.allclose(value, left + share * (right - left), atol=1e-10)


def test_line_integrals_equal_a_fine_trapezoid() -> None:
    f, (start, end) = _network(), _ends(rows=1)
    steps = 100_000
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64).split(2000)
    outputs = torch.cat([f(start[0] + t.view(-1, 1, 1, 1) * (end[0] - start[0])) for t in times])
    trapezoid = float(outputs.sum() - (outputs[0] + outputs[-1]) / 2) / steps
    assert float(line_integrals(f, start, end).values) == pytest.approx(trapezoid, abs=1e-9)


def _segment(layers: list[tuple[Tensor, Tensor]], start: Tensor, end: Tensor) -> tuple[float, int]:
    """Integrate a ReLU MLP over a segment layer by layer; return the integral and the number of pieces."""
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def at(depth: int) -> Tensor:
        z = start + times.unsqueeze(1) * (end - start)
        for number, (weight, bias) in enumerate(layers[: depth + 1]):
            z = (z if number == 0 else z.relu()) @ weight.T + bias
        return z

    for depth in range(len(layers) - 1):
        z = at(depth)  # affine between the times found so far
        rows, units = torch.nonzero(z[:-1] * z[1:] < 0, as_tuple=True)
        before, after = z[rows, units], z[rows + 1, units]
        times = torch.cat([times, times[rows] + before / (before - after) * times.diff()[rows]]).sort().values
    outputs = at(len(layers) - 1)[:, 0]
    return float((outputs[:-1] + outputs[1:]) / 2 @ times.diff()), len(times) - 1


def test_marching_equals_the_layer_by_layer_route_on_a_deep_network() -> None:
    torch.manual_seed(2)
    linears = [nn.Linear(4, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 1)]
    parts = [part for linear in linears[:-1] for part in (linear, nn.ReLU())]
    net = _shake(nn.Sequential(*parts, linears[-1]))
    layers = [(linear.weight, linear.bias) for linear in linears]
    start, end = 3 * torch.randn(2, 5, 4, generator=_rng(), dtype=torch.float64)
    marched = line_integrals(lambda y: net(y)[:, 0], start, end)
    for row in range(5):
        value, pieces = _segment(layers, start[row], end[row])
        assert float(marched.values[row]) == pytest.approx(value, abs=1e-10)
        assert len(marched.breakpoints[row]) - 1 == pieces
        times = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
        middle = net(start[row] + times.unsqueeze(1) * (end[row] - start[row])).mean()
        assert value == pytest.approx(float(middle), abs=1e-10)


def test_finite_difference_ig_equals_exact_integrated_gradients_where_lines_stay_in_their_cells() -> None:
    torch.manual_seed(4)
    net = _shake(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)))
    end = torch.randn(3, generator=_rng(), dtype=torch.float64)
    knots = line_integrals(lambda y: net(y)[:, 0], 0 * end[None], end[None]).breakpoints[0]
    middles = (((knots[1:] + knots[:-1]) / 2).unsqueeze(1) * end).requires_grad_()
    gradient = torch.autograd.grad(net(middles).sum(), middles)[0]  # constant on each piece
    exact = knots.diff() @ gradient * end
    ours = attribute_vector(net, end, family="fd_ig", exact=True).values
    assert float(exact.sum()) == pytest.approx(float((net(end[None]) - net(0 * end[None])).squeeze()), abs=1e-10)
    assert torch.allclose(ours, exact, atol=1e-2)
    fine = exact_integrals(Network.of(net, 0), FiniteDifferenceIG(h=1e-6), end).values
    assert torch.allclose(fine, exact, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "length"), [("resnet18", 1e-3), ("tf_efficientnet_lite0", 5e-4), ("test_resnet", 3e-2)]
)
def test_piecewise_affine_backbones_are_marched_to_the_end(name: str, length: float) -> None:
    torch.manual_seed(0)
    net = _shake(timm.create_model(name, num_classes=2))
    start = torch.randn(1, 3, 32, 32, generator=_rng(), dtype=torch.float64)
    end = start + length * torch.randn(1, 3, 32, 32, generator=_rng(1), dtype=torch.float64)
    found = line_integrals(lambda images: net(images)[:, 0], start, end)
    knots = found.breakpoints[0]
    outputs = net(start + knots.view(-1, 1, 1, 1) * (end - start))[:, 0]
    middles = net(start + ((knots[1:] + knots[:-1]) / 2).view(-1, 1, 1, 1) * (end - start))[:, 0]
    assert torch.allclose(middles, (outputs[1:] + outputs[:-1]) / 2, atol=1e-11)
    assert len(knots) > 3


@pytest.mark.parametrize(
    ("name", "function"), [("test_vit", "layer_norm"), ("test_convnext", "layer_norm"), ("test_efficientnet", "silu")]
)
def test_smooth_backbones_are_refused_by_the_name_of_what_they_call(name: str, function: str) -> None:
    net = timm.create_model(name, num_classes=2).double().eval()
    side = net.pretrained_cfg["input_size"][-1]
    start, end = torch.randn(2, 1, 3, side, side, generator=_rng(), dtype=torch.float64)
    with pytest.raises(ExplainerRefused, match=f"piecewise-affine network, and this one calls '{function}'"):
        line_integrals(lambda images: net(images)[:, 0], start, end)


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda y: (y * y).sum(1), "multiplies"),
        (lambda y: (1 / y).sum(1), "divides|calls"),
        (lambda y: y.exp().sum(1), "calls 'exp'"),
        (lambda y: torch.softmax(y, 1)[:, 0], "calls 'softmax'"),
        (lambda y: y.sum(1) * float(y[0, 0] > 0), "calls 'gt'|calls '__gt__'"),
    ],
)
def test_functions_that_are_not_piecewise_affine_are_refused(f: Function, reason: str) -> None:
    start, end = torch.rand(2, 2, 3, generator=_rng(), dtype=torch.float64) + 0.5
    with pytest.raises(ExplainerRefused, match=reason):
        line_integrals(f, start, end)


def test_other_piecewise_affine_functions_have_their_breakpoints_found() -> None:
    def f(y: Tensor) -> Tensor:
        leaky = nn.functional.leaky_relu(y[:, 0], 0.2) + nn.functional.hardtanh(y[:, 1], -0.5, 0.5)
        return leaky + y[:, 2].clamp(min=0.1) - y[:, 3].abs() + nn.functional.hardsigmoid(6 * y[:, 4])

    start, end = -torch.ones(1, 5).double(), torch.ones(1, 5).double()
    found = line_integrals(f, start, end)
    # Means over [-1, 1]: leaky 0.2, clip 0, clamp 0.1 * 0.55 + 0.45 * 0.55, minus |y| 0.5, hard sigmoid 0.5.
    assert float(found.values) == pytest.approx(
        0.2 + 0.55 * 0.55 - 0.5 + 0.5, abs=1e-8
    )  # torch holds 1/6 in single precision
    assert found.breakpoints[0].tolist() == pytest.approx([0, 0.25, 0.5, 0.55, 0.75, 1], abs=1e-9)


def test_a_line_with_too_many_pieces_is_refused() -> None:
    f, (start, end) = _network(), _ends()
    with pytest.raises(ExplainerRefused, match="at least .* linear pieces of the network, more than 5"):
        line_integrals(f, start, end, max_pieces=5)
    pieces = max(map(len, line_integrals(f, start, end).breakpoints)) - 1
    with pytest.raises(ExplainerRefused, match=f"more than {pieces - 1} linear pieces"):
        line_integrals(f, start, end, max_pieces=pieces - 1)


# Linear regions of two to four inputs.


def _deep(seed: int, *sizes: int) -> tuple[list[tuple[Tensor, Tensor]], Function]:
    torch.manual_seed(seed)
    linears = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise((*sizes, 1))]
    net = _shake(nn.Sequential(*[part for linear in linears[:-1] for part in (linear, nn.ReLU())], linears[-1]), seed)
    return [(linear.weight, linear.bias) for linear in linears], lambda y: net(y)[:, 0]


def _integral(layers: list[tuple[Tensor, Tensor]]) -> float:
    return sum(region.integral for region in linear_regions(layers))


def _grid(f: Function, d: int, side: int) -> float:
    middle = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    total = 0.0
    for rows in middle.split(max(1, 400_000 // side ** (d - 1))):
        points = torch.cartesian_prod(rows, *[middle] * (d - 1))
        total += float(f(points).sum())
    return total / side**d


@pytest.mark.parametrize(
    ("seed", "sizes"), [(0, (2, 16, 16, 16)), (1, (2, 16, 16, 16)), (0, (3, 10, 10)), (0, (4, 8, 8))]
)
def test_linear_regions_of_a_deep_network_tile_the_cube_and_carry_its_affine_pieces(
    seed: int, sizes: tuple[int, ...]
) -> None:
    layers, f = _deep(seed, *sizes)
    found = linear_regions(layers)
    assert len(found) > 20
    assert sum(region.volume for region in found) == pytest.approx(1, abs=1e-12)
    for region in found:
        inside = torch.cat([region.corners.mean(0, keepdim=True), region.corners])
        assert torch.allclose(f(inside), inside @ region.w + region.b, atol=1e-10)


@pytest.mark.parametrize(
    ("sizes", "side", "error"),
    [((2, 16, 16, 16), 2000, 1e-7), ((3, 10, 10), 160, 1e-5), ((4, 8, 8), 36, 1e-5)],
)
def test_centres_of_mass_integrate_a_deep_network_as_a_fine_grid_does(
    sizes: tuple[int, ...], side: int, error: float
) -> None:
    layers, f = _deep(0, *sizes)
    assert _integral(layers) == pytest.approx(_grid(f, sizes[0], side), abs=error)


def test_a_cut_through_corners_and_a_dead_unit_leave_no_slivers() -> None:
    # y1 + y2 + y3 = 1 goes through three corners of the cube and cuts off a sixth of it; the second unit is constant.
    weight = torch.tensor([[1.0, 1, 1], [0, 0, 0]]).double()
    layers = [(weight, torch.tensor([-1.0, 2]).double()), (torch.tensor([[1.0, 1]]).double(), torch.zeros(1).double())]
    found = linear_regions(layers)
    assert sorted(region.volume for region in found) == pytest.approx([1 / 6, 5 / 6], abs=1e-12)
    # E (S - 1)+ with S the sum of three uniforms is 1/2 + E (1 - S)+ = 1/2 + 1/24.
    assert _integral(layers) == pytest.approx(2 + 1 / 2 + 1 / 24, abs=1e-12)


@pytest.mark.parametrize("d", [1, 5])
def test_other_dimensions_are_refused(d: int) -> None:
    with pytest.raises(ExplainerRefused, match=f"this network has {d} inputs"):
        linear_regions(_deep(0, d, 4)[0])
