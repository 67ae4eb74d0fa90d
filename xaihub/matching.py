"""Matching of table entries, or of files in a folder, to images by path or name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache
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
    real = cache(os.path.realpath)  # files of one folder share the work
    resolved = {_resolved(image, real): image for image in images}
    left: list[str] = []  # entries that are not the path of an image
    key = _stem if by_stem else _name
    for entry, value in listed.items():
        places = (entry, *([os.path.join(base, entry)] if base is not None else []))  # noqa: PTH118
        own = next((resolved[path] for place in places if (path := _resolved(place, real)) in resolved), None)
        if own is None:
            left.append(entry)
        elif found.setdefault(own, value) != value:
            raise InputError(f"{where} lists {own!r} twice with different values")
    others = _Node()
    for image in dict.fromkeys(images):
        if image not in found:
            others.add(image, key(image)[::-1])
    meant: dict[str, list[str]] = {}
    for entry in left:
        shared, node = others.nearest(key(entry))
        if shared and node.count == 1:
            meant.setdefault(node.path, []).append(entry)
        elif shared == len(key(entry)):  # longer entries belong to images that are not listed
            raise InputError(f"{where} lists {entry!r}, which several images are called", hint=HINT)
    for image, several in meant.items():
        _, nearest = _most(image, several, key)
        if len(nearest) > 1:
            raise InputError(f"{where} has several entries for {image!r}: {', '.join(nearest)}", hint=HINT)
        found[image] = listed[nearest[0]]
    return {image: found[image] for image in images if image in found}


class _Node:
    """Paths by their components, last first; a node with one path has no further nodes, so that memory is linear."""

    __slots__ = ("count", "inner", "path", "rest")

    def __init__(self) -> None:
        self.count = 0
        self.path = ""  # one of the paths
        self.rest: tuple[str, ...] = ()  # its components that are not in nodes yet
        self.inner: dict[str, _Node] = {}

    def add(self, path: str, rest: tuple[str, ...]) -> None:
        """Add a path, of which the components `rest` remain, last first."""
        node = self
        for place, part in enumerate(rest):
            node.count += 1
            node._expand()
            node = node.inner.setdefault(part, _Node())
            if not node.count:
                node.count, node.path, node.rest = 1, path, rest[place + 1 :]
                return
        node._expand()
        node.count += 1

    def _expand(self) -> None:
        if self.rest:
            child = self.inner[self.rest[0]] = _Node()
            child.count, child.path, child.rest = 1, self.path, self.rest[1:]
            self.rest = ()

    def nearest(self, parts: Sequence[str]) -> tuple[int, _Node]:
        """Return how many of its last components a path shares with any of the node's, and those that share them."""
        node, shared = self, 0
        for part in reversed(parts):
            if part not in node.inner:
                break
            node, shared = node.inner[part], shared + 1
        return shared, node


def _resolved(path: str, real: Callable[[str], str]) -> str:
    """Return an absolute path without links; `real` resolves the folder."""
    folder, name = os.path.split(path)
    try:
        if name in ("", ".", "..") or os.path.islink(path):  # noqa: PTH114
            return os.path.realpath(path)
        return os.path.join(real(folder), name)  # noqa: PTH118
    except ValueError:  # a null byte in the name
        return path


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
