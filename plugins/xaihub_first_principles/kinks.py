"""How far the next kink is, from every function that a network calls on what depends on its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import pad, unfold
from torch.overrides import TorchFunctionMode

from xaihub import ExplainerRefused

__all__ = ["Kinks"]

NEAREST = 1e-12  # kinks nearer than this are the one just left

# Affine whatever the arguments, as far as one argument depends on the input.
AFFINE = frozenset(
    [
        "__getitem__",
        "adaptive_avg_pool2d",
        "add",
        "add_",
        "__add__",
        "__iadd__",
        "__radd__",
        "avg_pool2d",
        "batch_norm",
        "cat",
        "chunk",
        "clone",
        "concat",
        "contiguous",
        "conv1d",
        "conv2d",
        "div",
        "div_",
        "__truediv__",
        "double",
        "dropout",
        "dropout_",
        "expand",
        "feature_dropout",
        "flatten",
        "linear",
        "matmul",
        "__matmul__",
        "mean",
        "movedim",
        "mul",
        "mul_",
        "__mul__",
        "__rmul__",
        "narrow",
        "neg",
        "__neg__",
        "pad",
        "permute",
        "reshape",
        "reshape_as",
        "select",
        "squeeze",
        "stack",
        "sub",
        "sub_",
        "__sub__",
        "__rsub__",
        "sum",
        "swapaxes",
        "to",
        "transpose",
        "type_as",
        "unsqueeze",
        "view",
        "view_as",
    ]
)
PRODUCTS = frozenset(["mul", "mul_", "__mul__", "__rmul__", "matmul", "__matmul__", "div", "div_", "__truediv__"])
WEIGHTED = frozenset(["linear", "conv1d", "conv2d", "batch_norm"])
# What looks at a tensor's form only.
FORM = frozenset(
    ["__get__", "__len__", "dim", "is_contiguous", "is_floating_point", "ndimension", "numel", "size", "stride"]
)


class Kinks(TorchFunctionMode):
    """Watches every function that is called on what depends on the input, and measures the distance to its kinks."""

    def __init__(self, lines: int, *, note: bool = False) -> None:
        super().__init__()
        self.lines = lines
        self.note = note
        self.sides: list[Tensor] = []  # on which side of each kink every unit is, if noted
        self.step = torch.full((lines,), torch.inf, dtype=torch.float64)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Check one call, then let it happen."""
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
