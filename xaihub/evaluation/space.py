"""Settings of a method to try, from the declared types, bounds and examples of its parameters."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np

from xaihub.errors import ParameterError
from xaihub.params import Meta, Parameter, convert, parameters
from xaihub.records import canonical

SPREAD = 4  # a range without bounds reaches from the default / SPREAD to the default x SPREAD (our choice)
LOGARITHMIC = 8  # ratio of the ends from which a range is searched on a logarithmic scale
INSET = 0.02  # fraction of a range that is left out at a bound which the value may not reach
DIGITS = 2  # significant digits of a value that is tried
DRAWN = 4  # settings drawn per trial, because some turn out equal
_RANGE = re.compile(r"(-?\d[\d.eE+-]*?)\.\.(-?[\d.].*)")
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """What one parameter may be: one of some values, or a number in a range.

    Attributes:
        name: The keyword argument.
        shown: The name that users type.
        values: The values; empty for a range.
        low: The lower end of a range.
        high: The upper end.
        whole: The number is an integer.
    """

    name: str
    shown: str
    values: Sequence[Any] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    def at(self, place: float) -> Any:
        """Return the value at a place in [0, 1)."""
        if self.values:
            return self.values[int(place * len(self.values))]
        if self.low > 0 and self.high / self.low >= LOGARITHMIC:
            found = self.low * (self.high / self.low) ** place
        else:
            found = self.low + (self.high - self.low) * place
        if self.whole:
            return round(found)
        return min(max(float(f"{found:.{DIGITS}g}"), self.low), self.high)

    def __str__(self) -> str:
        """The values or the range, as users type them."""
        listed = ",".join(map(_written, self.values)) or f"{self.low:.3g}..{self.high:.3g}"
        return f"{self.shown}={listed}"


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is searched.

    Attributes:
        method: The class of the explainer or of another method.
        fixed: Parameters with one value for every trial, which is not the default.
        dimensions: The parameters that are searched.
        unknown: Parameters for which nothing says what to try, as users type them.
    """

    method: type
    fixed: Values
    dimensions: Sequence[Dimension]
    unknown: Sequence[str]

    def settings(self, count: int, seed: int) -> list[Values]:
        """Return at most `count` different settings; the first one is the defaults with what is fixed.

        These are all combinations if there are so few, else points of a Sobol sequence with a random shift (our
        choice), which cover the space more evenly than independent draws.
        """
        found = {canonical(self.fixed): self.fixed}
        for drawn in self._points(count, seed):
            made = self._effective({**self.fixed, **drawn})
            found.setdefault(canonical(made), made)
        return [*found.values()][:count]

    def _points(self, count: int, seed: int) -> list[Values]:
        names = [one.name for one in self.dimensions]
        if not names:
            return []
        if all(one.values for one in self.dimensions) and math.prod(len(o.values) for o in self.dimensions) <= count:
            every = itertools.product(*(one.values for one in self.dimensions))
            return [dict(zip(names, values, strict=True)) for values in every]
        from scipy.stats.qmc import Sobol

        points = Sobol(len(names), scramble=False).random_base2(math.ceil(math.log2(DRAWN * count)))
        points = (points + np.random.default_rng(seed).random(len(names))) % 1
        return [{one.name: one.at(u) for one, u in zip(self.dimensions, row, strict=True)} for row in points.tolist()]

    def _effective(self, values: Values) -> Values:
        """Leave out what is the default, or has no effect with the others."""
        items = parameters(self.method)
        searched = {one.name for one in self.dimensions}
        for _ in items:  # as a condition may depend on a parameter that has no effect itself
            every = {name: values.get(name, item.default) for name, item in items.items()}
            idle = [
                name
                for name, value in values.items()
                if (name in searched and value == items[name].default)
                or not all(condition.holds(every) for condition in items[name].conditions)
            ]
            if not idle:
                break
            values = {name: value for name, value in values.items() if name not in idle}
        return values


