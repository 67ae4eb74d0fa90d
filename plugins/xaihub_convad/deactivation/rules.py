"""Rules for inactive positions, one per torch function; a function without a rule is refused.

A rule runs the function, on gated inputs if it mixes positions, and records which axes of the result are positions. The
axes are negative, so that broadcasting does not move them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from xaihub_convad.deactivation.live_map import Live, Window, from_neighbours
from xaihub_convad.deactivation.shapes import SHAPES, after_removing
from xaihub_convad.deactivation.tracking import WHOLE, Call, Places, Rule, negative


def pointwise(call: Call) -> Any:
    """Work position by position: where two live maps meet, a position is active if it is in both."""
    seen = [places for tensor in call.tensors() if (places := call.t.of(tensor)).dims]
    dims, live = seen[0].dims, seen[0].on
    for other in seen[1:]:
        if other.dims != dims or other.on.grid != live.grid:
            call.refuse("joins two maps with different positions")
        live = call.t.propagation.both(live, other.on)
    return call.run(Places(dims, live))


def like_first(call: Call) -> Any:
    """Convert the first tensor to another type, which the other tensors only specify."""
    return call.run(replace(call.places, gated=None))


def constant(call: Call) -> Any:
    """Create a tensor that does not depend on values."""
    return call.run(WHOLE)


def conv2d(call: Call) -> Any:
    """Gate the input of every convolution that reads more than one position."""
    places, weight = call.map(), call.argument(1, "weight")
    if call.t.of(weight).images:
        call.refuse("has a kernel that depends on the image")
    kernel = (weight.shape[2], weight.shape[3])
    dilation, padding = _pair(call.argument(5, "dilation", 1)), call.argument(4, "padding", 0)
    if isinstance(padding, str):
        padding = tuple((k - 1) * d // 2 if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True))
    window = Window(kernel, _pair(call.argument(3, "stride", 1)), _pair(padding), dilation)
    if window.is_place:
        return call.t.places(call.on(call.input), places.dims, places.on)
    x = call.gated()
    if call.t.neighbours and kernel != (1, 1):
        x = from_neighbours(x, places.on, max(k // 2 * d for k, d in zip(kernel, dilation, strict=True)))
    y = call.on(x)
    return call.t.places(y, places.dims, call.t.propagation.window(places.on, window, _grid(y)))


def avg_pool2d(call: Call) -> Any:
    """Count inactive positions as 0, or exclude them from the mean."""
    places = call.map()
    y = call.on(call.gated())
    if call.t.live_pooling:
        mask = places.on.mask
        y = y * _inverse(call.on(mask) / call.on(torch.ones_like(mask[:1]))).to(y.dtype)
    return call.t.places(y, places.dims, call.t.propagation.window(places.on, _pool_window(call), _grid(y)))


def max_pool2d(call: Call) -> Any:
    """Take the maximum over active positions; 0 where a window has none."""
    places, window = call.map(), _pool_window(call, _pair(call.argument(4, "dilation", 1)))
    y = _no_walls(call.on(call.walled()))
    return call.t.places(y, places.dims, call.t.propagation.window(places.on, window, _grid(y)))


def adaptive_pool2d(call: Call, *, maximum: bool) -> Any:
    """Pool to a given grid."""
    places = call.map()
    y = _no_walls(call.on(call.walled())) if maximum else call.on(call.gated())
    if call.t.live_pooling and not maximum:
        y = y * _inverse(functional.adaptive_avg_pool2d(places.on.mask, _grid(y))).to(y.dtype)
    return call.t.places(y, places.dims, call.t.propagation.resized(places.on, _grid(y)))


def interpolate(call: Call) -> Any:
    """Resample, with 0 in inactive positions."""
    places, y = call.map(), call.on(call.gated())
    return call.t.places(y, places.dims, call.t.propagation.resized(places.on, _grid(y)))


def pad(call: Call) -> Any:
    """Add positions at the border; they hold what the network puts there and are always active."""
    amounts, mode = call.argument(1, "pad"), call.argument(2, "mode", "constant")
    places = call.places
    if len(places.dims) == 1:
        call.refuse("pads cells that are not a grid")
    sides = {-1 - number // 2: list(amounts)[number : number + 2] for number in range(0, len(amounts), 2)}
    around = [amount for axis in reversed(places.dims) for amount in sides.get(axis, [0, 0])]
    x = call.walled() if call.argument(3, "value") == -torch.inf else call.gated()
    live = places.on
    if any(around):
        valid = torch.ones_like(live.mask[:1]) if live.valid is None else live.valid
        if mode == "constant":
            live = Live(functional.pad(live.mask, around, value=1.0), functional.pad(valid, around))
        else:  # copies of real positions
            live = Live(*(functional.pad(part, around, mode=mode) for part in (live.mask, valid)))
    return call.t.places(call.on(x), places.dims, live, call.t.of(x).gated)


def reduce(call: Call, *, kind: str, position: int = 1) -> Any:
    """Reduce over channels, or over all positions with inactive ones as 0 or excluded; `dim` is at `position`."""
    dims = call.argument(position, "dim")
    if kind == "max" and isinstance(dims, Tensor):
        return pointwise(call)  # torch.max(a, b)
    x, places = call.input, call.places
    axes = set(range(-x.ndim, 0)) if dims is None else {negative(axis, x.ndim) for axis in _several(dims)}
    if not axes & set(places.dims):
        return call.run(after_removing(places, set() if call.argument(position + 1, "keepdim") else axes))
    if kind == "none" or not axes >= set(places.dims) or -x.ndim in axes:
        call.refuse("reduces over some of the positions" if kind != "none" else "mixes positions")
    if kind == "max":
        return call.t.mark(_no_walls(call.on(call.walled())), WHOLE)
    y = call.on(call.gated())
    if kind == "mean" and call.t.live_pooling:
        y = y / places.on.share(y.ndim).to(y.dtype)
    return call.t.mark(y, WHOLE)


def group_norm(call: Call) -> Any:
    """Take the statistics over active positions; rows without inactive positions are left to torch itself."""
    x, places = call.input, call.map()
    on = places.on.factor(x, places.dims).unsqueeze(1)
    parts = x.unflatten(1, (call.argument(1, "num_groups"), -1))
    # The mean over channels first, which leaves fewer values.
    count = on.sum((2, 3, 4), keepdim=True).clamp(min=1)
    mean = (parts.mean(2, keepdim=True) * on).sum((3, 4), keepdim=True) / count
    centred = (parts - mean) * on
    variance = centred.square().mean(2, keepdim=True).sum((3, 4), keepdim=True) / count
    y = (centred * (variance + call.argument(4, "eps", 1e-5)).rsqrt()).flatten(1, 2)
    for position, name, combine in ((2, "weight", torch.mul), (3, "bias", torch.add)):
        if (parameter := call.argument(position, name)) is not None:
            y = combine(y, parameter.view(-1, 1, 1))
    full = places.on.full().view(-1, 1, 1, 1)
    return call.t.places(torch.where(full, call.on(x), y.to(x.dtype)), places.dims, places.on)


def layer_norm(call: Call) -> Any:
    """Normalise over channels; normalising over positions is refused."""
    if any(axis >= -len(_several(call.argument(1, "normalized_shape"))) for axis in call.places.dims):
        call.refuse("takes statistics over positions")
    return pointwise(call)


def batch_norm(call: Call) -> Any:
    """Scale each channel with stored statistics."""
    if call.argument(5, "training", False) or call.argument(1, "running_mean") is None:
        call.refuse("takes statistics over positions and images")
    return along(call, axis=1)


def matmul(call: Call) -> Any:
    """Mix channels, or sum over all positions with inactive ones as 0; positions by positions is refused."""
    left, right = (call.t.of(part) for part in call.args[:2])
    if left.dims == (-1,) and right.dims == (-2,) and left.on.grid == right.on.grid:
        gated = [call.t.gate(part) for part in call.args[:2]]
        return call.t.mark(call.func(*gated, **call.kwargs), WHOLE)
    if (left.dims and right.dims) or -1 in left.dims or -2 in right.dims:
        call.refuse("multiplies positions with positions (attention)")
    return pointwise(call)


def along(call: Call, *, axis: int | None = None) -> Any:
    """Work along one axis that is not a position, such as a softmax over channels; `axis` is None if it is `dim`."""
    if axis is None and (axis := call.argument(1, "dim")) is None:
        call.refuse("does not name an axis")
    if negative(axis, call.input.ndim) in call.places.dims:
        call.refuse("works along the positions")
    return pointwise(call)


def softmax(call: Call) -> Any:
    """Take a softmax over channels, or over all active positions."""
    axis, places = call.argument(1, "dim"), call.places
    if axis is None or places.dims != (negative(axis, call.input.ndim),):
        return along(call)
    y = call.on(call.walled())
    on = places.on.factor(y, places.dims) > 0
    return call.t.places(torch.where(on, y, torch.zeros_like(y)), places.dims, places.on, 0.0)


def dropout(call: Call) -> Any:
    """Run unchanged; in training mode it is refused."""
    if call.argument(2, "training", True):
        call.refuse("is random: the network is not in evaluation mode")
    return pointwise(call)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    pair = tuple(value)
    return (pair[0], pair[-1])


def _several(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _grid(y: Tensor) -> tuple[int, int]:
    return (y.shape[-2], y.shape[-1])


def _pool_window(call: Call, dilation: tuple[int, int] = (1, 1)) -> Window:
    kernel, stride = _pair(call.argument(1, "kernel_size")), call.argument(2, "stride")
    stride = kernel if stride is None or stride == [] else _pair(stride)
    return Window(kernel, stride, _pair(call.argument(3, "padding", 0)), dilation)


def _inverse(share: Tensor) -> Tensor:
    return torch.where(share > 0, 1 / share, torch.zeros_like(share))


def _no_walls(result: Any) -> Any:
    if isinstance(result, Tensor):
        # Much faster than a comparison and a fill; other values that are not finite stay.
        return torch.nan_to_num(result, nan=torch.nan, posinf=torch.inf, neginf=0.0)
    return type(result)((_no_walls(result[0]), *result[1:]))


def _table() -> dict[str, Rule]:
    groups: dict[str, Rule] = {
        "relu relu6 silu gelu sigmoid hardtanh hardswish hardsigmoid mish leaky_relu elu celu tanh softplus"
        " softsign logsigmoid tanhshrink exp sqrt rsqrt square abs neg clamp clip add sub rsub mul div truediv"
        " radd rmul rtruediv rdiv iadd isub imul itruediv pow rpow ipow multiply divide subtract addcmul"
        " addcdiv lerp where maximum minimum contiguous clone detach alias float half bfloat16 double to_dtype"
        " erf log log1p reciprocal sin cos sign gt lt ge le eq ne threshold hardshrink softshrink"
        " expand nan_to_num": pointwise,
        "dropout dropout1d dropout2d feature_dropout alpha_dropout": dropout,
        "to type type_as expand_as": like_first,
        "zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full": constant,
        "conv2d": conv2d,
        "avg_pool2d": avg_pool2d,
        "max_pool2d": max_pool2d,
        "adaptive_avg_pool2d": partial(adaptive_pool2d, maximum=False),
        "adaptive_max_pool2d": partial(adaptive_pool2d, maximum=True),
        "interpolate upsample": interpolate,
        "pad": pad,
        "group_norm": group_norm,
        "layer_norm rms_norm": layer_norm,
        "batch_norm": batch_norm,
        "prelu local_response_norm channel_shuffle": partial(along, axis=1),
        "linear": partial(along, axis=-1),
        "matmul bmm": matmul,
        "softmax": softmax,
        "log_softmax": along,
        "glu": lambda call: along(call, axis=call.argument(1, "dim", -1)),
        "normalize": lambda call: along(call, axis=call.argument(2, "dim", 1)),
        "mean": partial(reduce, kind="mean"),
        "sum": partial(reduce, kind="sum"),
        "norm linalg_vector_norm": partial(reduce, kind="sum", position=2),
        "amax max": partial(reduce, kind="max"),
        "std var logsumexp amin": partial(reduce, kind="none"),
    }
    return {name: rule for names, rule in groups.items() for name in names.split()} | SHAPES


RULES: dict[str, Rule] = _table()
