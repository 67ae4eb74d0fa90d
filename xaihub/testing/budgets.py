"""Small budgets that still exercise a method, for the checks and the support matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from xaihub.errors import ParameterError
from xaihub.params import convert, parameters

MOST, QUICK = 64, 16  # forward passes of one explanation: the most that stay unchanged, and what others are reduced to


def small_budget(side: int) -> dict[str, Any]:
    """Return small values for parameters with the usual names, for inputs of `side` pixels."""
    return {
        "masks": 4,
        "samples": 8,
        "channels": 8,
        "evaluations": 16,
        "budget": 40,
        "iterations": 2,
        "refinements": 1,
        "steps": 4,
        "features": "grid:2",
        "window": round(side / 3),
        "stride": round(side / 3),
    }


def small_parameters(method: type, side: int) -> dict[str, Any]:
    """Return the entries of `small_budget` that are valid parameters of the method, or the least valid values."""
    known = parameters(method)
    found: dict[str, Any] = {}
    for name, value in small_budget(side).items():
        if name in known:
            found |= _valid(method, name, value)
    return found


def reduced(method: type, quick: Mapping[str, Any], passes: Callable[[Mapping[str, Any]], int]) -> dict[str, Any]:
    """Return smaller values for whole numbers that determine the number of forward passes under any other name.

    Args:
        method: The class.
        quick: The parameters of a quick run that are known already.
        passes: Returns the number of forward passes of one explanation with these parameters, up to `MOST` + 1 or more.
    """
    found: dict[str, Any] = {}
    for name, item in parameters(method).items():
        if name not in quick and _is_large(item.default):
            if passes({**quick, **found}) <= MOST:
                break
            found |= _valid(method, name, QUICK)
    return found


def _is_large(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= QUICK


def _valid(method: type, name: str, value: Any) -> dict[str, Any]:
    """Return the parameter with this value, or with its lower limit, or nothing if it has another meaning."""
    metas = getattr(parameters(method)[name].annotation, "__metadata__", ())
    limits = [limit for meta in metas for limit in (getattr(meta, "ge", None),) if limit is not None]
    for candidate in (value, *limits):
        with suppress(ParameterError):
            return convert(method, {name: candidate})
    return {}
