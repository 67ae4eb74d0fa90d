"""Measures that were chosen by a metric: their files, and the families that use them.

A file is safetensors: a JSON header of what it is, and tensors. Nothing in it is executed; both are checked when read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec
import torch
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from xaihub import ParameterError
from xaihub.errors import OutputError
from xaihub_first_principles.catalogue import Question
from xaihub_first_principles.design import fixed_masks, lift
from xaihub_first_principles.masks import Mixture
from xaihub_first_principles.measures import MeasureFamily, Points

__all__ = ["FixedWeights", "Header", "LearnedMeasure", "read_measure"]

KEY = "xaihub_measure"  # of the header in the file's metadata
LARGEST = 64 * 2**20  # bytes of a file
Share = Annotated[float, Meta(gt=0, lt=1)]
Count = Annotated[int, Meta(ge=0)]


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a measure is and where it comes from.

    Attributes:
        version: Of the format.
        kind: "mixture": of keep-p measures, with tensors p and theta; "weights": one weight for each of some fixed
            masks and each region, with tensors masks and weights.
        features: The regions that it was chosen on, and for weights the only ones it fits.
        baseline: The base law of hidden regions.
        output: The score that is integrated.
        shifts: Number of grids.
        smooth: Whether maps are interpolated between cells.
        budget: Points of one image.
        metrics: Each metric and the sign with which it counted.
        model: The model on which it was chosen.
        images: Numbers of images for choosing, validating and testing.
        gain: Mean gain over keep-p at 0.5 on each of these sets.
        interval: 95 % bootstrap interval of the gain on the images for testing, if there were any.
        seed: Of all random choices.
    """

    version: Literal[1] = 1
    kind: Literal["mixture", "weights"]
    features: Annotated[str, Meta(max_length=100)]
    baseline: Annotated[str, Meta(max_length=1000)]
    output: Literal["probability", "logit"]
    shifts: Annotated[int, Meta(ge=1, le=16)]
    smooth: bool
    budget: Annotated[int, Meta(ge=8)]
    metrics: Annotated[dict[str, float], Meta(max_length=100)]
    model: Annotated[str, Meta(max_length=1000)]
    images: tuple[Count, Count, Count]
    gain: tuple[float, float, float | None]
    interval: tuple[float, float] | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class FixedWeights(MeasureFamily):
    """Free weights over a fixed set of masks: finite support, so each run is exact and all images are asked alike."""

    name: ClassVar[str] = "weights"
    needs: ClassVar[str] = "the replacements of hidden features"

    masks: Tensor
    free: Tensor
    background: Tensor

    def points(self, x: Tensor, generator: torch.Generator) -> Points:  # noqa: ARG002
        """Return the masks, over the replacements in turn."""
        design = fixed_masks(self.masks, copies=1)
        design.copy.copy_(torch.arange(len(self.masks)) % len(self.background))
        return lift(x, design, background=self.background, groups=torch.arange(len(x)))

    def weights(self, points: Points) -> Tensor:
        """Return the weights.

        Raises:
            ParameterError: The points are others.
        """
        if len(points) != len(self.free):
            raise ParameterError(f"free weights for {len(self.free)} masks do not fit {len(points)} points")
        return self.free


@dataclass(frozen=True, kw_only=True)
class LearnedMeasure:
    """A measure with its header; `tensors` are named as `Header.kind` says."""

    header: Header
    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        """Check the tensors.

        Raises:
            ParameterError: A tensor is missing, or has a shape or values that make no measure.
        """
        _check(self.header, self.tensors)

    def family(self, question: Question) -> MeasureFamily:
        """Return the family for regions, budget and replacements.

        Raises:
            ParameterError: The measure is for other regions, or needs a larger budget.
        """
        if self.header.kind == "mixture":
            return Mixture(
                ps=tuple(self.tensors["p"].tolist()),
                thetas=tuple(self.tensors["theta"].tolist()),
                budget=question.budget,
                law=question.law,
                background=question.background,
            )
        n, d = self.tensors["weights"].shape
        if d != question.count:
            raise ParameterError(f"the measure is for {d} regions ({self.header.features}), not {question.count}")
        if n > question.budget:
            raise ParameterError(f"the measure asks at {n} masks, and the budget is {question.budget} a grid")
        return FixedWeights(
            masks=self.tensors["masks"].float(), free=self.tensors["weights"], background=question.background
        )

    def save(self, path: str | Path) -> Path:
        """Write the file, all or nothing.

        Raises:
            OutputError: It cannot be written.
        """
        file = Path(path)
        metadata = {KEY: msgspec.json.encode(self.header).decode()}
        data = save({name: tensor.contiguous() for name, tensor in self.tensors.items()}, metadata=metadata)
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            part.replace(file)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OutputError(f"cannot write {str(file)!r}: {error.strerror}") from error
        return file

    @property
    def digest(self) -> str:
        """SHA-256 of header and tensors."""
        parts = [msgspec.json.encode(self.header)]
        parts += [bytes(name, "ascii") + t.numpy().tobytes() for name, t in sorted(self.tensors.items())]
        return sha256(b"\0".join(parts)).hexdigest()


def read_measure(path: str | os.PathLike[str]) -> LearnedMeasure:
    """Read a measure's file.

    Raises:
        ParameterError: There is no such file, or it is no measure.
    """
    file = Path(path)
    what = f"measure {os.fspath(path)!r}"
    try:
        if file.stat().st_size > LARGEST:
            raise ParameterError(f"{what} has more than {LARGEST} bytes, and no measure has")
        with safe_open(file, framework="pt") as content:
            text = (content.metadata() or {}).get(KEY)
            if text is None:
                raise ParameterError(f"{what} is no measure", hint="make one with 'xaihub optimise-measure'")
            header = msgspec.json.decode(text, type=Header)
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - it is no mapping
    except OSError as error:
        raise ParameterError(f"cannot read the {what}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ParameterError(f"{what} is no safetensors file, or damaged: {error}") from error
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ParameterError(f"{what} has a header that is not understood: {error}") from error
    try:
        return LearnedMeasure(header=header, tensors=tensors)
    except ParameterError as error:
        raise ParameterError(f"{what}: {error.message}") from error


def _check(header: Header, tensors: dict[str, Tensor]) -> None:
    names = ("p", "theta") if header.kind == "mixture" else ("masks", "weights")
    if set(tensors) != set(names):
        found = ", ".join(sorted(tensors)) or "nothing"
        raise ParameterError(f"a measure of kind {header.kind!r} has the tensors {' and '.join(names)}, not {found}")
    first, second = (tensors[name] for name in names)
    dimensions = 1 if header.kind == "mixture" else 2
    wanted = torch.float64 if header.kind == "mixture" else torch.uint8
    if first.shape != second.shape or first.ndim != dimensions or not first.numel():
        raise ParameterError(f"{names[0]} has the shape {tuple(first.shape)}, and {names[1]} {tuple(second.shape)}")
    if first.dtype != wanted or second.dtype != torch.float64:
        raise ParameterError(f"{names[0]} is {first.dtype} and {names[1]} {second.dtype}, not {wanted} and float64")
    if not bool(second.isfinite().all()):
        raise ParameterError(f"{names[1]} are not all finite")
    if header.kind == "weights":
        if bool((first > 1).any()):
            raise ParameterError("masks are not all 0 or 1")
    elif not bool(((first > 0) & (first < 1)).all()):
        raise ParameterError("p is not everywhere between 0 and 1")
    elif bool((second < 0).any()) or abs(float(second.sum()) - 1) > 1e-9:
        raise ParameterError("theta must not be negative, and must sum to 1")
