"""Which images a run has: files, folders, class folders, tables, shards of a WebDataset, and Hugging Face data sets."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from xaihub.errors import InputError
from xaihub.evaluation.huggingface import HF, streamed
from xaihub.evaluation.shards import members
from xaihub.evaluation.sources import Item, Sources
from xaihub.images import find_images, walk_images
from xaihub.images.marking import is_marked

CLASSES = "imagefolder:"
_LARGEST = 10**7  # of a class index or a coordinate
_SIDES = ("left", "top", "right", "bottom")


def listed(paths: Sequence[str], *, limit: int | None = None) -> Sources:
    """Return the images that a plan names, in order, each once.

    A path is a file, a folder, a glob, "-", or

    - imagefolder:FOLDER, with one subfolder per class; labels are the places of their sorted names;
    - a table (.csv) with the column file, and class_index, mask, and left, top, right, bottom where they are known;
      an image with several boxes has several rows;
    - shards of a WebDataset (.tar), also as a glob;
    - hf:NAME:SPLIT, a data set of the Hugging Face Hub.

    Raises:
        InputError: There is nothing at a path, or it cannot be read.
        MissingExtra: A library is not installed.
    """
    found = Sources()
    for path in paths:
        items, in_order = _items(path, limit)
        found.add(items, in_order=in_order, limit=limit)
    if paths and not found:
        find_images(paths)  # raises the reason
    return found


def _items(path: str, limit: int | None) -> tuple[Iterator[Item], bool]:
    """Return what one path names, and whether it comes in the order that is wanted."""
    if path.startswith(HF):
        return members(streamed(path, limit)), True
    if path.startswith(CLASSES):
        return _of_classes(Path(path.removeprefix(CLASSES))), False
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        return _of_table(path), True
    if suffix == ".tar":
        shards = [path] if os.path.isfile(path) else sorted(glob.glob(path))  # noqa: PTH113, PTH207
        if not shards:
            raise InputError(f"no file matches {path!r}")
        return (item for shard in shards for item in members(shard)), True
    if os.path.isdir(path):  # noqa: PTH112
        return _of_folder(path), False
    return (Item(source=file) for file in find_images([path])), True


def _of_folder(path: str) -> Iterator[Item]:
    count = 0
    for file in walk_images(Path(path)):
        if os.path.isfile(file) and not (file.lower().endswith(".png") and is_marked(file)):  # noqa: PTH113
            count += 1
            yield Item(source=file)
    if not count:
        find_images([path])  # raises the reason


def _of_classes(folder: Path) -> Iterator[Item]:
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(folder)!r}")
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise InputError(f"the folder {str(folder)!r} has no subfolders", hint=f"{CLASSES}FOLDER has one per class")
    for label, entry in enumerate(classes):
        yield from (Item(source=file, label=label) for file in walk_images(entry))


def _of_table(path: str) -> Iterator[Item]:
    """Yield the images of a table, row by row: a table of a million rows is not held in memory."""
    shown, base = repr(path), Path(path).parent
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if "file" not in (reader.fieldnames or ()):
                raise InputError(
                    f"{shown} has no column 'file'", hint="it needs file; class_index, mask and boxes may follow"
                )
            last: Item | None = None
            for row in reader:
                item = _of_row(row, base, f"{shown}, line {reader.line_num}")
                if last is not None and item.source == last.source:
                    last = _joined(last, item)
                    continue
                if last is not None:
                    yield last
                last = item
            if last is not None:
                yield last
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {shown}: {getattr(error, 'strerror', None) or error}") from error


def _joined(first: Item, second: Item) -> Item:
    boxes = [*(first.boxes or ()), *(second.boxes or ())]
    return Item(source=first.source, label=first.label, mask=first.mask, boxes=boxes or None)


def _of_row(row: Mapping[str, str | None], base: Path, where: str) -> Item:
    def number(column: str) -> float | None:
        text = row.get(column) or ""
        try:
            value = float(text) if text else None
        except ValueError:
            value = float("nan")
        if value is not None and not abs(value) <= _LARGEST:
            raise InputError(f"{where}: {column} is {text[:40]!r}, not a number up to {_LARGEST:,}")
        return value

    if not row.get("file"):
        raise InputError(f"{where}: the file name is missing")
    label, sides = number("class_index"), [number(side) for side in _SIDES]
    if label is not None and (label < 0 or label != int(label)):
        raise InputError(f"{where}: the class is {label:g}, not an index")
    known = [side for side in sides if side is not None]
    if known and (len(known) < 4 or known[0] >= known[2] or known[1] >= known[3]):
        raise InputError(f"{where}: the box is empty or incomplete")
    mask = row.get("mask")
    return Item(
        source=os.path.join(base, str(row["file"])),  # noqa: PTH118 - an absolute path stays as it is
        label=None if label is None else int(label),
        mask=os.path.join(base, mask) if mask else None,  # noqa: PTH118
        boxes=[(known[0], known[1], known[2], known[3])] if known else None,
    )
