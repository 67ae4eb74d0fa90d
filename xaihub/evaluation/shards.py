"""Shards of a WebDataset: tar archives whose members of one base name make up a sample.

An image is PNG, JPEG, ... under any extension of an image; "cls" holds its class index as text; "mask.png" or "seg.png"
its mask; "boxes.json" a list of [left, top, right, bottom]. Other members, pickled ones above all, are never read.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import msgspec

from xaihub.errors import InputError
from xaihub.evaluation.places import part_of
from xaihub.evaluation.sources import Item
from xaihub.evaluation.tasks import Box
from xaihub.images import SUFFIXES

_MASKS = ("mask.png", "seg.png")
_LARGEST = 2**20  # bytes of an annotation


@dataclass
class _Sample:
    name: str
    image: str = ""
    where: str = ""
    label: int | None = None
    mask: str | None = None
    boxes: list[Box] | None = field(default=None)

    def item(self, shard: str) -> Item:
        source = f"{shard}/{self.image}"
        return Item(source=source, place=self.where, label=self.label, mask=self.mask, boxes=self.boxes)


def members(shard: str) -> Iterator[Item]:
    """Yield the images of a shard in order; only headers and annotations are read.

    Raises:
        InputError: It is not an uncompressed tar archive, or an annotation is damaged.
    """
    path, sample, found = str(Path(shard).absolute()), _Sample(""), False
    try:
        with tarfile.open(shard, "r:") as archive:  # not compressed: an image is read from its offset
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep one object per member
                if not member.isfile():
                    continue
                base, _, kind = PurePosixPath(member.name).name.partition(".")
                name = str(PurePosixPath(member.name).with_name(base)) if base else member.name
                if name != sample.name:
                    if sample.image:
                        found = True
                        yield sample.item(path)
                    sample = _Sample(name)
                _take(sample, archive, member, kind.lower(), path)
            if sample.image:
                found = True
                yield sample.item(path)
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot read the shard {shard!r}: {reason}", hint="shards are uncompressed .tar files"
        ) from error
    if not found:
        raise InputError(f"no image in the shard {shard!r}")


def _take(sample: _Sample, archive: tarfile.TarFile, member: tarfile.TarInfo, kind: str, path: str) -> None:
    where = part_of(path, member.offset_data, member.size)
    if kind in _MASKS:
        sample.mask = where
    elif f".{kind}" in SUFFIXES and not sample.image:
        sample.image, sample.where = member.name, where
    elif kind in ("cls", "boxes.json"):
        stream = archive.extractfile(member) if member.size <= _LARGEST else None
        content = b"" if stream is None else stream.read()
        try:
            if kind == "cls":
                sample.label = _label(int(content))
            else:
                sample.boxes = msgspec.convert(json.loads(content), type=list[Box])
        except (ValueError, msgspec.ValidationError) as error:
            raise InputError(f"{member.name!r} in {path!r} is damaged: {error}") from error


def _label(value: int) -> int:
    if not 0 <= value < 2**31:
        raise ValueError(f"{value} is not a class index")
    return value
