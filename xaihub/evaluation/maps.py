"""How a map is stored: in full, with half precision, or not at all; one that was upsampled from cells as its cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import interpolate

from xaihub.explainers.explanation import EXTRAS, LARGEST_IMAGE, Explanation

MapKind = Literal["f32", "f16", "none"]
MAP_KINDS: tuple[MapKind, ...] = get_args(MapKind)
_CELLS = f"{EXTRAS}cells"
_VALUES = "values"


def packed_map(explanation: Explanation, kind: MapKind) -> bytes:
    """Return the tensors of an explanation as the bytes of a safetensors file.

    A map of cells is stored at the size of its grid, if it comes back bit for bit: one that was upsampled bilinearly
    from what the explainer returns as the extra `cells`, and one that is constant on equal rectangles. Other values are
    stored as float32, or for "f16" as float16 fractions of their largest absolute value (our choice: no map overflows,
    and the error is at most 2**-12 of that value).
    """
    tensors, notes = explanation.tensors(), {}
    values, cells = tensors[_VALUES], tensors.get(_CELLS)
    height, width = (
        _constant(values[..., 1:, :] != values[..., :-1, :], -2),
        _constant(values[..., 1:] != values[..., :-1], -1),
    )
    if cells is not None and cells.ndim == 2 and torch.equal(_upsampled(cells, values.shape[-2:]), values):
        notes["size"] = "x".join(map(str, values.shape[-2:]))
        del tensors[_VALUES]
    elif height * width > 1:
        notes["repeat"] = f"{height}x{width}"
        tensors[_VALUES] = values[..., ::height, ::width].contiguous()
    elif kind == "f16":
        largest = float(values.abs().max()) or 1.0
        notes["largest"] = largest.hex()
        tensors[_VALUES] = (values / largest).half()
    return save(tensors, notes or None)


def restored_map(
    record: Mapping[str, Any], tensors: dict[str, Tensor], notes: Mapping[str, str], *, exact: bool
) -> Explanation | None:
    """Return the explanation whose tensors `packed_map` packed; None if they are rounded and `exact` values are wanted.

    Raises:
        Exception: Of any type, if the content is damaged.
    """
    if "size" in notes:
        tensors[_VALUES] = _upsampled(tensors[_CELLS], _sides(notes["size"]))
    elif "repeat" in notes:
        height, width = _sides(notes["repeat"])
        if tensors[_VALUES].numel() * height * width > LARGEST_IMAGE:
            raise ValueError("the size of the map is out of range")
        tensors[_VALUES] = tensors[_VALUES].repeat_interleave(height, -2).repeat_interleave(width, -1)
    elif "largest" in notes:
        if exact:
            return None
        tensors[_VALUES] = tensors[_VALUES].float() * float.fromhex(notes["largest"])
    return Explanation.from_dict(record, tensors)


def _constant(changes: Tensor, dim: int) -> int:
    """Return the length of the equal intervals along a dimension inside which no value changes."""
    others = [other for other in range(changes.ndim) if other != changes.ndim + dim]
    places = changes.any(dim=others[0]).any(dim=others[1] - 1).nonzero().flatten() + 1
    return math.gcd(changes.shape[dim] + 1, *places.tolist())


def _sides(text: str) -> tuple[int, int]:
    height, width = (int(side) for side in text.split("x"))
    if not 0 < height * width <= LARGEST_IMAGE or min(height, width) < 1:
        raise ValueError("the size of the map is out of range")
    return height, width


def _upsampled(cells: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(cells[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0]
