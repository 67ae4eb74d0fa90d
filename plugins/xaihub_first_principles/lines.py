"""Exact integrals along segments of piecewise-affine networks, by marching from kink to kink.

Between kinks `t -> f(p + t (q - p))` is affine, so a piece of length h contributes `h f + h^2 f' / 2`. One pass with
a tangent gives f, f' and, from every ReLU, clip and max-pool, how far the next kink is. Functions that are neither
affine nor piecewise affine are refused by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from xaihub import ExplainerRefused
from xaihub_first_principles.kinks import Kinks

__all__ = ["Lines", "integrated_gradients", "line_integrals", "segment_mlp"]

PAST = 1e-11  # a pass is made just after a kink


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Integrals over segments: (L,) values, (L,) numbers of pieces, and each segment's kinks from 0 to 1."""

    values: Tensor
    pieces: Tensor
    knots: list[Tensor]


def line_integrals(f: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, *, max_pieces: int = 10_000) -> Lines:
    """Integrate a piecewise-affine `f`, (L, ...) float64 to (L,), over t in [0, 1] on L segments.

    Raises:
        ExplainerRefused: `f` calls something that is not piecewise affine, or there are too many pieces.
    """
    start, end = start.detach().double(), end.detach().double()
    count = len(start)
    least = _sides_changed(f, start, end)
    if least > max_pieces:
        raise ExplainerRefused(
            f"a line crosses at least {least} linear pieces of the network, more than {max_pieces}",
            hint="leave exact out, for quadrature",
        )
    t, total = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    knots: list[list[float]] = [[0.0] for _ in range(count)]
    active = torch.arange(count)
    for _ in range(max_pieces):
        at = (t[active] + PAST).clamp(max=1)
        value, slope, step = _look(f, start[active], end[active] - start[active], at)
        following = (at + step).clamp(max=1)
        length = following - t[active]
        total[active] += length * (value - (at - t[active]) * slope) + length.square() / 2 * slope
        t[active] = following
        for line, knot in zip(active.tolist(), following.tolist(), strict=True):
            knots[line].append(knot)
        active = active[following < 1]
        if not len(active):
            pieces = torch.tensor([len(row) - 1 for row in knots])
            return Lines(values=total, pieces=pieces, knots=[torch.tensor(row, dtype=torch.float64) for row in knots])
    raise ExplainerRefused(
        f"a line crosses more than {max_pieces} linear pieces of the network, {float(t[active].min()):.2g} of the way",
        hint="leave exact out, for quadrature",
    )


def integrated_gradients(
    f: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, *, max_pieces: int = 10_000
) -> Tensor:
    """Return the exact Integrated Gradients of one input from `start` to `end`, both without a batch axis.

    The gradient is constant between kinks, so this is a finite sum. It is a path integral, and no measure.

    Raises:
        ExplainerRefused: As in `line_integrals`.
    """
    start, end = start.detach().double(), end.detach().double()
    knots = line_integrals(f, start.unsqueeze(0), end.unsqueeze(0), max_pieces=max_pieces).knots[0]
    total = torch.zeros_like(start)
    for first in range(0, len(knots) - 1, 64):
        cut = knots[first : first + 65]
        shape = (-1,) + (1,) * start.ndim
        middle = ((cut[1:] + cut[:-1]) / 2).view(shape)
        points = (start + middle * (end - start)).requires_grad_()
        with torch.enable_grad():
            gradient = torch.autograd.grad(f(points).sum(), points)[0]
        total += (gradient * cut.diff().view(shape)).sum(0)
    return total * (end - start)


def segment_mlp(layers: Sequence[tuple[Tensor, Tensor]], start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Integrate a ReLU MLP of (weight, bias) layers over a segment: the (outputs,) integral and the (n,) kinks.

    Layer by layer: pre-activations are affine between the times found so far, so each change of sign is one more.
    """
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def at(times: Tensor, depth: int) -> Tensor:
        z = start.double() + times.unsqueeze(1) * (end - start).double()
        for number, (weight, bias) in enumerate(layers[: depth + 1]):
            z = (z if number == 0 else z.relu()) @ weight.double().T + bias.double()
        return z

    for depth in range(len(layers) - 1):
        z = at(times, depth)
        before, after = z[:-1], z[1:]
        rows, units = torch.nonzero(before * after < 0, as_tuple=True)
        share = before[rows, units] / (before[rows, units] - after[rows, units])
        times = torch.cat([times, times[rows] + share * times.diff()[rows]]).sort().values
    outputs = at(times, len(layers) - 1)
    return ((outputs[:-1] + outputs[1:]) / 2 * times.diff().unsqueeze(1)).sum(0), times


def _look(f: Callable[[Tensor], Tensor], start: Tensor, direction: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the (L,) values, slopes and distances to the next kink."""
    place = start + at.view((-1,) + (1,) * (start.ndim - 1)) * direction
    # A graph is neither needed nor, in place on views, possible.
    with torch.no_grad(), forward_ad.dual_level(), Kinks(len(start)) as kinks:
        dual = f(_dual(place, direction))
        value, slope = forward_ad.unpack_dual(dual)
    slope = torch.zeros_like(value) if slope is None else slope
    return value.detach().clone(), slope.detach().clone(), kinks.step


def _dual(place: Tensor, direction: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # torch itself compiles some derivatives with it when the first tangent is made.
        warnings.filterwarnings("ignore", message="`torch.jit.script` is", category=FutureWarning)
        warnings.filterwarnings("ignore", message="`torch.jit.script` is", category=DeprecationWarning)
        dual: Tensor = forward_ad.make_dual(place, direction)
    return dual


def _sides_changed(f: Callable[[Tensor], Tensor], start: Tensor, end: Tensor) -> int:
    """Return how many units are on different sides of a kink at the two ends: no line has fewer kinks in all."""
    sides = []
    for place in (start, end):
        with torch.no_grad(), forward_ad.dual_level(), Kinks(len(start), note=True) as kinks:
            f(_dual(place, end - start))
        sides.append(kinks.sides)
    changed = torch.zeros(len(start), dtype=torch.long)
    for first, last in zip(*sides, strict=True):
        changed += (first != last).reshape(len(start), -1).sum(1)
    return int(changed.max())