def space(method: type, given: Mapping[str, Sequence[str]], *, who: str = "") -> Space:
    """Return what is searched of a method's parameters.

    Without a range of its own, a parameter is searched over its declared choices, over its default and its examples, or
    over its bounds; a number without two bounds, from a quarter of its default to four times that. Parameters that set
    the number of passes keep their values, so that all trials cost about the same.

    Args:
        method: The class.
        given: Texts by name of parameter: "8" fixes it, "4,8,16" lists values, and "4..16" is a range.
        who: The name of the method, for messages.

    Raises:
        ParameterError: A parameter is unknown, or a value has the wrong type or is out of range.
    """
    items = parameters(method)
    typed = {name: _read(method, name, texts, who) for name, texts in given.items()}
    listed = {item.name: typed.get(item.name, typed.get(item.shown)) for item in items.values()}
    costs = {name for item in items.values() if item.passes for name in (item.name, *item.passes.others)}
    fixed: Values = {}
    dimensions: list[Dimension] = []
    unknown: list[str] = []
    for item in items.values():
        found = listed[item.name]
        if isinstance(found, list) and len(found) == 1:
            fixed |= {} if found[0] == item.default else {item.name: found[0]}
        elif isinstance(found, list):
            dimensions.append(Dimension(name=item.name, shown=item.shown, values=found))
        elif isinstance(found, Dimension):
            dimensions.append(found)
        elif item.name in costs or item.execution:
            continue
        elif (own := _own(item)) is not None:
            dimensions.append(own)
        else:
            unknown.append(item.shown)
    return Space(method=method, fixed=fixed, dimensions=dimensions, unknown=unknown)


def _read(method: type, name: str, texts: Sequence[str], who: str) -> list[Any] | Dimension:
    """Return the values that texts such as "4,8" list, or the range of "4..16"."""

    def read(text: str) -> Any:
        return next(iter(convert(method, {name: text.strip()}, who=who).values()))

    ends = _RANGE.fullmatch(texts[0].strip()) if len(texts) == 1 else None
    if ends is None:
        return list(dict.fromkeys(read(value) for text in texts for value in text.split(",")))
    low, high = (read(end) for end in ends.groups())
    if not {type(low), type(high)} <= {int, float} or low >= high:
        raise ParameterError(
            f"{name}={texts[0]} of {who} is not a range", hint="write two ascending numbers, as in 4..16"
        )
    item = next(item for item in parameters(method).values() if name in (item.name, item.shown))
    return Dimension(name=item.name, shown=item.shown, low=low, high=high, whole=isinstance(low, int))


def _own(item: Parameter) -> Dimension | None:
    """Return what a parameter's declaration says may be tried; None if it says too little."""
    bare = get_args(item.annotation)[0] if get_origin(item.annotation) is Annotated else item.annotation
    parts = get_args(bare) if get_origin(bare) in (Union, UnionType) else (bare,)
    kinds = [part for part in parts if part is not NoneType]
    if len(kinds) != 1:
        return None
    values: list[Any] = []
    if item.examples:
        values = [item.default, *item.examples]
    elif kinds[0] is bool:
        values = [False, True]
    elif get_origin(kinds[0]) is Literal:
        values = list(get_args(kinds[0]))
    if values:
        return Dimension(name=item.name, shown=item.shown, values=list(dict.fromkeys(values)))
    return _range(item, whole=kinds[0] is int) if kinds[0] in (int, float) else None


def _range(item: Parameter, *, whole: bool) -> Dimension | None:
    metas = [mark for mark in getattr(item.annotation, "__metadata__", ()) if isinstance(mark, Meta)]
    bounds = {
        sign: value for meta in metas for sign in ("ge", "gt", "le", "lt") if (value := getattr(meta, sign)) is not None
    }
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is None or high is None:
        if not item.default or item.default < 0:  # nothing says how large it may sensibly be
            return None
        low = max(item.default / SPREAD, -math.inf if low is None else low)
        high = min(item.default * SPREAD, math.inf if high is None else high)
    if whole:
        low, high = math.ceil(low) + (bounds.get("gt") == low), math.floor(high) - (bounds.get("lt") == high)
    else:
        inset = INSET * (high - low)
        low, high = low + inset * ("gt" in bounds), high - inset * ("lt" in bounds)
    return Dimension(name=item.name, shown=item.shown, low=low, high=high, whole=whole)


def _written(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
