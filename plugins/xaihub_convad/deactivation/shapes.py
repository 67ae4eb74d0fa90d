"""Rules for functions that only move or reshape: which axes are positions afterwards."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xaihub_convad.deactivation.live_map import Live
from xaihub_convad.deactivation.tracking import WHOLE, Places, Rule, Tracker

__all__ = ["SHAPES", "after_removing"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def after_removing(places: Places, axes: set[int]) -> Places:
    """Return the positions after negative `axes`, none of them a position, are removed."""
    return replace(places, dims=tuple(d + sum(axis > d for axis in axes) for d in places.dims), gated=None)


def _after_inserting(places: Places, axis: int) -> Places:
    """Return the positions after a new axis is inserted at the negative index `axis` of the result."""
    return replace(places, dims=tuple(d if d > axis else d - 1 for d in places.dims), gated=None)


def _negative(axis: int, ndim: int) -> int:
    return axis if axis < 0 else axis - ndim


def _argument(args: Args, kwargs: Kwargs, position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def join(t: Tracker, func: Any, args: Args, kwargs: Kwargs, *, stack: bool) -> Any:
    """Concatenate or stack along an axis that is not a position."""
    parts = _argument(args, kwargs, 0, "tensors")
    seen = [t.of(part) for part in parts]
    first = next(places for places in seen if places.dims)
    live = first.on
    for places in seen:
        if places.dims and (places.dims != first.dims or places.on.grid != live.grid):
            t.refuse(func.__name__, "joins maps with different positions")
        live = t.propagation.both(live, places.on) if places.dims else live
    axis = _negative(_argument(args, kwargs, 1, "dim", 0), parts[0].ndim + stack)
    joined = Places(first.dims, live)
    if stack:
        joined = _after_inserting(joined, axis)
    elif axis in first.dims:
        t.refuse(func.__name__, "concatenates positions")
    return t.mark(func(*args, **kwargs), joined)


def divide(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Split along an axis that is not a position."""
    places = t.of(args[0])
    if _negative(_argument(args, kwargs, 2, "dim", 0), args[0].ndim) in places.dims:
        t.refuse(func.__name__, "splits the positions")
    return t.mark(func(*args, **kwargs), replace(places, gated=None))


def pick(t: Tracker, func: Any, args: Args, kwargs: Kwargs, *, removes: bool) -> Any:
    """Take one or more entries of an axis that is not a position."""
    places = t.of(args[0])
    axis = _negative(_argument(args, kwargs, 1, "dim", 0), args[0].ndim)
    if axis in places.dims:
        t.refuse(func.__name__, "selects single positions")
    return t.mark(func(*args, **kwargs), after_removing(places, {axis} if removes else set()))


