"""Exact routes for piecewise-affine models of a vector; a refusal gives the reason why none applies.

Measures of finite support need only forward passes. Everything else needs a piecewise-affine network: closed forms for
one hidden ReLU layer, lines, and linear regions in up to four dimensions; volumes in more are #P-hard in general.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xaihub import ExplainerRefused
from xaihub_first_principles.exact_lines import exact_lines
from xaihub_first_principles.families import LengthWeighted
from xaihub_first_principles.line_integrals import line_integrals
from xaihub_first_principles.measures import MeasureFamily, MeasureResult, exact_result
from xaihub_first_principles.vectors.linear_regions import DIMENSIONS, linear_regions
from xaihub_first_principles.vectors.one_hidden import OneHidden

Layers = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of a vector, in double precision."""

    f: Callable[[Tensor], Tensor]  # (n, d) to (n,)
    layers: Layers | None  # weights and biases of a ReLU MLP with a single output, else None

    @classmethod
    def of(cls, module: nn.Module, output: int) -> Network:
        """Copy a module and read its layers."""
        double = copy.deepcopy(module).cpu().double().eval().requires_grad_(False)

        def f(y: Tensor) -> Tensor:
            rows: Tensor = double(y)
            return rows if rows.ndim == 1 else rows[:, output]

        return cls(f=f, layers=_read_layers(double, output))

    def along(self, start: Tensor, end: Tensor) -> Tensor:
        """Return the (L,) integrals over (L, d) segments."""
        return line_integrals(self.f, start, end).values

    @property
    def one_hidden(self) -> OneHidden | None:
        """The network as one hidden layer, if it is one."""
        if self.layers is None or len(self.layers) != 2:
            return None
        (u, v), (a, c) = self.layers
        return OneHidden(u=u, v=v, a=a[0], c=float(c[0]))


def exact_integrals(network: Network, family: MeasureFamily, x: Tensor) -> MeasureResult:
    """Return the exact attribution by a family without finite support.

    Raises:
        ExplainerRefused: No route applies.
    """
    if not isinstance(family, LengthWeighted):
        return exact_lines(family, x, network.f, network.along)
    values = _slices(network, x)
    if family.centre:
        values = values - _cube(network.layers, len(x))
    return exact_result(values, mass=1.0 - family.centre, variation=1.0 + family.centre)


def exact_normal(network: Network, kind: str, x: Tensor, mean: Tensor, covariance: Tensor) -> MeasureResult:
    """Return the exact attribution under a normal law: "pdp", "independent" or "conditional".

    Raises:
        ExplainerRefused: The network does not have exactly one hidden ReLU layer.
    """
    hidden = network.one_hidden
    if hidden is None:
        raise ExplainerRefused("normal laws have a closed form for one hidden ReLU layer only")
    if kind == "conditional":
        values = hidden.conditional_gaussian(x, mean, covariance)
    else:
        law = torch.diag(covariance.diagonal()) if kind == "independent" else covariance
        values = hidden.pdp_gaussian(x, mean, law)
    return exact_result(values, mass=1.0, variation=1.0)


def _slices(network: Network, x: Tensor) -> Tensor:
    """Return E f(x_j, U) with the others uniform on [0, 1], for each j."""
    d, hidden = len(x), network.one_hidden
    if d == 1:
        return network.f(x[None])
    if hidden is not None:
        return hidden.length_weighted(x)
    if d == 2:
        eye = torch.eye(2, dtype=torch.float64)
        return network.along(x * eye, x * eye + (1 - eye))
    if network.layers is None:
        raise ExplainerRefused("linear regions need a ReLU MLP; other networks have exact lines only")
    if d - 1 > DIMENSIONS[-1]:
        raise ExplainerRefused(
            f"linear regions need up to {DIMENSIONS[-1]} dimensions; with one of {d} features held there are {d - 1}",
            hint="omit exact to use sampled points",
        )
    (weight, bias), *rest = network.layers
    held = [[k for k in range(d) if k != j] for j in range(d)]
    cubes = [_cube([(weight[:, k], bias + weight[:, j] * x[j]), *rest], d - 1) for j, k in enumerate(held)]
    return torch.stack(cubes)


def _cube(layers: Layers | None, d: int) -> Tensor:
    """Return the mean of f over [0, 1]^d."""
    if layers is None or d not in DIMENSIONS:
        raise ExplainerRefused(
            f"the mean over a cube of {d} dimensions has no exact route here", hint="set centre=False"
        )
    return torch.tensor(sum(region.integral for region in linear_regions(layers)), dtype=torch.float64)


def _read_layers(module: nn.Module, output: int) -> Layers | None:
    """Return the (weight, bias) layers of a ReLU MLP, the last one cut to one output; None for another network.

    The layers are checked against the module on random points, since the order of parts proves nothing.
    """
    parts = [part for part in module.modules() if not list(part.children())]
    parts = [part for part in parts if not isinstance(part, (nn.Identity, nn.Dropout, nn.Flatten))]
    linears = [part for part in parts[::2] if isinstance(part, nn.Linear)]
    if len(parts) % 2 == 0 or len(linears) != len(parts[::2]) or any(type(p) is not nn.ReLU for p in parts[1::2]):
        return None
    layers: list[tuple[Tensor, Tensor]] = [
        (part.weight, torch.zeros(len(part.weight)).to(part.weight) if part.bias is None else part.bias)
        for part in linears
    ]
    weight, bias = layers[-1]
    layers[-1] = (weight[[output]], bias[[output]])
    points = torch.randn(16, linears[0].in_features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    try:
        outputs = module(points)[:, output]
    except (RuntimeError, IndexError):
        return None
    ours = points
    for number, (weight, bias) in enumerate(layers):
        ours = (ours.relu() if number else ours) @ weight.T + bias
    return layers if torch.allclose(ours[:, 0], outputs, atol=1e-9) else None
