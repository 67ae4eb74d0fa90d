"""Rules for functions that only move or reshape: which axes are positions afterwards."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xaihub_convad.deactivation.live_map import Live
from xaihub_convad.deactivation.tracking import WHOLE, Call, Places, Rule, negative


def after_removing(places: Places, axes: set[int]) -> Places:
    """Return the positions after negative `axes`, none of them a position, are removed."""
    return replace(places, dims=tuple(d + sum(axis > d for axis in axes) for d in places.dims), gated=None)


def _after_inserting(places: Places, axis: int) -> Places:
    """Return the positions after a new axis is inserted at the negative index `axis` of the result."""
    return replace(places, dims=tuple(d if d > axis else d - 1 for d in places.dims), gated=None)


def join(call: Call, *, stack: bool) -> Any:
    """Concatenate or stack along an axis that is not a position."""
    parts = call.argument(0, "tensors")
    seen = [call.t.of(part) for part in parts]
    first = next(places for places in seen if places.dims)
    live = first.on
    for places in seen:
        if places.dims and (places.dims != first.dims or places.on.grid != live.grid):
            call.refuse("joins maps with different positions")
        live = call.t.propagation.both(live, places.on) if places.dims else live
    axis = negative(call.argument(1, "dim", 0), parts[0].ndim + stack)
    joined = Places(first.dims, live)
    if stack:
        joined = _after_inserting(joined, axis)
    elif axis in first.dims:
        call.refuse("concatenates positions")
    return call.run(joined)


def divide(call: Call) -> Any:
    """Split along an axis that is not a position."""
    if negative(call.argument(2, "dim", 0), call.input.ndim) in call.places.dims:
        call.refuse("splits the positions")
    return call.run(replace(call.places, gated=None))


def pick(call: Call, *, removes: bool) -> Any:
    """Take one or more entries of an axis that is not a position."""
    axis = negative(call.argument(1, "dim", 0), call.input.ndim)
    if axis in call.places.dims:
        call.refuse("selects single positions")
    return call.run(after_removing(call.places, {axis} if removes else set()))


def index(call: Call) -> Any:
    """Index channels; a crop or a stride over positions has its own live map."""
    x, places, items = call.input, call.places, call.args[1]
    items = items if isinstance(items, tuple) else (items,)
    if any(isinstance(item, (Tensor, list)) for item in items):
        call.refuse("selects entries by a list")
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
                call.refuse("selects single positions")
            dims[source], cuts[source] = target, item
        target += isinstance(item, slice)
        source += 1
    kept = tuple(dims[axis + x.ndim] - target for axis in places.dims)
    live = places.on
    if all(cut == slice(None) for cut in cuts.values()):
        return call.run(Places(kept, live))
    if len(kept) == 1:
        call.refuse("splits the positions")
    y = call.on(call.gated())
    if all(cut.step in (None, 1) for cut in cuts.values()):  # a crop of the live map as well
        rows, columns = (cuts[axis + x.ndim] for axis in places.dims)
        crop = (..., rows, columns)
        return call.t.places(y, kept, Live(live.mask[crop], None if live.valid is None else live.valid[crop]))
    return call.t.places(y, kept, call.t.propagation.resized(live, (y.shape[kept[0]], y.shape[kept[1]])))


def transpose(call: Call) -> Any:
    """Swap two axes."""
    one, other = (negative(call.argument(n, f"dim{n - 1}"), call.input.ndim) for n in (1, 2))
    swap = {one: other, other: one}
    return call.run(replace(call.places, dims=tuple(swap.get(d, d) for d in call.places.dims), gated=None))


def permute(call: Call) -> Any:
    """Reorder the axes."""
    ndim, order = call.input.ndim, call.argument(1, "dims")
    order = [negative(axis, ndim) for axis in (call.args[1:] if isinstance(order, int) else order)]
    return call.run(replace(call.places, dims=tuple(order.index(d) - ndim for d in call.places.dims), gated=None))


def unsqueeze(call: Call) -> Any:
    """Insert an axis."""
    return call.run(_after_inserting(call.places, negative(call.argument(1, "dim"), call.input.ndim + 1)))


def squeeze(call: Call) -> Any:
    """Remove axes of one entry."""
    x, given = call.input, call.argument(1, "dim")
    axes = range(-x.ndim, 0) if given is None else [given] if isinstance(given, int) else given
    gone = {negative(axis, x.ndim) for axis in axes if x.shape[axis] == 1}
    if gone & {*call.places.dims, -x.ndim}:
        call.refuse("removes an axis of positions or images")
    return call.run(after_removing(call.places, gone))


def reshape(call: Call) -> Any:
    """Track the positions through a reshape; a tensor whose positions are flattened with channels is gated first."""
    x, places = call.input, call.places
    shape = call.on(torch.empty_like(x, device="meta", memory_format=torch.contiguous_format)).shape
    dims = _axes(places, tuple(x.shape), tuple(shape))
    if dims is None or shape[0] != x.shape[0]:
        call.refuse("moves positions into the batch or mixes them (windows, or heads of attention)")
    if not dims:
        return call.t.mark(call.on(call.gated()), WHOLE)
    sides = tuple(shape[d] for d in dims)
    live = places.on
    if len(dims) == 1 or sides == live.grid:
        return call.run(Places(dims, live))
    # Space to depth: a block of positions becomes one.
    return call.t.places(call.on(call.gated()), dims, call.t.propagation.resized(live, (sides[0], sides[1])))


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


def pixel_unshuffle(call: Call) -> Any:
    """Turn a block of positions into one, or one into a block."""
    places, y = call.map(), call.on(call.gated())
    return call.t.places(y, places.dims, call.t.propagation.resized(places.on, (y.shape[-2], y.shape[-1])))


_GROUPS: dict[str, Rule] = {
    "cat concat concatenate": partial(join, stack=False),
    "stack": partial(join, stack=True),
    "chunk split split_with_sizes tensor_split": divide,
    "unbind select": partial(pick, removes=True),
    "narrow": partial(pick, removes=False),
    "getitem": index,
    "transpose swapaxes swapdims": transpose,
    "permute": permute,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "reshape view flatten unflatten": reshape,
    "pixel_unshuffle pixel_shuffle": pixel_unshuffle,
}
SHAPES: dict[str, Rule] = {name: rule for names, rule in _GROUPS.items() for name in names.split()}
