"""Matching of table entries, or of files in a folder, to images by path or name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from pathlib import Path, PurePath
from typing import TypeVar

from xaihub.errors import InputError

T = TypeVar("T")
Key = Callable[[str], tuple[str, ...]]

HINT = "include enough parent folders to make the name unique"


def matched(
    images: Sequence[str],
    entries: Iterable[tuple[str, T]],
    *,
    where: str,
    by_stem: bool = False,
    base: Path | None = None,
) -> dict[str, T]:
    """Return the entry of each image that has one, by the image's path.

    An entry that is the path of an image belongs to it. Otherwise file names are compared; where several images or
    entries share a name, their parent folders decide (`cat/001.png` belongs to `photos/cat/001.jpg`).

    Args:
        images: Paths.
        entries: Pairs of a path or file name and the value to assign.
        where: The source of the entries, for messages.
        by_stem: Compare names without their suffixes.
        base: A folder that relative paths of entries may start from, in addition to the working folder.

    Raises:
        InputError: An entry is ambiguous, or entries contradict each other.
    """
    listed: dict[str, T] = {}
    for entry, value in entries:
        if listed.setdefault(entry, value) != value:
            raise InputError(f"{where} lists {entry!r} twice with different values")
    found: dict[str, T] = {}
    resolved = {str(Path(image).resolve()): image for image in images}
    left: dict[str, list[str]] = {}  # entries that are not the path of an image, by name
    key = _stem if by_stem else _name
    for entry, value in listed.items():
        own = next((resolved[path] for path in _paths(entry, base) if path in resolved), None)
        if own is None:
            left.setdefault(key(entry)[-1], []).append(entry)
        elif found.setdefault(own, value) != value:
            raise InputError(f"{where} lists {own!r} twice with different values")
    twins: dict[str, set[str]] = {}
    for image in images:
        if image not in found:
            twins.setdefault(key(image)[-1], set()).add(image)
    meant: dict[str, list[str]] = {}
    for name, unmatched in left.items():
        for entry in unmatched:
            shared, nearest = _most(entry, twins.get(name, ()), key)
            if len(nearest) == 1:
                meant.setdefault(nearest[0], []).append(entry)
            elif nearest and shared == len(key(entry)):  # longer entries belong to images that are not listed
                raise InputError(f"{where} lists {entry!r}, which several images are called", hint=HINT)
    for image, several in meant.items():
        _, nearest = _most(image, several, key)
        if len(nearest) > 1:
            raise InputError(f"{where} has several entries for {image!r}: {', '.join(nearest)}", hint=HINT)
        found[image] = listed[nearest[0]]
    return {image: found[image] for image in images if image in found}


def _paths(entry: str, base: Path | None) -> list[str]:
    return [str(path.resolve()) for path in (Path(entry), *([base / entry] if base is not None else []))]


def _name(path: str) -> tuple[str, ...]:
    return PurePath(path).parts or ("",)


def _stem(path: str) -> tuple[str, ...]:
    parts = _name(path)
    return (*parts[:-1], PurePath(parts[-1]).stem)


def _shared(image: str, entry: str, key: Key) -> int:
    """Return the number of trailing path components that two paths share."""
    pairs = zip(reversed(key(image)), reversed(key(entry)), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _most(path: str, others: Iterable[str], key: Key) -> tuple[int, list[str]]:
    """Return the largest number of components that a path shares with any of the others, and those others."""
    shared = {other: _shared(path, other, key) for other in others}
    most = max(shared.values(), default=0)
    return most, [other for other, count in shared.items() if count == most]
