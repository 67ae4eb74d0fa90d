"""Annotations of a run's images: labels, masks and boxes, read from files and matched by name."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from xaihub.errors import InputError
from xaihub.evaluation import places
from xaihub.evaluation.tasks import Box
from xaihub.images import find_images
from xaihub.matching import matched
from xaihub.models.model import Model
from xaihub.records import read_table

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


LARGEST = 10**7
T = TypeVar("T")


def read_labels(path: str | None, images: Sequence[str]) -> dict[str, int]:
    """Return the class index of each image that a CSV file lists.

    Raises:
        InputError: The file is not such a table, or lists none of the images.
    """
    found: list[tuple[str, int]] = []
    for name, (value,) in _table(path, ("class_index",)):
        if value < 0 or value != int(value):
            raise InputError(f"{path!r}: the class of {name!r} is {value:g}, not an index")
        found.append((name, int(value)))
    return _of_images(images, found, path)


def read_masks(folder: str | None, images: Sequence[str]) -> dict[str, str]:
    """Return the mask file of each image that has one in a folder.

    Raises:
        InputError: No mask has the name of an image.
    """
    if folder is None:
        return {}
    files = [(os.path.relpath(path, folder), path) for path in find_images([folder])]
    found = matched(images, files, where=repr(folder), by_stem=True)
    if not found:
        raise InputError(f"no mask in {folder!r} has the name of an image")
    return found


def read_boxes(path: str | None, images: Sequence[str]) -> dict[str, list[Box]]:
    """Return the (left, top, right, bottom) boxes of each image that a CSV file lists.

    Raises:
        InputError: The file is not such a table, a box is empty, or none of the images is listed.
    """
    found: dict[str, list[Box]] = {}
    for name, (left, top, right, bottom) in _table(path, ("left", "top", "right", "bottom")):
        if left >= right or top >= bottom:
            raise InputError(f"{path!r}: the box of {name!r} is empty")
        found.setdefault(name, []).append((left, top, right, bottom))
    return _of_images(images, list(found.items()), path)


def truth(model: Model, image: PILImage, mask: str | None, boxes: Sequence[Box] | None) -> Tensor | None:
    """Return the (H, W) bool pixels of the model's input that a mask or boxes mark; None without either.

    `mask` is the place of an image, see `xaihub.evaluation.places`.
    """
    from PIL import Image, ImageDraw

    if mask is None and boxes is None:
        return None
    blank = Image.new("L", image.size)
    if mask is not None:
        marked = places.load(mask, mask).rgb.convert("L").resize(image.size)
    else:
        marked = blank.copy()
        for box in boxes or ():
            ImageDraw.Draw(marked).rectangle(box, fill=255)
    # Pixels that are bright without a mask were added by the model's own cropping, which pads small images.
    return _bright(model, marked) & ~_bright(model, blank)


def _bright(model: Model, mask: PILImage) -> Tensor:
    """Scale and crop a mask as the model does with the image, and return where it is white."""
    inputs, _ = model.preprocessing(mask.convert("RGB"))
    return model.preprocessing.denormalise(inputs)[0] > 0.5


def _table(path: str | None, columns: Sequence[str]) -> Iterator[tuple[str, list[float]]]:
    """Yield (file name, numbers in the given columns) for each row of a CSV file; nothing without a path.

    Numbers are bounded by `LARGEST`, which any position in an image and any class index is below.
    """
    if path is None:
        return
    wanted = ("file", *columns)
    header, rows = read_table(path)
    missing = [column for column in wanted if column not in header]
    if missing:
        raise InputError(f"{path!r} has no column {missing[0]!r}", hint=f"it needs {', '.join(wanted)}")
    places = [header.index(column) for column in wanted]
    for line, row in enumerate(rows, start=2):
        name, *texts = (row[place] for place in places)
        if not name:
            raise InputError(f"{path!r}, line {line}: the file name is missing")
        values = []
        for column, text in zip(columns, texts, strict=True):
            try:
                values.append(float(text))
            except ValueError:
                values.append(math.nan)
            if not abs(values[-1]) <= LARGEST:
                raise InputError(f"{path!r}, line {line}: {column} is {text[:40]!r}, not a number up to {LARGEST:,}")
        yield name, values


def _of_images(images: Sequence[str], listed: Sequence[tuple[str, T]], path: str | None) -> dict[str, T]:
    if path is None:
        return {}
    found = matched(images, listed, where=repr(path), base=Path(path).parent)
    if listed and not found:
        raise InputError(f"{path!r} lists none of the images")
    return found
