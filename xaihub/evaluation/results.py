"""What a run's records are addressed by, and how a score reads with all that it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xaihub.records import canonical

__all__ = ["Key", "ScoreRow"]


@dataclass(frozen=True, kw_only=True)
class Key:
    """What an explanation depends on; equal keys mean equal values.

    Attributes:
        image: The sha256 of the image's file.
        model: The model's name, for reading only.
        weights: The hash of the weights.
        structure: The hash of what the network does with them, and of the layers that were chosen for maps.
        preprocessing: The model's preprocessing settings.
        explainer: The explainer's name.
        parameters: Its parameters.
        target: The target as asked for.
        seed: The seed.
        code: The versions of xaihub and of the plugin that made it.
        control: The explainer is a control, not a method.
    """

    image: str
    model: str
    weights: str
    preprocessing: Mapping[str, Any]
    explainer: str
    parameters: Mapping[str, Any]
    target: str
    seed: int
    code: str
    control: bool = False
    structure: str = ""

    @property
    def digest(self) -> str:
        """The sha256 over all but the model's name."""
        parts = {name: value for name, value in self.__dict__.items() if name not in ("model", "control")}
        return hashlib.sha256(canonical(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One score of one explanation."""

    image: str
    model: str
    explainer: str
    explainer_parameters: Mapping[str, Any]
    control: bool
    metric: str
    metric_parameters: Mapping[str, Any]
    value: float | None
    curve: Any
    details: Mapping[str, Any]
    forward_passes: int
    backward_passes: int
    seconds: float
    error: str | None
    key: str
    record: Mapping[str, Any]
