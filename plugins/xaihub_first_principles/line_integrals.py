"""Exact integrals along segments of piecewise-affine networks, by marching from breakpoint to breakpoint.

Between breakpoints `t -> f(p + t (q - p))` is affine, so a piece of length h contributes `h f + h^2 f' / 2`. One
forward pass with a tangent gives f, f' and, from every ReLU, clip and max-pool, the distance to the next breakpoint.
Functions that are neither affine nor piecewise affine are refused by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from xaihub import ExplainerRefused
from xaihub_first_principles.breakpoints import BreakpointTracker

OFFSET = 1e-11  # passes are evaluated just after a breakpoint


@dataclass(frozen=True, kw_only=True)
class LineIntegrals:
    """Integrals over segments: (L,) values, and each segment's breakpoints from 0 to 1."""

    values: Tensor
    breakpoints: list[Tensor]


def line_integrals(
    f: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, *, max_pieces: int = 10_000
) -> LineIntegrals:
    """Integrate a piecewise-affine `f`, (L, ...) float64 to (L,), over t in [0, 1] on L segments.

    Raises:
        ExplainerRefused: `f` calls a function that is not piecewise affine, or there are too many pieces.
    """
    start, end = start.detach().double(), end.detach().double()
    count = len(start)
    least = _sides_changed(f, start, end)
    if least > max_pieces:
        raise ExplainerRefused(
            f"a line crosses at least {least} linear pieces of the network, more than {max_pieces}",
            hint="omit exact to use quadrature",
        )
    t, total = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    found: list[list[float]] = [[0.0] for _ in range(count)]
    active = torch.arange(count)
    for _ in range(max_pieces):
        at = (t[active] + OFFSET).clamp(max=1)
        value, slope, step = _evaluate(f, start[active], end[active] - start[active], at)
        following = (at + step).clamp(max=1)
        length = following - t[active]
        total[active] += length * (value - (at - t[active]) * slope) + length.square() / 2 * slope
        t[active] = following
        for line, place in zip(active.tolist(), following.tolist(), strict=True):
            found[line].append(place)
        active = active[following < 1]
        if not len(active):
            return LineIntegrals(values=total, breakpoints=[torch.tensor(row, dtype=torch.float64) for row in found])
    raise ExplainerRefused(
        f"a line crosses more than {max_pieces} linear pieces of the network, {float(t[active].min()):.2g} of the way",
        hint="omit exact to use quadrature",
    )


def _evaluate(
    f: Callable[[Tensor], Tensor], start: Tensor, direction: Tensor, at: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the (L,) values, slopes and distances to the next breakpoint."""
    place = start + at.view((-1,) + (1,) * (start.ndim - 1)) * direction
    # A graph is not needed and, for in-place functions on views, not possible.
    with torch.no_grad(), forward_ad.dual_level(), BreakpointTracker(len(start)) as tracker:
        value, slope = forward_ad.unpack_dual(f(_dual(place, direction)))
    slope = torch.zeros_like(value) if slope is None else slope
    return value.detach().clone(), slope.detach().clone(), tracker.step


def _dual(place: Tensor, direction: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # torch compiles some derivatives with it when the first tangent is made.
        warnings.filterwarnings("ignore", message="`torch.jit.script` is", category=FutureWarning)
        warnings.filterwarnings("ignore", message="`torch.jit.script` is", category=DeprecationWarning)
        dual: Tensor = forward_ad.make_dual(place, direction)
    return dual


def _sides_changed(f: Callable[[Tensor], Tensor], start: Tensor, end: Tensor) -> int:
    """Return a lower bound on the breakpoints of the worst line: units whose side differs between its two ends."""
    sides = []
    for place in (start, end):
        with torch.no_grad(), forward_ad.dual_level(), BreakpointTracker(len(start), record=True) as tracker:
            f(_dual(place, end - start))
        sides.append(tracker.sides)
    changed = torch.zeros(len(start), dtype=torch.long)
    for first, last in zip(*sides, strict=True):
        changed += (first != last).reshape(len(start), -1).sum(1)
    return int(changed.max())
