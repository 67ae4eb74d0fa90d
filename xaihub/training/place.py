"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Place"]


@dataclass(kw_only=True)
class Place:
    """Where training stands; JSON types only.

    Attributes:
        epoch: Epochs done.
        step: Optimiser steps done in the epoch begun.
        number: Optimiser steps done in all.
        sums: What the epoch begun has cost so far.
        seconds: Time that it took so far.
        history: A record an epoch.
        best: The best epoch (from 1), or 0.
        done: Whether training has ended.
    """

    epoch: int = 0
    step: int = 0
    number: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: int = 0
    done: bool = False
