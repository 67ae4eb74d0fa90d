"""The distance to the next breakpoint, from every function that a network calls on values that depend on its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import pad, unfold
from torch.overrides import TorchFunctionMode

from xaihub import ExplainerRefused

NEAREST = 1e-12  # a nearer breakpoint is the one just passed
NEED = "exact lines need a piecewise-affine network"

# Functions are named without underscores: `add` stands for `add_` and `__add__` too.
# Affine whatever the other arguments are, if only one argument depends on the input:
AFFINE = frozenset([
    "adaptive_avg_pool2d", "add", "avg_pool2d", "batch_norm", "cat", "chunk", "clone", "concat", "contiguous",
    "conv1d", "conv2d", "div", "double", "dropout", "expand", "feature_dropout", "flatten", "getitem", "iadd",
    "linear", "matmul", "mean", "movedim", "mul", "narrow", "neg", "pad", "permute", "radd", "reshape",
    "reshape_as", "rmul", "rsub", "select", "squeeze", "stack", "sub", "sum", "swapaxes", "to", "transpose",
    "truediv", "type_as", "unsqueeze", "view", "view_as",
])  # fmt: skip
PRODUCTS = frozenset(["mul", "rmul", "matmul", "div", "truediv"])
WEIGHTED = frozenset(["linear", "conv1d", "conv2d", "batch_norm"])
# Depend only on a tensor's shape and type, or belong to the tracking itself:
IGNORED = frozenset([
    "get", "len", "dim", "is_contiguous", "is_floating_point", "ndimension", "numel", "size", "stride",
    "unpack_dual", "make_dual",
])  # fmt: skip


class BreakpointTracker(TorchFunctionMode):
    """Watches all functions called on values that depend on the input, and measures the distance to breakpoints."""

    def __init__(self, lines: int, *, record: bool = False) -> None:
        super().__init__()
        self.lines = lines
        self.record = record
        self.sides: list[Tensor] = []  # if recorded, on which side of each breakpoint every unit is
        self.step = torch.full((lines,), torch.inf, dtype=torch.float64)  # to the nearest breakpoint ahead

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Check one call, then make it."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func)).strip("_")
        if name not in IGNORED and "forward_ad" not in getattr(func, "__module__", ""):
            moving = [_depends(item) for item in _tensors([*args, *kwargs.values()])]
            if any(moving):
                self._check(name, args, kwargs, moving)
        return func(*args, **kwargs)

    def _check(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], moving: list[bool]) -> None:
        if name in _CLIPS:
            for level in _CLIPS[name](*args, **kwargs):
                self._clip(args[0], float(level))
        elif name in ("max_pool2d", "max_pool2d_with_indices"):
            self._pool(*args, **kwargs)
        elif name not in AFFINE:
            raise ExplainerRefused(f"{NEED}, and this one calls {name!r}")
        elif (name in PRODUCTS and sum(moving) > 1) or (name in WEIGHTED and sum(moving[1:])):
            raise ExplainerRefused(f"{NEED}, and this one multiplies ({name!r})")
        elif name in ("div", "truediv") and not moving[0]:
            raise ExplainerRefused(f"{NEED}, and this one divides by its input")
        elif name == "batch_norm" and (kwargs.get("training") or (len(args) > 5 and args[5])):
            raise ExplainerRefused("exact lines need batch normalisation in evaluation mode")

    def _clip(self, z: Tensor, level: float) -> None:
        place, speed = forward_ad.unpack_dual(z)
        if self.record:
            self.sides.append(place.detach() > level)
        self._advance((level - place) / speed)

    def _advance(self, step: Tensor) -> None:
        if len(step) != self.lines:
            raise ExplainerRefused("exact lines need the batch on the first axis of every activation")
        ahead = torch.where(step.isfinite() & (step > NEAREST), step, torch.inf)
        self.step = torch.minimum(self.step, ahead.reshape(self.lines, -1).amin(1))

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
        extra = max(*kernel, *moved) if ceil_mode else 0  # windows past the end add nothing to the last ones
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
        self._advance(step.view(lines, channels, -1))


def _hardtanh(_z: Tensor, min_val: float = -1.0, max_val: float = 1.0, _inplace: bool = False, **_: Any) -> list[float]:
    return [min_val, max_val]


def _clamp(_z: Tensor, *limits: Any, **named: Any) -> list[float]:
    return [float(v) for v in (*limits, *named.values()) if v is not None]


# The breakpoints of each piecewise-affine function.
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


def _tensors(items: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for item in items:
        if isinstance(item, (list, tuple)):
            found.extend(_tensors(item))
        elif isinstance(item, Tensor):
            found.append(item)
    return found


def _depends(item: Tensor) -> bool:
    return forward_ad.unpack_dual(item).tangent is not None
