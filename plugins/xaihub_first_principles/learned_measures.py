"""Measures chosen by a metric: their files, and the families that use them.

A file is safetensors: a JSON header and tensors. Both are checked when read, and nothing in them is executed.
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
from safetensors.torch import save
from torch import Tensor

from xaihub import ParameterError
from xaihub.files import decoding, read_packed, write_file
from xaihub_first_principles.mask_families import Mixture, design_points, fixed_masks
from xaihub_first_principles.measures import MeasureFamily, Points
from xaihub_first_principles.registry import FamilySettings

KEY = "xaihub_measure"  # of the header in the file's metadata
MAX_BYTES = 64 * 2**20
Count = Annotated[int, Meta(ge=0)]


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a measure is and how it was chosen."""

    version: Literal[1] = 1  # of the format
    kind: Literal["mixture", "weights"]  # of keep-p measures (p, theta), or per mask and region (masks, weights)
    features: Annotated[str, Meta(max_length=100)]  # the regions on which it was chosen; weights fit no others
    baseline: Annotated[str, Meta(max_length=1000)]  # the base law of masked regions
    output: Literal["probability", "logit"]  # the integrated score
    shifts: Annotated[int, Meta(ge=1, le=16)]  # number of grids
    smooth: bool  # whether maps are interpolated between cells
    budget: Annotated[int, Meta(ge=8)]  # points per image
    metrics: Annotated[dict[str, float], Meta(max_length=100)]  # the sign of each metric in the objective
    model: Annotated[str, Meta(max_length=1000)]  # the model on which it was chosen
    images: tuple[Count, Count, Count]  # numbers of images for choosing, validation and testing
    gain: tuple[float, float, float | None]  # mean gain over keep-p at 0.5 on each of these sets
    interval: tuple[float, float] | None = None  # 95 % bootstrap interval of the gain on test images
    seed: int = 0  # of all random choices


@dataclass(frozen=True, kw_only=True)
class FixedWeights(MeasureFamily):
    """Free weights over a fixed set of masks: finite support, so every run is exact."""

    name: ClassVar[str] = "weights"

    masks: Tensor
    free: Tensor
    background: Tensor

    def points(self, x: Tensor, generator: torch.Generator) -> Points:  # noqa: ARG002
        """Return the masks, over the replacements in turn."""
        design = fixed_masks(self.masks, copies=1)
        design.copy.copy_(torch.arange(len(self.masks)) % len(self.background))
        return design_points(x, design, self.background)

    def weights(self, points: Points) -> Tensor:
        """Return the weights.

        Raises:
            ParameterError: The points are not those of the masks.
        """
        if len(points) != len(self.free):
            raise ParameterError(f"free weights for {len(self.free)} masks do not fit {len(points)} points")
        return self.free


@dataclass(frozen=True, kw_only=True)
class LearnedMeasure:
    """A measure with its header; the names of `tensors` follow from `Header.kind`.

    Raises:
        ParameterError: A tensor is missing, or has an invalid shape or values.
    """

    header: Header
    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        """Check the tensors."""
        _check(self.header, self.tensors)

    def family(self, settings: FamilySettings) -> MeasureFamily:
        """Return the family for regions, budget and replacements.

        Raises:
            ParameterError: The measure is for other regions, or needs a larger budget.
        """
        if self.header.kind == "mixture":
            return Mixture(
                ps=tuple(self.tensors["p"].tolist()),
                thetas=tuple(self.tensors["theta"].tolist()),
                budget=settings.budget,
                law=settings.law,
                background=settings.background,
            )
        n, d = self.tensors["weights"].shape
        if d != settings.count:
            raise ParameterError(f"the measure is for {d} regions ({self.header.features}), not {settings.count}")
        if n > settings.budget:
            raise ParameterError(f"the measure has {n} masks, but the budget per grid is {settings.budget}")
        masks, free = self.tensors["masks"].float(), self.tensors["weights"]
        return FixedWeights(masks=masks, free=free, background=settings.background)

    def save(self, path: str | Path) -> Path:
        """Write the file, or nothing.

        Raises:
            OutputError: The file cannot be written.
        """
        metadata = {KEY: msgspec.json.encode(self.header).decode()}
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        return write_file(path, save(tensors, metadata=metadata))

    @property
    def digest(self) -> str:
        """SHA-256 of header and tensors."""
        parts = [msgspec.json.encode(self.header)]
        parts += [bytes(name, "ascii") + t.numpy().tobytes() for name, t in sorted(self.tensors.items())]
        return sha256(b"\0".join(parts)).hexdigest()


def read_measure(path: str | os.PathLike[str]) -> LearnedMeasure:
    """Read a measure's file.

    Raises:
        ParameterError: The file is missing, or is not a measure.
    """
    what = f"measure {os.fspath(path)!r}"
    damaged = ParameterError(f"{what} is not a safetensors file, or is damaged")
    tensors, metadata = read_packed(path, what="measure", refusal=damaged, limit=MAX_BYTES)
    if KEY not in metadata:
        raise ParameterError(f"{what} is not a measure", hint="make one with 'xaihub optimise-measure'")
    with decoding(ParameterError(f"{what} has an invalid header")):
        header = msgspec.json.decode(metadata[KEY], type=Header)
    try:
        with decoding(ParameterError("its tensors are damaged")):
            return LearnedMeasure(header=header, tensors=tensors)
    except ParameterError as error:
        raise ParameterError(f"{what}: {error.message}") from error


def _check(header: Header, tensors: dict[str, Tensor]) -> None:
    mixture = header.kind == "mixture"
    names = ("p", "theta") if mixture else ("masks", "weights")
    if set(tensors) != set(names):
        found = ", ".join(sorted(tensors)) or "nothing"
        raise ParameterError(f"a measure of kind {header.kind!r} has the tensors {' and '.join(names)}, not {found}")
    first, second = (tensors[name] for name in names)
    wanted = torch.float64 if mixture else torch.uint8
    if first.shape != second.shape or first.ndim != (1 if mixture else 2) or not first.numel():
        raise ParameterError(f"{names[0]} has the shape {tuple(first.shape)}, and {names[1]} {tuple(second.shape)}")
    if first.dtype != wanted or second.dtype != torch.float64:
        raise ParameterError(f"{names[0]} is {first.dtype} and {names[1]} {second.dtype}, not {wanted} and float64")
    if not bool(second.isfinite().all()):
        raise ParameterError(f"{names[1]} has values that are not finite")
    if not mixture:
        if bool((first > 1).any()):
            raise ParameterError("masks has values other than 0 and 1")
    elif not bool(((first > 0) & (first < 1)).all()):
        raise ParameterError("p has values that are not between 0 and 1")
    elif bool((second < 0).any()) or abs(float(second.sum()) - 1) > 1e-9:
        raise ParameterError("theta must not be negative, and must sum to 1")
