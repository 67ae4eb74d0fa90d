"""Which entry of a table, or which file of a folder, belongs to which image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from pathlib import Path, PurePath
from typing import TypeVar

from xaihub.errors import InputError

__all__ = ["matched"]

T = TypeVar("T")
Key = Callable[[str], tuple[str, ...]]

HINT = "write so many folders before the name as tell images apart"


def matched(
    images: Sequence[str],
    entries: Iterable[tuple[str, T]],
    *,
    where: str,
    by_stem: bool = False,
    base: Path | None = None,
) -> dict[str, T]:
    """Return the entry of each image that has one, by the image's path.

    An entry that is the path of an image is its own. Otherwise names decide, and where several images or entries
    share one, so many folders above them as tell which is meant (`cat/001.png` for `photos/cat/001.jpg`).

    Args:
        images: Paths.
        entries: What is to be given to images, by path or file name.
        where: What the entries come from, for messages.
        by_stem: Names agree without their endings.
        base: A folder that relative paths of entries may start from, besides the working folder.

    Raises:
        InputError: It cannot be told which entry an image has, or entries contradict each other.
    """
    told: dict[str, T] = {}
    for entry, value in entries:
        if told.setdefault(entry, value) != value:
            raise InputError(f"{where} names {entry!r} twice, and differently")
    found: dict[str, T] = {}
    resolved = {str(Path(image).resolve()): image for image in images}
    left: dict[str, list[str]] = {}  # entries that are no image's own path, by name
    key = _stem if by_stem else _name
    for entry, value in told.items():
        own = next((resolved[path] for path in _paths(entry, base) if path in resolved), None)
        if own is None:
            left.setdefault(key(entry)[-1], []).append(entry)
        elif found.setdefault(own, value) != value:
            raise InputError(f"{where} names {own!r} twice, and differently")
    twins: dict[str, set[str]] = {}
    for image in images:
        if image not in found:
            twins.setdefault(key(image)[-1], set()).add(image)
    meant: dict[str, list[str]] = {}
    for name, listed in left.items():
        for entry in listed:
            shared, nearest = _most(entry, twins.get(name, ()), key)
            if len(nearest) == 1:
                meant.setdefault(nearest[0], []).append(entry)
            elif nearest and shared == len(key(entry)):  # had more been written, another image would be meant
                raise InputError(f"{where} names {entry!r}, which several images are called", hint=HINT)
    for image, several in meant.items():
        _, nearest = _most(image, several, key)
        if len(nearest) > 1:
            raise InputError(f"{where} has several entries for {image!r}: {', '.join(nearest)}", hint=HINT)
        found[image] = told[nearest[0]]
    return {image: found[image] for image in images if image in found}


def _paths(entry: str, base: Path | None) -> list[str]:
    return [str(path.resolve()) for path in (Path(entry), *([base / entry] if base is not None else []))]


def _name(path: str) -> tuple[str, ...]:
    return PurePath(path).parts or ("",)


def _stem(path: str) -> tuple[str, ...]:
    parts = _name(path)
    return (*parts[:-1], PurePath(parts[-1]).stem)


def _shared(image: str, entry: str, key: Key) -> int:
    """Return how many parts of two paths agree, from the name upwards."""
    pairs = zip(reversed(key(image)), reversed(key(entry)), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _most(path: str, others: Iterable[str], key: Key) -> tuple[int, list[str]]:
    """Return in how many parts a path agrees with the nearest of others, and which those are."""
    shared = {other: _shared(path, other, key) for other in others}
    most = max(shared.values(), default=0)
    return most, [other for other, count in shared.items() if count == most]
