"""The records of a run: what identifies an explanation or a score, and a score with everything it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from xaihub.records import canonical

_ANY_IMAGE = "0" * 32 + "image" + "0" * 32  # no other part of a key is this text


@dataclass(frozen=True, kw_only=True)
class Key:
    """Everything an explanation depends on; equal keys mean equal values.

    Attributes:
        image: The sha256 of the image file.
        model: The model's name, for reading only.
        weights: The hash of the weights.
        structure: The hash of the architecture, and of the layers chosen for activation maps.
        preprocessing: The model's preprocessing settings.
        explainer: The explainer's name.
        parameters: Its parameters.
        target: The target as requested.
        seed: The seed.
        code: The versions of xaihub and of the plugin that made it.
        control: The explainer is a control, not a method.
        page: The page of the image file.
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
    page: int = 1

    @property
    def _parts(self) -> dict[str, Any]:
        unused = ("model", "control", *(["page"] if self.page == 1 else []))  # the first page, as of most files
        return {name: value for name, value in self.__dict__.items() if name not in unused}

    @property
    def digest(self) -> str:
        """The sha256 of all fields except the model's name and `control`."""
        return hashlib.sha256(canonical(self._parts).encode()).hexdigest()

    def digests(self) -> Callable[[str], str]:
        """Return a function that gives the `digest` of this key with the checksum of another image, much faster."""
        before, after = canonical({**self._parts, "image": _ANY_IMAGE}).encode().split(_ANY_IMAGE.encode())
        begun = hashlib.sha256(before)

        def digest(image: str) -> str:
            found = begun.copy()
            found.update(image.encode() + after)
            return found.hexdigest()

        return digest


class ScoreKey(NamedTuple):
    """What a score of a given explanation depends on: the metric, its parameters (JSON), and its basis (JSON).

    The basis names what else the metric reads; see `Dependence`.
    """

    metric: str
    parameters: str
    basis: str = "{}"


@dataclass(frozen=True)
class Score:
    """A metric's result for one explanation, or the error in its place."""

    key: ScoreKey
    value: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    curve: Any = None
    forward_passes: int = 0
    backward_passes: int = 0
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One score with the explanation it belongs to.

    The passes are those of computing this score alone, passes shared with other scores included; `seconds` is the
    time it took in the run.
    """

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

    def flat(self) -> dict[str, Any]:
        """Return the columns of a table: everything except the record, curve and details."""
        return {name: value for name, value in self.__dict__.items() if name not in ("record", "curve", "details")}
