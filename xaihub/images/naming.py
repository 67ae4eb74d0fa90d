"""Names of output files: portable, of bounded length, and unique also where upper and lower case are the same."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import PurePath

HASH = 8  # hexadecimal digits that distinguish names
# Bytes of the names of an image, of a model or explainer, and of a target: all and a suffix stay below the usual 255.
IMAGE, PART, TARGET = 90, 50, 40


def safe_name(name: str, room: int = IMAGE) -> str:
    """Return a name in letters, digits, ".", "-" and single "_", shortened with a hash if it has over `room` bytes."""
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in unicodedata.normalize("NFC", name))
    safe = re.sub("__+", "_", safe).strip("_") or "image"  # "__" separates the parts of a file name
    short = safe.encode()[: room - HASH - 1].decode(errors="ignore")
    return safe if len(safe.encode()) <= room else f"{short}-{_hash(name)}"


def image_stem(source: str) -> str:
    """Return an image's name for file names, without folder and suffix."""
    return "stdin" if source == "-" else safe_name(PurePath(source).stem)


class OutputNames:
    """File names of results, without suffixes: image and target (if there are any), model and explainer.

    Images that share a name are named with their folders and suffixes, and with a hash of their paths if that is not
    enough. Names depend on the images, models and explainers, not on their order.
    """

    def __init__(
        self, models: Iterable[str], explainers: Iterable[str], sources: Iterable[str] = (), target: str | None = None
    ) -> None:
        """Find the name of each, in linear time."""
        self._sources = _unique(sources, [image_stem, _with_folder, _with_hash(_with_folder, IMAGE)])
        self._models, self._explainers = file_names(models), file_names(explainers)
        self._target = target_part(target)

    def stem(self, model: str, explainer: str, source: str | None = None) -> str:
        """Return the name of one result."""
        image = [] if source is None else [self._sources[source]]
        return "__".join([*image, self._models[model], self._explainers[explainer], *self._target])

    def image(self, source: str) -> str:
        """Return the name of what all results for one image share."""
        return "__".join([self._sources[source], *self._target])


def target_part(target: str | None) -> list[str]:
    """Return what the name of a result has for the target, so that results for several targets are kept."""
    return [] if target is None else [safe_name(target, TARGET)]


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Return a name for files for each of several names."""
    return _unique(names, [_part, _with_hash(_part, PART)])


def _unique(keys: Iterable[str], ways: Sequence[Callable[[str], str]]) -> dict[str, str]:
    """Name each key in the first of several ways; those whose names are alike go on to the next way."""
    level = dict.fromkeys(keys, 0)
    names = {key: ways[0](key) for key in level}
    while True:
        alike = defaultdict(list)
        for key, name in names.items():
            alike[unicodedata.normalize("NFKC", name).casefold()].append(key)
        raised = [key for twins in alike.values() if len(twins) > 1 for key in twins if level[key] < len(ways) - 1]
        if not raised:
            return names
        for key in raised:
            level[key] += 1
            names[key] = ways[level[key]](key)


def _part(name: str) -> str:
    return safe_name(name, PART)


def _with_folder(source: str) -> str:
    path = PurePath(source)
    return safe_name(f"{path.parent.name}_{path.name}")


def _with_hash(way: Callable[[str], str], room: int) -> Callable[[str], str]:
    return lambda key: f"{safe_name(way(key), room - HASH - 1)}-{_hash(key)}"


def _hash(name: str) -> str:
    return sha256(name.encode(errors="surrogateescape")).hexdigest()[:HASH]
