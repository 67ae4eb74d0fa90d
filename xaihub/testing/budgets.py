"""Small budgets that still exercise a method, for the checks and the support matrix."""

from __future__ import annotations

from typing import Any

from xaihub.errors import ParameterError
from xaihub.params import convert, parameters


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
    """Return the entries of `small_budget` that are valid parameters of the method."""
    known = parameters(method)
    found: dict[str, Any] = {}
    for name, value in small_budget(side).items():
        if name in known:
            try:
                found |= convert(method, {name: value})
            except ParameterError:
                continue  # a parameter of the same name with another meaning
    return found
