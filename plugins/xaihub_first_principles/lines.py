"""Exact integrals along segments of piecewise-affine networks, by marching from kink to kink.

Between kinks `t -> f(p + t (q - p))` is affine, so a piece of length h contributes `h f + h^2 f' / 2`. One pass with
a tangent gives f, f' and, from every ReLU, clip and max-pool, how far the next kink is. Functions that are neither
affine nor piecewise affine are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import pad, unfold
from torch.overrides import TorchFunctionMode

from xaihub import ExplainerRefused

__all__ = ["Lines", "integrated_gradients", "line_integrals", "segment_mlp"]

PAST = 1e-11  # a pass is made just after a kink
NEAREST = 1e-12  # kinks nearer than this are the one just left

# Affine whatever the arguments, as far as one argument depends on the input.
AFFINE = frozenset(
    "__getitem__ adaptive_avg_pool2d add add_ __add__ __iadd__ __radd__ avg_pool2d batch_norm cat chunk clone concat"
    " contiguous conv1d conv2d div div_ __truediv__ double dropout dropout_ expand feature_dropout flatten linear matmul"
    " __matmul__ mean movedim mul mul_ __mul__ __rmul__ narrow neg __neg__ pad permute reshape reshape_as select"
    " squeeze stack sub sub_ __sub__ __rsub__ sum swapaxes to transpose type_as unsqueeze view view_as".split()
)
PRODUCTS = frozenset("mul mul_ __mul__ __rmul__ matmul __matmul__ div div_ __truediv__".split())
WEIGHTED = frozenset("linear conv1d conv2d batch_norm".split())
# What looks at a tensor's form only.
FORM = frozenset("__get__ __len__ dim is_contiguous is_floating_point ndimension numel size stride".split())


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Integrals over segments: (L,) values, (L,) numbers of pieces, and each segment's kinks from 0 to 1."""

    values: Tensor
    pieces: Tensor
    knots: list[Tensor]


def line_integrals(
    f: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, *, max_pieces: int = 10_000
) -> Lines:
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
    with torch.no_grad(), forward_ad.dual_level(), _Kinks(len(start)) as kinks:
        dual = f(forward_ad.make_dual(place, direction))
        value, slope = forward_ad.unpack_dual(dual)
    slope = torch.zeros_like(value) if slope is None else slope
    return value.detach().clone(), slope.detach().clone(), kinks.step


def _sides_changed(f: Callable[[Tensor], Tensor], start: Tensor, end: Tensor) -> int:
    """Return how many units are on different sides of a kink at the two ends: no line has fewer kinks in all."""
    sides = []
    for place in (start, end):
        with torch.no_grad(), forward_ad.dual_level(), _Kinks(len(start), note=True) as kinks:
            f(forward_ad.make_dual(place, end - start))
        sides.append(kinks.sides)
    changed = torch.zeros(len(start), dtype=torch.long)
    for first, last in zip(*sides, strict=True):
        changed += (first != last).flatten(1).sum(1)
    return int(changed.max())


class _Kinks(TorchFunctionMode):
    """Watches every function that is called on what depends on the input, and measures the distance to its kinks."""

    def __init__(self, lines: int, *, note: bool = False) -> None:
        super().__init__()
        self.lines = lines
        self.note = note
        self.sides: list[Tensor] = []  # on which side of each kink every unit is, if noted
        self.step = torch.full((lines,), torch.inf, dtype=torch.float64)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None  # noqa: ARG002
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name in FORM or "forward_ad" in getattr(func, "__module__", "") or name in _OURS:
            return func(*args, **kwargs)
        moving = [_moves(item) for item in _flat([*args, *kwargs.values()])]
        if any(moving):
            self._check(name, args, kwargs, moving)
        return func(*args, **kwargs)

    def _check(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], moving: list[bool]) -> None:
        if name.rstrip("_") in _CLIPS:
            for level in _CLIPS[name.rstrip("_")](*args, **kwargs):
                self._clip(args[0], float(level))
        elif name in ("max_pool2d", "max_pool2d_with_indices", "_max_pool2d"):
            self._pool(*args, **kwargs)
        elif name not in AFFINE:
            raise ExplainerRefused(f"exact lines need a piecewise-affine network, and this one calls {name!r}")
        elif (name in PRODUCTS and sum(moving) > 1) or (name in WEIGHTED and sum(moving[1:])):
            raise ExplainerRefused(f"exact lines need a piecewise-affine network, and this one multiplies ({name!r})")
        elif name in ("div", "div_", "__truediv__") and not moving[0]:
            raise ExplainerRefused("exact lines need a piecewise-affine network, and this one divides by its input")
        elif name == "batch_norm" and (kwargs.get("training") or (len(args) > 5 and args[5])):
            raise ExplainerRefused("exact lines need batch normalisation in evaluation mode")

    def _clip(self, z: Tensor, level: float) -> None:
        place, speed = forward_ad.unpack_dual(z)
        if self.note:
            self.sides.append(place.detach() > level)
        self._near((level - place) / speed)

    def _near(self, step: Tensor) -> None:
        if len(step) != self.lines:
            raise ExplainerRefused("exact lines need the batch on the first axis of every activation")
        ahead = torch.where(step.isfinite() & (step > NEAREST), step, torch.inf)
        self.step = torch.minimum(self.step, ahead.flatten(1).amin(1))

    def _pool(
        self,
        z: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,  # noqa: ARG002
    ) -> None:
        kernel, moved, around, apart = (_pair(v) for v in (kernel_size, stride or kernel_size, padding, dilation))
        place, speed = forward_ad.unpack_dual(z)
        extra = max(*kernel, *moved) if ceil_mode else 0  # windows past the end hold nothing more than the last ones
        edges = (around[1], around[1] + extra, around[0], around[0] + extra)
        lines, channels = z.shape[:2]

        def windows(values: Tensor, fill: float) -> Tensor:  # (L * C, k, places)
            flat = pad(values, edges, value=fill).flatten(0, 1).unsqueeze(1)
            return unfold(flat, kernel, dilation=apart, stride=moved)

        places, speeds = windows(place, -1e300), windows(speed, 0.0)
        top = places.argmax(1, keepdim=True)
        gap = places.gather(1, top) - places
        faster = speeds - speeds.gather(1, top)
        step = torch.where((faster > 0) & (gap < 1e200), gap / faster, torch.inf)
        self._near(step.view(lines, channels, -1))


_OURS = frozenset({"unpack_dual", "_unpack_dual", "_make_dual", "make_dual"})


def _hardtanh(_z: Tensor, min_val: float = -1.0, max_val: float = 1.0, _inplace: bool = False, **_: Any) -> list[float]:
    return [min_val, max_val]


def _clamp(_z: Tensor, *limits: Any, **named: Any) -> list[float]:
    return [float(v) for v in (*limits, *named.values()) if v is not None]


# Where each piecewise-affine function has its kinks.
_CLIPS: dict[str, Callable[..., list[float]]] = {
    "relu": lambda *_, **__: [0.0],
    "relu6": lambda *_, **__: [0.0, 6.0],
    "leaky_relu": lambda *_, **__: [0.0],
    "abs": lambda *_, **__: [0.0],
    "hardsigmoid": lambda *_, **__: [-3.0, 3.0],
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "threshold": lambda _z, threshold, *_, **__: [threshold],
}


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _flat(items: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for item in items:
        if isinstance(item, (list, tuple)):
            found.extend(_flat(item))
        elif isinstance(item, Tensor):
            found.append(item)
    return found


def _moves(item: Tensor) -> bool:
    return forward_ad.unpack_dual(item).tangent is not None
