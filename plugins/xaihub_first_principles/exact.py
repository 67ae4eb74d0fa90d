"""Exact routes for models of a vector: one is picked, or the refusal says why none applies.

Finite support needs no more than forward passes. Everything else needs a piecewise-affine network: closed forms for one
hidden ReLU layer, lines kink by kink, and cells in up to four dimensions; volumes in more are #P-hard in general.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xaihub import ExplainerRefused
from xaihub_first_principles.cells import DIMENSIONS, cells, integrate_cells
from xaihub_first_principles.hidden import OneHidden
from xaihub_first_principles.lines import line_integrals, segment_mlp
from xaihub_first_principles.measures import Measured

__all__ = ["Network", "exact_integrals", "read_layers"]

Layers = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of a vector, in double precision.

    Attributes:
        f: (n, d) to (n,).
        layers: Weights and biases if it is a ReLU MLP, else None; the last one has a single output.
    """

    f: Callable[[Tensor], Tensor]
    layers: Layers | None

    @classmethod
    def of(cls, module: nn.Module, output: int) -> Network:
        """Copy a module and read its layers."""
        double = copy.deepcopy(module).cpu().double().eval().requires_grad_(False)

        def f(y: Tensor) -> Tensor:
            rows: Tensor = double(y)
            return rows if rows.ndim == 1 else rows[:, output]

        return cls(f=f, layers=read_layers(double, output))

    def hidden(self) -> OneHidden | None:
        """Return the network as one hidden layer, if it is that."""
        if self.layers is None or len(self.layers) != 2:
            return None
        (u, v), (a, c) = self.layers
        return OneHidden(u=u, v=v, a=a[0], c=float(c[0]))


def read_layers(module: nn.Module, output: int) -> Layers | None:
    """Return the (weight, bias) layers of a ReLU MLP, the last one cut to one output; None for another network.

    What is read is checked against the module itself on random points, since the order of parts proves nothing.
    """
    parts = [part for part in module.modules() if not list(part.children())]
    parts = [part for part in parts if not isinstance(part, (nn.Identity, nn.Dropout, nn.Flatten))]
    kinds = [type(part) for part in parts]
    linears = [part for part in parts[::2] if isinstance(part, nn.Linear)]
    if len(parts) % 2 == 0 or len(linears) != len(parts[::2]) or any(kind is not nn.ReLU for kind in kinds[1::2]):
        return None
    layers = [
        (
            part.weight.detach(),
            torch.zeros(len(part.weight)).to(part.weight) if part.bias is None else part.bias.detach(),
        )
        for part in linears
    ]
    weight, bias = layers[-1]
    layers[-1] = (weight[[output]], bias[[output]])
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(16, linears[0].in_features, generator=generator, dtype=torch.float64)
    try:
        answers = module(points)[:, output]
    except (RuntimeError, IndexError):
        return None
    return layers if torch.allclose(_forward(layers, points), answers, atol=1e-9) else None


def exact_integrals(network: Network, family: Any, x: Tensor) -> Measured:
    """Return the exact attribution by a family that has no finite support.

    Raises:
        ExplainerRefused: No route applies.
    """
    from xaihub_first_principles import families

    d = len(x)
    if isinstance(family, families.AxisLebesgue):
        b = torch.zeros_like(x) if family.baseline is None else family.baseline.to(x)
        end = torch.ones_like(x) if family.end is None else family.end.to(x)
        values = 2 * _segments(network, b.expand(d, d), b + torch.diag(end - b))
        if family.centre:
            values = values - 2 * network.f(b[None])
        return _measured(values, mass=0.0 if family.centre else 2.0, variation=4.0 if family.centre else 2.0)
    if isinstance(family, families.FiniteDifferenceIG):
        b = torch.zeros_like(x) if family.baseline is None else family.baseline.to(x)
        shift = family.h * torch.eye(d, dtype=torch.float64)
        gap = _segments(network, b + shift, x + shift) - _segments(network, b - shift, x - shift)
        slope = (x - b) / (2 * family.h)
        return _measured(slope * gap, mass=0.0, variation=2 * slope.abs())
    if isinstance(family, families.LengthWeighted):
        values = _slices(network, x)
        if family.centre:
            values = values - _cube(network, d)
        return _measured(values, mass=float(not family.centre), variation=1.0 + family.centre)
    raise ExplainerRefused(
        f"no exact route for {family.name}: its measure has neither finite support, nor lies on lines or in a cube"
    )


