"""Which entry of a table, or which file of a folder, belongs to which picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePath
from typing import TypeVar

from xaihub.errors import InputError

__all__ = ["matched"]

T = TypeVar("T")
Key = Callable[[str], tuple[str, ...]]

HINT = "write so many folders before the name as tell pictures apart"


def matched(
    pictures: Sequence[str], entries: Mapping[str, T], *, where: str, by_stem: bool = False, base: Path | None = None
) -> dict[str, T]:
    """Return the entry of each picture that has one, by the picture's path.

    An entry that is the path of a picture is its own. Otherwise names decide, and where several pictures or entries
    share one, so many folders above them as tell which is meant (`cat/001.png` for `photos/cat/001.jpg`).

    Args:
        pictures: Paths.
        entries: What is to be given to pictures, by path or file name.
        where: What the entries come from, for messages.
        by_stem: Names agree without their endings.
        base: A folder that relative paths of entries may start from, besides the working folder.

    Raises:
        InputError: It cannot be told which entry a picture has.
    """
    found: dict[str, T] = {}
    resolved = {str(Path(picture).resolve()): picture for picture in pictures}
    left: dict[str, list[str]] = {}  # entries that are no picture's own path, by name
    key = _stem if by_stem else _name
    for entry in entries:
        own = next((resolved[path] for path in _paths(entry, base) if path in resolved), None)
        if own is None:
            left.setdefault(key(entry)[-1], []).append(entry)
        elif own in found and found[own] != entries[entry]:
            raise InputError(f"{where} names {own!r} twice, and differently")
        else:
            found[own] = entries[entry]
    named: dict[str, set[str]] = {}
    for picture in pictures:
        if picture not in found:
            named.setdefault(key(picture)[-1], set()).add(picture)
    for name, twins in named.items():
        for picture, meant in _nearest(twins, left.get(name, []), key).items():
            if len(meant) > 1:
                raise InputError(f"{where} has several entries for {picture!r}: {', '.join(meant)}", hint=HINT)
            found[picture] = entries[meant[0]]
        for entry in left.get(name, []):
            shared, pictures_meant = _most(entry, twins, key)
            # Where more is written than agrees, another picture is meant, which is not among these.
            if len(pictures_meant) > 1 and shared == len(key(entry)):
                raise InputError(f"{where} names {entry!r}, which several pictures are called", hint=HINT)
    return {picture: found[picture] for picture in pictures if picture in found}


def _paths(entry: str, base: Path | None) -> list[str]:
    return [str(path.resolve()) for path in (Path(entry), *([base / entry] if base is not None else []))]


def _name(path: str) -> tuple[str, ...]:
    return PurePath(path).parts or ("",)


def _stem(path: str) -> tuple[str, ...]:
    parts = _name(path)
    return (*parts[:-1], PurePath(parts[-1]).stem)


def _shared(picture: str, entry: str, key: Key) -> int:
    """Return how many parts of two paths agree, from the name upwards."""
    pairs = zip(reversed(key(picture)), reversed(key(entry)), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _most(path: str, others: Iterable[str], key: Key) -> tuple[int, list[str]]:
    """Return in how many parts a path agrees with the nearest of others, and which those are."""
    shared = {other: _shared(path, other, key) for other in others}
    most = max(shared.values(), default=0)
    return most, [other for other, count in shared.items() if count == most]


def _nearest(twins: set[str], entries: Sequence[str], key: Key) -> dict[str, list[str]]:
    """Return of each picture the entries that mean it more than any other picture, the nearest of them."""
    meant: dict[str, list[str]] = {}
    for entry in entries:
        _, pictures = _most(entry, twins, key)
        if len(pictures) == 1:
            meant.setdefault(pictures[0], []).append(entry)
    return {picture: _most(picture, several, key)[1] for picture, several in meant.items()}
