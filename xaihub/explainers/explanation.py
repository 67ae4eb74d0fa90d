"""The result: an attribution map, what it explains, and everything needed to reproduce it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import msgspec
import torch
from safetensors.torch import save as pack_tensors
from torch import Tensor, stack
from torch import bool as bool_

from xaihub.errors import OutputError
from xaihub.explainers.pixel_set import PixelSet
from xaihub.explainers.result import ClassScore, Result
from xaihub.explainers.target import ResolvedTarget
from xaihub.files import decoding, read_file, read_packed, temporary_file, write_file
from xaihub.models.preprocessing import Geometry
from xaihub.records import plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from xaihub.explainers.heat import Drawing
    from xaihub.images import SourceImage

FORMAT = 1
EXTRAS = "extras."  # prefix of further tensors in a file, so that none can be mistaken for the values or the sets
SETS = "sets"
LARGEST = 2**24  # bytes of a record
LARGEST_IMAGE = 178_956_970  # pixels; Pillow decodes no more
LARGEST_SIDE = 2**26


class _Set(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    area: float | None = None
    holds: bool | None = None
    score: float | None = None
    whole: float | None = None
    runner_up: float | None = None
    baseline: str | None = None
    details: dict[str, Any] = {}


class _Record(msgspec.Struct):
    """What is read of a record; the rest is metadata."""

    target: ClassScore
    predicted: ClassScore
    against: ClassScore | None
    geometry: Geometry | None
    sets: list[_Set]
    explainer: str = ""
    model: str = ""
    warnings: list[str] = []


_OWN = ("format", "target", "against", "predicted", "geometry", "sets")


class Explanation(Result):
    """An attribution map with its record.

    Attributes:
        values: (C, H, W) or (1, H, W) float32 on the CPU, in the geometry of the model's input; positive values support
            the target.
        target: The class that was explained.
        against: The class it was contrasted with, or None.
        predicted: The model's best class.
        metadata: Model, weights, preprocessing, explainer, parameters, seed, layer, cost, warnings, versions.
        geometry: How the image became the input, or None if unknown.
        sets: Sets of pixels that the method returned, the main one first.
        extras: Further tensors of the result by name.
        image: The image, or None; it is not saved with the values.
    """

    @classmethod
    def of_row(
        cls,
        row: int,
        *,
        values: Tensor,
        logits: Tensor,
        target: ResolvedTarget,
        classes: Sequence[str],
        metadata: Mapping[str, Any],
        extras: Mapping[str, Tensor] | None = None,
        sets: tuple[PixelSet, ...] = (),
    ) -> Explanation:
        """Build the explanation of one row of a batch; `sets` are that row's own."""
        one, own = logits[row : row + 1], target[row : row + 1]

        def score(index: int) -> ClassScore:
            return ClassScore.of(one, ResolvedTarget(index=torch.tensor([index]), outputs=own.outputs), classes)

        return cls(
            values=values[row].clone(),
            target=ClassScore.of(one, replace(own, against=None), classes),
            against=None if own.against is None else score(int(own.against)),
            predicted=score(int(own.outputs.predicted(one)) if own.outputs.classify else int(own.index)),
            metadata=metadata,
            sets=sets,
            extras={name: tensor[row].clone() for name, tensor in (extras or {}).items()},
        )

    def with_image(self, image: SourceImage, geometry: Geometry) -> Explanation:
        """Return this explanation with the image it belongs to, and a warning about each part of it that was lost."""
        warnings = list(dict.fromkeys([*self.warnings, *image.notes, *geometry.notes()]))
        record = {
            **self.metadata,
            "warnings": warnings,
            "image": {"source": image.source, "sha256": image.sha256},
        }
        return replace(self, image=image, geometry=geometry, metadata=record)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but tensors and the image, as JSON types; NaN and infinity become None."""
        record = {
            "format": FORMAT,
            "target": self.target.to_dict(),
            "against": None if self.against is None else self.against.to_dict(),
            "predicted": self.predicted.to_dict(),
            "geometry": None if self.geometry is None else asdict(self.geometry),
            "sets": [one.to_dict() for one in self.sets],
            **self.metadata,
        }
        return {key: plain(value) for key, value in record.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors under the names by which they are saved; the masks of n sets as one (n, H, W) tensor."""
        extras = {f"{EXTRAS}{name}": tensor.contiguous() for name, tensor in self.extras.items()}
        masks = {SETS: stack([one.mask for one in self.sets])} if self.sets else {}
        return {"values": self.values.contiguous(), **masks, **extras}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Explanation:
        """Rebuild an explanation from the results of `to_dict` and `tensors`.

        Raises:
            OutputError: They are incomplete, have wrong types or shapes, or do not fit together.
        """
        with decoding(OutputError("the record or the tensors of an explanation are damaged")):
            known = msgspec.convert(record, type=_Record)
            values, masks = tensors["values"], tensors.get(SETS)
            if values.ndim != 3 or not values.numel() or not bool(values.isfinite().all()):
                raise ValueError("the values are not a finite (C, H, W) map")
            if masks is not None and (masks.dtype != bool_ or masks.shape[1:] != values.shape[1:]):
                raise ValueError("the sets are not (n, H, W) masks")
            if known.geometry is not None:
                _check_geometry(known.geometry)
            return cls(
                values=values.float(),
                sets=tuple(
                    PixelSet(mask=mask, role=one.role, holds=one.holds, score=one.score, whole=one.whole,
                             runner_up=one.runner_up, baseline=one.baseline, details=one.details)
                    for one, mask in zip(known.sets, () if masks is None else masks, strict=True)
                ),
                extras={name[len(EXTRAS) :]: item for name, item in tensors.items() if name.startswith(EXTRAS)},
                target=known.target,
                against=known.against,
                predicted=known.predicted,
                geometry=known.geometry,
                metadata={name: value for name, value in record.items() if name not in _OWN},
            )  # fmt: skip

    def save(self, path: str | Path, **drawing: Unpack[Drawing]) -> Path:
        """Write the explanation in the format that the suffix of `path` names; return the path.

        .html is a page that opens offline; .png, .npy and .npz hold the map at the original image's size (see
        `xaihub.explainers.saving.save_map`). Any other path gets two files: `path`.safetensors (all tensors, which
        `load` reads; its path is returned) and `path`.json (the record), written under temporary names and then
        renamed, the tensors last. `drawing` is for .html and .png: smooth, colormap and alpha.

        Raises:
            OutputError: The files cannot be written, or the image or its geometry is unknown.
            ParameterError: The colour map or the opacity cannot be used.
        """
        from xaihub.explainers.saving import SUFFIXES, save_map

        if Path(path).suffix == ".html":
            return write_file(path, self.html(**drawing))
        if Path(path).suffix in SUFFIXES:
            return save_map(self, path, **drawing)
        record, values = _files(path)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        packed = pack_tensors(self.tensors())
        with temporary_file(record) as first, temporary_file(values) as second:
            first.write_text(text, encoding="utf-8", errors="backslashreplace")
            second.write_bytes(packed)
            first.replace(record)
            second.replace(values)
        return values

    @classmethod
    def load(cls, path: str | Path) -> Explanation:
        """Read what `save` wrote; the image is not included.

        Raises:
            OutputError: A file is missing, damaged, or written in another format.
        """
        record_file, values_file = _files(path)
        damaged = OutputError(f"{str(path)!r} is damaged or not a saved explanation")
        text = read_file(record_file, what="file", error=OutputError, limit=LARGEST)
        with decoding(damaged):
            record = json.loads(text)
            if record["format"] != FORMAT:
                raise OutputError(f"{str(path)!r} was written by another version of xaihub")
        tensors, _ = read_packed(values_file, what="file", refusal=damaged)
        try:
            return cls.from_dict(record, tensors)
        except OutputError as error:
            raise damaged from error

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas table of one row: image, model, explainer, target, prediction, cost, area of the sets."""
        import pandas as pd

        return pd.DataFrame([summary(self)])

    def html(self, **drawing: Unpack[Drawing]) -> str:
        """Return a self-contained HTML page: the map over the image with an opacity slider, sets, cost and record.

        `drawing` is smooth, colormap and alpha (the slider's start).

        Raises:
            OutputError: The explanation has no image.
            ParameterError: The colour map or the opacity cannot be used.
        """
        from xaihub.explainers.page.explanations import explanations_page

        return explanations_page([self], **drawing)

    def plot(self, **drawing: Unpack[Drawing]) -> Figure:
        """Return a matplotlib figure: the image, and the map over it with a colour bar.

        `drawing` is smooth (None smooths maps that are pixelwise; values are never changed), colormap (a name of
        matplotlib's) and alpha (opacity of the strongest colours, in [0, 1]).

        Raises:
            OutputError: The explanation has no image.
            ParameterError: The colour map or the opacity cannot be used.
        """
        from xaihub.explainers.rendering import figure

        return figure(self, **drawing)

    def png(self, **drawing: Unpack[Drawing]) -> bytes:
        """Return the overlay with its legend as PNG bytes; `drawing` and errors are those of `plot`."""
        from xaihub.explainers.rendering import overlay, png_bytes

        return png_bytes(overlay(self, **drawing))

    def save_png(self, path: str | Path, **drawing: Unpack[Drawing]) -> Path:
        """Write the overlay with its legend; return the path. `drawing` is that of `plot`.

        Raises:
            OutputError: The file cannot be written, or the explanation has no image.
            ParameterError: The colour map or the opacity cannot be used.
        """
        return write_file(path, self.png(**drawing))

    def save_sets_png(self, path: str | Path) -> Path | None:
        """Draw the sets of pixels: outlined on the image, then each alone.

        Returns:
            The path, or None (and no file) if the explanation has no set.

        Raises:
            OutputError: The file cannot be written, or the image is missing.
        """
        from xaihub.explainers.rendering import png_bytes, sets_figure

        drawn = sets_figure(self)
        return None if drawn is None else write_file(path, png_bytes(drawn))

    def _repr_png_(self) -> bytes:
        return self.png()

    def _repr_html_(self) -> str | None:
        from xaihub.explainers.page.document import framed

        return None if self.image is None else framed(self.html())


def summary(explanation: Result) -> dict[str, Any]:
    """Return the facts of one explanation as a row of a table."""
    record, target = explanation.metadata, explanation.target
    return {
        "image": "" if explanation.image is None else explanation.image.name,
        "model": explanation.model,
        "explainer": explanation.explainer,
        "target": target.name,
        "target_index": target.index,
        "probability": target.probability,
        "value": target.value,
        "against": None if explanation.against is None else explanation.against.name,
        "predicted": explanation.predicted.name,
        "predicted_index": explanation.predicted.index,
        **{name: record.get(name) for name in ("forward_passes", "backward_passes", "seconds", "seed", "layer")},
        "set_area": explanation.sets[0].area if explanation.sets else None,
        "warnings": "; ".join(explanation.warnings),
    }


def _check_geometry(geometry: Geometry) -> None:
    sides = (*geometry.original, *geometry.scaled, *geometry.crop)
    large = geometry.original[0] * geometry.original[1] > LARGEST_IMAGE
    if large or min(sides) < 1 or max(map(abs, (*sides, *geometry.offset))) > LARGEST_SIDE:
        raise ValueError("a side of the geometry is out of range")


def _files(path: str | Path) -> tuple[Path, Path]:
    """Return the record's and the values' files for a path with either suffix or none."""
    base = Path(path).with_suffix("") if Path(path).suffix in (".safetensors", ".json") else Path(path)
    return base.parent / f"{base.name}.json", base.parent / f"{base.name}.safetensors"