def exact_normal(network: Network, kind: str, x: Tensor, mean: Tensor, covariance: Tensor) -> Measured:
    """Return the exact attribution where X is normal: "pdp", "independent" or "conditional".

    Raises:
        ExplainerRefused: The network has not one hidden ReLU layer.
    """
    hidden = network.hidden()
    if hidden is None:
        raise ExplainerRefused("normal laws have a closed form for one hidden ReLU layer only")
    if kind == "independent":
        values = hidden.independent_gaussian(x, mean, covariance.diagonal().sqrt())
    elif kind == "pdp":
        values = hidden.pdp_gaussian(x, mean, covariance)
    else:
        values = hidden.conditional_gaussian(x, mean, covariance)
    return _measured(values, mass=1.0, variation=1.0)


def _segments(network: Network, start: Tensor, end: Tensor) -> Tensor:
    """Return the (L,) integrals over segments: layer by layer for an MLP, else kink by kink."""
    if network.layers is None:
        return line_integrals(network.f, start.contiguous(), end).values
    pairs = zip(start, end, strict=True)
    return torch.stack([segment_mlp(network.layers, first, last)[0][0] for first, last in pairs])


def _slices(network: Network, x: Tensor) -> Tensor:
    """Return E f(x_j, U) with the others uniform on [0, 1], for each j."""
    d = len(x)
    if d == 1:
        return network.f(x[None])
    if network.layers is None:
        if d > 2:
            raise ExplainerRefused("cells need a ReLU MLP; other networks have exact lines only")
        eye = torch.eye(2, dtype=torch.float64)
        return _segments(network, x * eye, x * eye + (1 - eye))
    hidden = network.hidden()
    if hidden is not None:
        return hidden.length_weighted(x)
    if d - 1 > DIMENSIONS[-1]:
        raise ExplainerRefused(
            f"cells are built in up to {DIMENSIONS[-1]} dimensions; with one of {d} features held there are {d - 1}",
            hint="leave exact out, for points",
        )
    values = []
    for j in range(d):
        others = [k for k in range(d) if k != j]
        (weight, bias), *rest = network.layers
        values.append(
            _cube(Network(f=network.f, layers=[(weight[:, others], bias + weight[:, j] * x[j]), *rest]), d - 1)
        )
    return torch.stack(values)


def _cube(network: Network, d: int) -> Tensor:
    """Return the mean of f over [0, 1]^d."""
    if network.layers is None or d > DIMENSIONS[-1]:
        raise ExplainerRefused(f"the mean over a cube of {d} dimensions has no exact route here", hint="do not centre")
    if d == 1:
        return segment_mlp(network.layers, torch.zeros(1).double(), torch.ones(1).double())[0][0]
    return torch.tensor(integrate_cells(cells(network.layers)), dtype=torch.float64)


def _forward(layers: Layers, y: Tensor) -> Tensor:
    for weight, bias in layers[:-1]:
        y = (y @ weight.T + bias).relu()
    weight, bias = layers[-1]
    return (y @ weight.T + bias)[:, 0]


def _measured(values: Tensor, *, mass: float, variation: float | Tensor) -> Measured:
    d = len(values)
    return Measured(
        values=values.double(),
        stderr=torch.zeros(d, dtype=torch.float64),
        mass=torch.full((d,), mass, dtype=torch.float64),
        variation=torch.as_tensor(variation, dtype=torch.float64).expand(d),
        points=0,
        exact=True,
    )
