"""The smallest work that still exercises a method: one table for the checks and for the support matrix."""

from __future__ import annotations

from typing import Any

from xaihub.errors import ParameterError
from xaihub.params import convert, parameters

__all__ = ["small_budget", "small_parameters"]


def small_budget(side: int) -> dict[str, Any]:
    """Return small values by the names that methods give to such parameters, for inputs of `side` pixels."""
    return {
        "masks": 4,
        "samples": 8,
        "channels": 8,
        "evaluations": 16,
        "budget": 40,
        "iterations": 2,
        "refinements": 1,
        "step": 4096,
        "shrink": False,
        "steps": 4,
        "features": "grid:2",
        "window": round(side / 3),
        "stride": round(side / 3),
    }


def small_parameters(method: type, side: int) -> dict[str, Any]:
    """Return the part of `small_budget` that the method's constructor takes and accepts."""
    known = parameters(method)
    found: dict[str, Any] = {}
    for name, value in small_budget(side).items():
        if name in known:
            try:
                found |= convert(method, {name: value})
            except ParameterError:
                continue  # another method's parameter of the same name
    return found
