"""Sources of labelled images: folders, CSV files, Hugging Face data sets, and the built-in sets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xaihub.errors import InputError, MissingExtra
from xaihub.images import image_files, load_image
from xaihub.images.finding import ARCHIVED
from xaihub.records import read_table
from xaihub.training.data.builtin import BUILT_IN
from xaihub.training.data.images import LabelledImages

if TYPE_CHECKING:
    from PIL.Image import Image


_FILE = ("file", "path", "image", "filename")
_INDEX = "class_index"
_LABEL = ("label", "class", _INDEX)
MAX_CLASSES = 100_000  # a larger label in a table is not an index
# Images called test are held out only if there is no validation part.
_PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def open_images(data: str, *, classes: Sequence[str] | None = None) -> LabelledImages:
    """Find labelled images without reading any of them.

    Args:
        data: A folder, a CSV file, "hf:NAME", or the name of a built-in set.
        classes: Class names by index, or None to use those of the data.

    Raises:
        InputError: There are no such data, or no labels can be derived from them.
        MissingExtra: A Hugging Face data set was given, and the library is not installed.
    """
    name = data.partition(":")[0]
    if data.startswith("hf:"):
        images = _hugging_face(data.removeprefix("hf:"))
    # os.path takes a name that is too long for one of no file; pathlib raises.
    elif name in BUILT_IN and not os.path.exists(data):  # noqa: PTH110
        images = BUILT_IN[name](data)
    elif os.path.isdir(data):  # noqa: PTH112
        images = _folder(Path(data), classes)
    elif os.path.isfile(data):  # noqa: PTH113
        images = _table(Path(data), classes)
    else:
        raise InputError(
            f"there are no data {data!r}",
            hint=f"give a folder of class folders, a CSV file, hf:NAME, {' or '.join(BUILT_IN)}",
        )
    if classes is None or images.classes == tuple(classes):
        return images
    if len(classes) != len(images.classes):
        raise InputError(f"{len(classes)} class names were given, but {data!r} has {len(images.classes)} classes")
    return replace(images, classes=tuple(classes))


def _read(paths: Sequence[str], index: int) -> Image:
    return _rgb(paths[index])


def _rgb(source: Any) -> Image:
    image = load_image(source)
    if not image.plain:
        raise InputError(f"{image.source or image.name!r} is not an RGB or grey image, and training reads no others")
    return image.rgb


def _folder(folder: Path, classes: Sequence[str] | None) -> LabelledImages:
    """Read one class per subfolder, or per subfolder of the folders train and val (or test)."""
    inner = _folders(folder)
    own = {path.name.lower(): path for path in inner}
    parts = {part: own[name] for name, part in _PARTS.items() if name in own}
    test, notes = parts.pop("test", None), []
    if "train" not in parts or not _folders(parts["train"]):
        parts = {"": folder}
    elif "val" in parts and not _folders(parts["val"]):
        raise InputError(
            f"{str(parts['val'])!r} has no class folders",
            hint=f"make one folder per class, as in {str(parts['train'])!r}",
        )
    elif test is not None and not _folders(test):
        notes.append(f"{test.name} is skipped: it has no class folders, so its images have no labels")
    elif test is not None:
        parts.setdefault("val", test)
    found: list[tuple[str, str, str]] = []
    names: dict[str, None] = {}
    for part, root in parts.items():
        for path in _folders(root):
            names[path.name] = None
            found += [(file, path.name, part) for file in image_files(path)]
    if not names:
        raise InputError(
            f"the folder {str(folder)!r} has no class folders", hint="make one folder per class, or give a CSV file"
        )
    known = list(classes) if classes is not None else sorted(names)
    unknown = sorted(names.keys() - {*known})
    if unknown:
        raise InputError(f"the class folder {unknown[0]!r} is not among the {len(known)} class names given")
    files = [file for file, _, _ in found]
    return LabelledImages(
        name=str(folder),
        classes=tuple(known),
        labels=[known.index(label) for _, label, _ in found],
        names=files,
        parts=[part for _, _, part in found] if "train" in parts else (),
        read=partial(_read, files),
        notes=notes,
    )


def _folders(folder: Path) -> list[Path]:
    try:
        inner = (path for path in folder.iterdir() if path.is_dir())
        return sorted(path for path in inner if not path.name.startswith(".") and path.name != ARCHIVED)
    except OSError as error:
        raise InputError(f"cannot read the folder {str(folder)!r}: {error.strerror}") from error


def _table(file: Path, classes: Sequence[str] | None) -> LabelledImages:
    """Read a CSV file with a column of paths, one of labels (names or indices), and optionally one called split."""
    columns, rows = read_table(file)
    # With class names given, a label that is a number is ambiguous; a column of indices is not.
    labels_in = _LABEL if classes is None else (_INDEX, *_LABEL)
    path_column, label_column = _one_of(file, columns, _FILE), _one_of(file, columns, labels_in)
    path_place, label_place = columns.index(path_column), columns.index(label_column)
    split_place = columns.index("split") if "split" in columns else None
    paths, texts, parts = [], [], []
    for line, row in enumerate(rows, start=2):
        path, text = row[path_place].strip(), row[label_place].strip()
        part = (split_place is not None and row[split_place].strip().lower()) or "train"
        if not path or not text:
            raise InputError(f"{str(file)!r}, line {line}: {path_column if not path else label_column!r} is empty")
        if part not in _PARTS:
            raise InputError(f"{str(file)!r}, line {line}: the split {part!r} is not train, val or test")
        paths.append(str(file.parent / path))
        texts.append(text)
        parts.append(_PARTS[part])
    labels, names = _labels(file, texts, classes, named=label_column != _INDEX)
    kept = [row for row, part in enumerate(parts) if part != "test" or "val" not in parts]
    files, skipped = [paths[row] for row in kept], len(paths) - len(kept)
    return LabelledImages(
        name=str(file),
        classes=names,
        labels=[labels[row] for row in kept],
        names=files,
        parts=["val" if parts[row] == "test" else parts[row] for row in kept] if split_place is not None else (),
        read=partial(_read, files),
        notes=[f"{skipped} rows of the split test skipped"] if skipped else [],
    )


def _one_of(file: Path, columns: Sequence[str], wanted: Sequence[str]) -> str:
    for name in wanted:
        if name in columns:
            return name
    raise InputError(f"{str(file)!r} has no column {wanted[0]!r}", hint="columns: file, label and optionally split")


def _labels(
    file: Path, texts: list[str], classes: Sequence[str] | None, *, named: bool
) -> tuple[list[int], tuple[str, ...]]:
    """Read labels as indices if all are whole numbers, unless all of them are among the class names given."""
    known = named and classes is not None and {*texts} <= {*classes}
    words = [line for line, text in enumerate(texts, start=2) if not text.removeprefix("-").isdecimal()]
    if classes is None and 0 < len(words) < len(texts):
        rare, line = ("a word", words[0])
        if len(words) > len(texts) / 2:
            rare, line = "a number", next(line for line in range(2, len(texts) + 2) if line not in {*words})
        raise InputError(
            f"{str(file)!r}, line {line}: the label {texts[line - 2][:40]!r} is {rare}, but {len(words)} of"
            f" {len(texts)} labels are words",
            hint="write names or indices throughout, or list all names in a file for --classes",
        )
    if known or words:
        names = list(classes) if classes is not None else sorted(set(texts))
        index_of = {name: index for index, name in enumerate(names)}
        for line, text in enumerate(texts, start=2):
            if text not in index_of:
                raise InputError(
                    f"{str(file)!r}, line {line}: {text!r} is not among the {len(names)} class names given"
                )
        return [index_of[text] for text in texts], tuple(names)
    # Longer numbers are no index, and `int` refuses very long ones.
    indices = [int(text) if len(text) < 10 else MAX_CLASSES for text in texts]
    count = min(max(indices, default=-1) + 1, MAX_CLASSES) if classes is None else len(classes)
    for line, (index, text) in enumerate(zip(indices, texts, strict=True), start=2):
        if not 0 <= index < count:
            raise InputError(
                f"{str(file)!r}, line {line}: the label {text[:40]} is out of range",
                hint=f"labels go from 0 to {count - 1}",
            )
    if classes is not None:
        return indices, tuple(classes)
    missing = sorted({*range(count)} - {*indices})
    if missing:
        raise InputError(
            f"{str(file)!r}: its labels are numbers up to {count - 1}, but none is {missing[0]}"
            + (f", nor {len(missing) - 1} others" if len(missing) > 1 else ""),
            hint="number the classes from 0 without gaps, or list their names in a file for --classes",
        )
    return indices, tuple(map(str, range(count)))


def _hugging_face(name: str) -> LabelledImages:
    """Load a data set from the Hugging Face hub or a local folder by its image and class-label columns."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"'hf:{name}' needs 'datasets', which is not installed", hint="pip install 'xaihub[datasets]'"
        ) from error
    try:
        saved = Path(name).is_dir() and any(Path(name).glob("*.json"))
        loaded: Any = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # the library, the hub and the network raise many types
        raise InputError(f"cannot load the data set {name!r}: {type(error).__name__}: {error}") from error
    splits = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    named = {"train": ["train"], "val": ["validation", "test"]}
    used = {
        part: splits[next(key for key in keys if key in splits)] for part, keys in named.items() if splits.keys() & keys
    }
    if "train" not in used:
        raise InputError(f"the data set {name!r} has no split 'train'", hint=f"its splits are {', '.join(splits)}")
    features = used["train"].features
    images = [key for key, value in features.items() if isinstance(value, datasets.Image)]
    labels = [key for key, value in features.items() if isinstance(value, datasets.ClassLabel)]
    if not images or not labels:
        raise InputError(f"the data set {name!r} has no column of {'class labels' if images else 'images'}",
                         hint=f"its columns are {', '.join(features)}")  # fmt: skip
    rows = [(part, index) for part, table in used.items() for index in range(len(table))]
    return LabelledImages(
        name=f"hf:{name}",
        classes=tuple(features[labels[0]].names),
        labels=[int(label) for table in used.values() for label in table[labels[0]]],
        names=[f"{part}/{index}" for part, index in rows],
        parts=[part for part, _ in rows] if "val" in used else (),
        files=False,
        read=partial(_row, used, rows, images[0], name),
    )


def _row(tables: Mapping[str, Any], rows: Sequence[tuple[str, int]], column: str, name: str, position: int) -> Image:
    part, index = rows[position]
    try:
        image = tables[part][index][column]
    except Exception as error:  # Pillow's errors pass through the library
        raise InputError(f"row {index} of {part} in {name!r} cannot be read: {error}") from error
    return _rgb(image)