def index(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Index channels; a crop or a stride over positions has its own live map."""
    x, items = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
    places = t.of(x)
    if any(isinstance(item, (Tensor, list)) for item in items):
        t.refuse(func.__name__, "selects entries by a list")
    used = sum(item is not None and item is not Ellipsis for item in items)
    fill = [slice(None)] * (x.ndim - used)
    at = next((number for number, item in enumerate(items) if item is Ellipsis), None)
    whole = [*items[:at], *fill, *items[at + 1 :]] if at is not None else [*items, *fill]
    dims: dict[int, int] = {}  # from the input's axis to the result's, both from the left
    cuts: dict[int, slice] = {}
    source = target = 0
    for item in whole:
        if item is None:
            target += 1
            continue
        if source - x.ndim in places.dims:
            if not isinstance(item, slice):
                t.refuse(func.__name__, "selects single positions")
            dims[source], cuts[source] = target, item
        target += isinstance(item, slice)
        source += 1
    kept = tuple(dims[axis + x.ndim] - target for axis in places.dims)
    live = places.on
    if any(cut != slice(None) for cut in cuts.values()):
        if len(kept) == 1:
            t.refuse(func.__name__, "splits the positions")
        x = t.gate(x)
        y = func(x, *args[1:], **kwargs)
        if all(cut.step in (None, 1) for cut in cuts.values()):  # a crop of the live map as well
            rows, columns = (cuts[axis + x.ndim] for axis in places.dims)
            crop = (..., rows, columns)
            return t.places(y, kept, Live(live.mask[crop], None if live.valid is None else live.valid[crop]))
        return t.places(y, kept, t.propagation.resized(live, (y.shape[kept[0]], y.shape[kept[1]])))
    return t.mark(func(*args, **kwargs), Places(kept, live))


def transpose(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Swap two axes."""
    x = args[0]
    one, other = (_negative(_argument(args, kwargs, n, f"dim{n - 1}"), x.ndim) for n in (1, 2))
    swap = {one: other, other: one}
    places = t.of(x)
    return t.mark(func(*args, **kwargs), replace(places, dims=tuple(swap.get(d, d) for d in places.dims), gated=None))


def permute(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Reorder the axes."""
    x, order = args[0], _argument(args, kwargs, 1, "dims")
    order = [_negative(axis, x.ndim) for axis in (args[1:] if isinstance(order, int) else order)]
    places = t.of(x)
    dims = tuple(order.index(d) - x.ndim for d in places.dims)
    return t.mark(func(*args, **kwargs), replace(places, dims=dims, gated=None))


def unsqueeze(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Insert an axis."""
    axis = _negative(_argument(args, kwargs, 1, "dim"), args[0].ndim + 1)
    return t.mark(func(*args, **kwargs), _after_inserting(t.of(args[0]), axis))


def squeeze(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Remove axes of one entry."""
    x, given = args[0], _argument(args, kwargs, 1, "dim")
    axes = range(-x.ndim, 0) if given is None else [given] if isinstance(given, int) else given
    gone = {_negative(axis, x.ndim) for axis in axes if x.shape[axis] == 1}
    places = t.of(x)
    if gone & {*places.dims, -x.ndim}:
        t.refuse(func.__name__, "removes an axis of positions or images")
    return t.mark(func(*args, **kwargs), after_removing(places, gone))


def reshape(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Track the positions through a reshape; a tensor whose positions are flattened with channels is gated first."""
    x = args[0]
    places = t.of(x)
    shape = func(torch.empty_like(x, device="meta", memory_format=torch.contiguous_format), *args[1:], **kwargs).shape
    dims = _axes(places, tuple(x.shape), tuple(shape))
    if dims is None or shape[0] != x.shape[0]:
        t.refuse(func.__name__, "moves positions into the batch or mixes them (windows, or heads of attention)")
    if not dims:
        return t.mark(func(t.gate(x), *args[1:], **kwargs), WHOLE)
    sides = tuple(shape[d] for d in dims)
    live = places.on
    if len(dims) == 1 or sides == live.grid:
        return t.mark(func(*args, **kwargs), Places(dims, live))
    y = func(t.gate(x), *args[1:], **kwargs)  # space to depth: a block of positions becomes one
    return t.places(y, dims, t.propagation.resized(live, (sides[0], sides[1])))


def _axes(places: Places, old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the positions' axes after a reshape from `old` to `new`, () once flattened, None if unknown.

    Axes are identified by the number of entries before them, which a reshape keeps.
    """
    rows, columns = places.on.grid
    if len(places.dims) == 2 and places.dims[1] != places.dims[0] + 1:
        return None
    before = math.prod(old[: places.dims[0]])
    both = _run(before, rows * columns, new)
    if both is None:
        return () if math.prod(old[1:]) in new[1:] else None
    if len(both) == 1:
        return (both[0] - len(new),)
    first, second = _run(before, rows, new), _run(before * rows, columns, new)
    return (first[0] - len(new), second[0] - len(new)) if first and second else None


def _run(before: int, size: int, shape: tuple[int, ...]) -> list[int] | None:
    """Return the axes that hold exactly the `size` entries after the first `before`, without axes of one entry."""
    total, axes = 1, []
    for axis, side in enumerate(shape):
        if before <= total < before * size and side > 1:
            axes.append(axis)
        total *= side
    whole = axes and math.prod(shape[: axes[0]]) == before and math.prod(shape[axis] for axis in axes) == size
    return axes if whole else None


def pixel_unshuffle(t: Tracker, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Turn a block of positions into one, or one into a block."""
    x = args[0]
    places = t.of(x)
    if places.dims != (-2, -1):
        t.refuse(func.__name__, "does not receive a map with rows and columns last")
    y = func(t.gate(x), *args[1:], **kwargs)
    return t.places(y, places.dims, t.propagation.resized(places.on, (y.shape[-2], y.shape[-1])))


SHAPES: dict[str, Rule] = {
    "cat": partial(join, stack=False),
    "concat": partial(join, stack=False),
    "concatenate": partial(join, stack=False),
    "stack": partial(join, stack=True),
    "chunk": divide,
    "split": divide,
    "split_with_sizes": divide,
    "tensor_split": divide,
    "unbind": partial(pick, removes=True),
    "select": partial(pick, removes=True),
    "narrow": partial(pick, removes=False),
    "getitem": index,
    "transpose": transpose,
    "swapaxes": transpose,
    "swapdims": transpose,
    "permute": permute,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "reshape": reshape,
    "view": reshape,
    "flatten": reshape,
    "unflatten": reshape,
    "pixel_unshuffle": pixel_unshuffle,
    "pixel_shuffle": pixel_unshuffle,
}
