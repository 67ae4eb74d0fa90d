"""What an evaluation asks of a worker: the tasks, one per image and model, and the records that answer them.

Both cross the border of a process as JSON and safetensors, so that neither side runs anything that the other sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from xaihub.evaluation.isolation import packed, raise_error, unpacked
from xaihub.explainers.explanation import Explanation

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is missing of one explanation.

    Attributes:
        explainer: The number of the explainer in the plan.
        digest: The digest of the explanation's key.
        metrics: The numbers of the metrics whose scores are missing.
        known: The explanation, if it is stored.
    """

    explainer: int
    digest: str
    metrics: Sequence[int]
    known: Explanation | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """One image for one model.

    Attributes:
        model: The number of the model in the plan.
        position: The position of the image in the plan.
        source: The image's name in the run.
        where: Where it is read, see `xaihub.evaluation.places`.
        sha256: Its checksum when the run began, or "" if it could not be read.
        label: Its class, if that is to be explained.
        mask: Where its mask is read, if there is one.
        boxes: Its boxes, if there are any.
        pool: Where the images are read that it may be combined with.
        wanted: What is missing.
    """

    model: int
    position: int
    source: str
    where: str
    sha256: str
    label: int | None = None
    mask: str | None = None
    boxes: Sequence[Box] | None = None
    pool: Sequence[str] = ()
    wanted: Sequence[Wanted] = ()


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One explanation, or the error in its place."""

    explainer: int
    explanation: Explanation | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One score, or the error in its place; `seconds` is the time it took."""

    explainer: int
    metric: int
    value: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[Sequence[float]] | None = None
    forward_passes: int = 0
    backward_passes: int = 0
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """The image cannot be evaluated at all."""

    reason: str
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The passes that a task took, and how many of the forward passes predicted a class."""

    forward_passes: int = 0
    backward_passes: int = 0
    predicted: int = 0


Record = Explained | Scored | Unusable | Spent
_KINDS = {kind.__name__: kind for kind in (Explained, Scored, Unusable, Spent)}


def pack_task(task: Task) -> bytes:
    """Return a task as bytes."""
    tensors: dict[str, Tensor] = {}
    wanted = []
    for one in task.wanted:
        known = None if one.known is None else _taken(one.known, f"{one.explainer}.", tensors)
        wanted.append({**vars(one), "known": known})
    return packed({**vars(task), "wanted": wanted}, tensors)


def unpack_task(data: bytes) -> Task:
    """Return what `pack_task` packed."""
    message, tensors = unpacked(data)
    wanted = [
        Wanted(**{**one, "known": one["known"] and _given(one["known"], f"{one['explainer']}.", tensors)})
        for one in message.pop("wanted")
    ]
    return Task(**message, wanted=wanted)


def pack_records(records: Iterable[Record]) -> bytes:
    """Return records as bytes."""
    tensors: dict[str, Tensor] = {}
    found = []
    for place, record in enumerate(records):
        if isinstance(record, Explained):
            made = None if record.explanation is None else _taken(record.explanation, f"{place}.", tensors)
            fields = {**vars(record), "explanation": made}
        else:
            fields = asdict(record)
        found.append([type(record).__name__, fields])
    return packed({"records": found}, tensors)


def unpack_records(data: bytes) -> list[Record]:
    """Return what `pack_records` packed.

    Raises:
        XaihubError: The worker answered with an error that concerns more than the task.
    """
    message, tensors = unpacked(data)
    raise_error(message)
    records: list[Record] = []
    for place, (kind, fields) in enumerate(message["records"]):
        if fields.get("explanation") is not None:
            fields["explanation"] = _given(fields["explanation"], f"{place}.", tensors)
        records.append(_KINDS[kind](**fields))
    return records


def _taken(explanation: Explanation, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    tensors |= {f"{prefix}{name}": tensor for name, tensor in explanation.tensors().items()}
    return explanation.to_dict()


def _given(record: Mapping[str, Any], prefix: str, tensors: Mapping[str, Tensor]) -> Explanation:
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return Explanation.from_dict(record, own)
