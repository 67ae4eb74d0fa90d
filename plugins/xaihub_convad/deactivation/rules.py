"""Rules for inactive positions, one per torch function; a function without a rule is refused.

A rule runs the function, on gated inputs if it mixes positions, and records which axes of the result are positions. The
axes are negative, so that broadcasting does not move them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from xaihub_convad.deactivation.live_map import Live, Window, from_neighbours
from xaihub_convad.deactivation.shapes import SHAPES, after_removing
from xaihub_convad.deactivation.tracking import WHOLE, Places, Rule, Tracker, tensors

__all__ = ["RULES"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def pointwise(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Work position by position: where two live maps meet, a position is active if it is in both."""
    seen = [places for tensor in tensors((args, kwargs)) if (places := t.of(tensor)).dims]
    dims, live = seen[0].dims, seen[0].on
    for other in seen[1:]:
        if other.dims != dims or other.on.grid != live.grid:
            t.refuse(func.__name__, "joins two maps with different positions")
        live = t.propagation.both(live, other.on)
    return t.mark(func(*args, **kwargs), Places(dims, live))


def like_first(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Convert the first tensor to another type, which the other tensors only specify."""
    return t.mark(func(*args, **kwargs), _without_gate(t.of(args[0])))


def constant(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Create a tensor that does not depend on values."""
    return t.mark(func(*args, **kwargs), WHOLE)


def conv2d(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Gate the input of every convolution that reads more than one position."""
    given = _named(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, kwargs)
    x, weight = given["input"], given["weight"]
    places = _map_of(t, func, x)
    if t.of(weight).images:
        t.refuse("conv2d", "has a kernel that depends on the image")
    kernel = (weight.shape[2], weight.shape[3])
    dilation = _pair(given.get("dilation", 1))
    padding = given.get("padding", 0)
    if isinstance(padding, str):
        padding = tuple((k - 1) * d // 2 if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True))
    window = Window(kernel, _pair(given.get("stride", 1)), _pair(padding), dilation)
    if window.is_place:
        return t.places(func(*args, **kwargs), places.dims, places.on)
    x = t.gate(x)
    if t.neighbours and kernel != (1, 1):
        reach = max(k // 2 * d for k, d in zip(kernel, dilation, strict=True))
        x = from_neighbours(x, places.on, reach)
    y = _again(func, given, x)
    return t.places(y, places.dims, t.propagation.window(places.on, window, _grid(y)))


def avg_pool2d(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Count inactive positions as 0, or exclude them from the mean."""
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    given = _named(names, args, kwargs)
    places = _map_of(t, func, given["input"])
    y = _again(func, given, t.gate(given["input"]))
    if t.live_pooling:
        mask = places.on.mask
        share, ones = (_again(func, given, part) for part in (mask, torch.ones_like(mask[:1])))
        y = y * _inverse(share / ones).to(y.dtype)
    return t.places(y, places.dims, t.propagation.window(places.on, _pool_window(given), _grid(y)))


def max_pool2d(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Take the maximum over active positions; 0 where a window has none."""
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    given = _named(names, args, kwargs)
    places = _map_of(t, func, given["input"])
    y = _no_walls(_again(func, given, t.walled(given["input"])))
    return t.places(y, places.dims, t.propagation.window(places.on, _pool_window(given), _grid(y)))


def adaptive_pool2d(t: Tracker, func: Any, args: Args, kwargs: Kwargs, *, maximum: bool) -> Any:
    """Pool to a given grid."""
    given = _named(("input", "output_size"), args, kwargs)
    places = _map_of(t, func, given["input"])
    if maximum:
        y = _no_walls(_again(func, given, t.walled(given["input"])))
    else:
        y = _again(func, given, t.gate(given["input"]))
        if t.live_pooling:
            y = y * _inverse(functional.adaptive_avg_pool2d(places.on.mask, _grid(y))).to(y.dtype)
    return t.places(y, places.dims, t.propagation.resized(places.on, _grid(y)))


def interpolate(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Resample, with 0 in inactive positions."""
    places = _map_of(t, func, args[0])
    y = func(t.gate(args[0]), *args[1:], **kwargs)
    return t.places(y, places.dims, t.propagation.resized(places.on, _grid(y)))


def pad(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Add positions at the border; they hold what the network puts there and are always active."""
    given = _named(("input", "pad", "mode", "value"), args, kwargs)
    x, mode, value = given["input"], given.get("mode", "constant"), given.get("value") or 0.0
    places = t.of(x)
    if len(places.dims) == 1:
        t.refuse("pad", "pads cells that are not a grid")
    sides = {-1 - number // 2: list(given["pad"])[number : number + 2] for number in range(0, len(given["pad"]), 2)}
    around = [amount for axis in reversed(places.dims) for amount in sides.get(axis, [0, 0])]
    x = t.walled(x) if value == -torch.inf else t.gate(x)
    y = _again(func, given, x)
    live = places.on
    if any(around):
        valid = torch.ones_like(live.mask[:1]) if live.valid is None else live.valid
        if mode == "constant":
            live = Live(functional.pad(live.mask, around, value=1.0), functional.pad(valid, around))
        else:  # copies of real positions
            live = Live(*(functional.pad(part, around, mode=mode) for part in (live.mask, valid)))
    return t.places(y, places.dims, live, t.of(x).gated)


def reduce(t: Tracker, func: Any, args: Args, kwargs: Kwargs, *, names: tuple[str, ...], kind: str) -> Any:
    """Reduce over channels position by position, or over all positions with inactive ones as 0 (or excluded)."""
    given = _named(names, args, kwargs)
    x = given["input"]
    if kind == "max" and isinstance(given.get("dim"), Tensor):
        return pointwise(t, func, args, kwargs)  # torch.max(a, b)
    places = t.of(x)
    dims = given.get("dim")
    axes = set(range(-x.ndim, 0)) if dims is None else {_negative(axis, x.ndim) for axis in _several(dims)}
    if not axes & set(places.dims):
        return t.mark(func(*args, **kwargs), after_removing(places, set() if given.get("keepdim") else axes))
    if kind == "none" or not axes >= set(places.dims) or -x.ndim in axes:
        t.refuse(func.__name__, "reduces over some of the positions" if kind != "none" else "mixes positions")
    if kind == "max":
        return t.mark(_no_walls(_again(func, given, t.walled(x))), WHOLE)
    y = _again(func, given, t.gate(x))
    if kind == "mean" and t.live_pooling:
        y = y / places.on.share(y.ndim).to(y.dtype)
    return t.mark(y, WHOLE)


def group_norm(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Take the statistics over active positions; rows without inactive positions are left to torch itself."""
    given = _named(("input", "num_groups", "weight", "bias", "eps"), args, kwargs)
    x, groups = given["input"], given["num_groups"]
    places = _map_of(t, func, x)
    on = places.on.factor(x, places.dims)
    parts = x.unflatten(1, (groups, -1))
    on = on.unsqueeze(1)
    # The mean over channels first, which leaves fewer values.
    count = on.sum((2, 3, 4), keepdim=True).clamp(min=1)
    mean = (parts.mean(2, keepdim=True) * on).sum((3, 4), keepdim=True) / count
    centred = (parts - mean) * on
    variance = centred.square().mean(2, keepdim=True).sum((3, 4), keepdim=True) / count
    y = (centred * (variance + given.get("eps", 1e-5)).rsqrt()).flatten(1, 2)
    for name, combine in (("weight", torch.mul), ("bias", torch.add)):
        if given.get(name) is not None:
            y = combine(y, given[name].view(-1, 1, 1))
    full = places.on.full().view(-1, 1, 1, 1)
    return t.places(torch.where(full, func(*args, **kwargs), y.to(x.dtype)), places.dims, places.on)


def layer_norm(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Normalise over channels; normalising over positions is refused."""
    given = _named(("input", "normalized_shape"), args, kwargs)
    if any(axis >= -len(_several(given["normalized_shape"])) for axis in t.of(given["input"]).dims):
        t.refuse(func.__name__, "takes statistics over positions")
    return pointwise(t, func, args, kwargs)


def batch_norm(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Scale each channel with stored statistics."""
    given = _named(("input", "running_mean", "running_var", "weight", "bias", "training"), args, kwargs)
    if given.get("training", False) or given["running_mean"] is None:
        t.refuse("batch_norm", "takes statistics over positions and images")
    return _along(1, t, func, args, kwargs, given["input"])


def prelu(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Scale each channel."""
    return _along(1, t, func, args, kwargs, args[0])


def linear(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Mix channels; mixing positions by a weight matrix is refused."""
    return _along(-1, t, func, args, kwargs, args[0])


def matmul(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Mix channels, or sum over all positions with inactive ones as 0; positions by positions is refused."""
    left, right = (t.of(part) for part in args[:2])
    if left.dims == (-1,) and right.dims == (-2,) and left.on.grid == right.on.grid:
        return t.mark(func(t.gate(args[0]), t.gate(args[1]), **kwargs), WHOLE)
    if (left.dims and right.dims) or -1 in left.dims or -2 in right.dims:
        t.refuse(func.__name__, "multiplies positions with positions (attention)")
    return pointwise(t, func, args, kwargs)


def along(t: Tracker, func: Any, args: Args, kwargs: Kwargs, *, default: int | None) -> Any:
    """Work along one axis that is not a position, such as a softmax over channels."""
    axis = kwargs.get("dim", args[1] if len(args) > 1 else default)
    if axis is None:
        t.refuse(func.__name__, "does not name an axis")
    return _along(axis, t, func, args, kwargs, args[0])


def softmax(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Take a softmax over channels, or over all active positions."""
    given = _named(("input", "dim"), args, kwargs)
    x, axis = given["input"], given["dim"]
    places = t.of(x)
    if axis is None or places.dims != (_negative(axis, x.ndim),):
        return along(t, func, args, kwargs, default=None)
    y = _again(func, given, t.walled(x))
    on = places.on.factor(y, places.dims) > 0
    return t.places(torch.where(on, y, torch.zeros_like(y)), places.dims, places.on, 0.0)


def _along(axis: int, t: Tracker, func: Any, args: Args, kwargs: Kwargs, x: Tensor) -> Any:
    if _negative(axis, x.ndim) in t.of(x).dims:
        t.refuse(func.__name__, "works along the positions")
    return pointwise(t, func, args, kwargs)


def dropout(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Run unchanged; in training mode it is refused."""
    if _named(("input", "p", "training"), args, kwargs).get("training", True):
        t.refuse(func.__name__, "is random: the network is not in evaluation mode")
    return pointwise(t, func, args, kwargs)


def _named(names: tuple[str, ...], args: Args, kwargs: Kwargs) -> Kwargs:
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _again(func: Any, given: Kwargs, x: Tensor) -> Any:
    """Call the function on `x` with all other arguments unchanged; a tensor's own method takes no `input=`."""
    return func(x, **{name: value for name, value in given.items() if name not in ("input", "self")})


def _map_of(t: Tracker, func: Any, x: Tensor) -> Places:
    places = t.of(x)
    if places.dims != (-2, -1) or x.ndim != 4:
        t.refuse(func.__name__, "does not receive a map with rows and columns last")
    return places


def _without_gate(places: Places) -> Places:
    return Places(places.dims, places.live, None, places.images)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    pair = tuple(value)
    return (pair[0], pair[-1])


def _several(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _grid(y: Tensor) -> tuple[int, int]:
    return (y.shape[-2], y.shape[-1])


def _negative(axis: int, ndim: int) -> int:
    return axis if axis < 0 else axis - ndim


def _pool_window(given: Kwargs) -> Window:
    kernel = _pair(given["kernel_size"])
    stride = given.get("stride")
    stride = kernel if stride is None or stride == [] else _pair(stride)
    return Window(kernel, stride, _pair(given.get("padding", 0)), _pair(given.get("dilation", 1)))


def _inverse(share: Tensor) -> Tensor:
    return torch.where(share > 0, 1 / share, torch.zeros_like(share))


def _no_walls(result: Any) -> Any:
    if isinstance(result, Tensor):
        # Much faster than a comparison and a fill; other values that are not finite stay.
        return torch.nan_to_num(result, nan=torch.nan, posinf=torch.inf, neginf=0.0)
    return type(result)((_no_walls(result[0]), *result[1:]))


def _table() -> dict[str, Rule]:
    same = (
        "relu relu6 silu gelu sigmoid hardtanh hardswish hardsigmoid mish leaky_relu elu celu tanh softplus"
        " softsign logsigmoid tanhshrink exp sqrt rsqrt square abs neg clamp clip add sub rsub mul div truediv"
        " radd rmul rtruediv rdiv iadd isub imul itruediv pow rpow ipow multiply divide subtract addcmul"
        " addcdiv lerp where maximum minimum contiguous clone detach alias float half bfloat16 double to_dtype"
        " erf log log1p reciprocal sin cos sign gt lt ge le eq ne threshold hardshrink softshrink expand"
        " nan_to_num"
    )
    table: dict[str, Rule] = dict.fromkeys(same.split(), pointwise)
    table |= dict.fromkeys(["dropout", "dropout1d", "dropout2d", "feature_dropout", "alpha_dropout"], dropout)
    table |= dict.fromkeys(["to", "type", "type_as", "expand_as"], like_first)
    new = "zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full"
    table |= dict.fromkeys(new.split(), constant)
    table |= {
        "conv2d": conv2d,
        "avg_pool2d": avg_pool2d,
        "max_pool2d": max_pool2d,
        "adaptive_avg_pool2d": partial(adaptive_pool2d, maximum=False),
        "adaptive_max_pool2d": partial(adaptive_pool2d, maximum=True),
        "interpolate": interpolate,
        "upsample": interpolate,
        "pad": pad,
        "group_norm": group_norm,
        "layer_norm": layer_norm,
        "rms_norm": layer_norm,
        "batch_norm": batch_norm,
        "prelu": prelu,
        "linear": linear,
        "matmul": matmul,
        "bmm": matmul,
        "local_response_norm": prelu,
        "channel_shuffle": prelu,
        "normalize": lambda t, f, a, k: _along(_named(("input", "p", "dim"), a, k).get("dim", 1), t, f, a, k, a[0]),
        "glu": partial(along, default=-1),
        "softmax": softmax,
        "log_softmax": partial(along, default=None),
    }
    plain = ("input", "dim", "keepdim")
    order = ("input", "p", "dim", "keepdim")
    reductions: list[tuple[str, tuple[str, ...], str]] = [
        ("mean", plain, "mean"),
        ("sum", plain, "sum"),
        ("amax", plain, "max"),
        ("max", plain, "max"),
        ("norm", order, "sum"),
        ("linalg_vector_norm", ("input", "ord", "dim", "keepdim"), "sum"),
        ("std", plain, "none"),
        ("var", plain, "none"),
        ("logsumexp", plain, "none"),
        ("amin", plain, "none"),
    ]
    table |= {name: partial(reduce, names=names, kind=kind) for name, names, kind in reductions}
    return table | SHAPES


RULES: dict[str, Rule] = _table()
