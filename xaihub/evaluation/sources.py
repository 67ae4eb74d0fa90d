"""The images of a run with their annotations and checksums, kept on disk: memory does not grow with their number."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, overload

from xaihub.errors import InputError
from xaihub.evaluation import places
from xaihub.evaluation.tasks import Box

_FIELDS = "source, place, label, mask, boxes"
_SCHEMA = """
CREATE TABLE items (
    id INTEGER PRIMARY KEY, source TEXT NOT NULL UNIQUE, place TEXT, label INTEGER, mask TEXT, boxes TEXT,
    sha256 TEXT, mask_sha256 TEXT)
"""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image of a run.

    Attributes:
        source: Its name in the run: the path of its file, or of an archive and its member.
        place: Where it is read, see `xaihub.evaluation.places`; empty if that is `source`.
        label: The index of its class, or None.
        mask: Where its mask is read, or None.
        boxes: Its (left, top, right, bottom) boxes in pixels, or None.
    """

    source: str
    place: str = ""
    label: int | None = None
    mask: str | None = None
    boxes: Sequence[Box] | None = None

    @property
    def where(self) -> str:
        """Where it is read."""
        return self.place or self.source


class Sources(Sequence[str]):
    """The names of a run's images in order, with what is known of each.

    They stand in a private temporary file, which SQLite deletes when it is closed.
    """

    def __init__(self, items: Iterable[Item] = ()) -> None:
        """Hold some images; see `add`."""
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute(_SCHEMA)
        self._count = 0
        self.add(items)

    def add(self, items: Iterable[Item], *, in_order: bool = True, limit: int | None = None) -> None:
        """Add images; of several of one name, the first is taken.

        Args:
            items: The images.
            in_order: Keep their order, instead of sorting them by name.
            limit: The largest number of images in total.

        Raises:
            InputError: A name is not text.
        """
        table = "items" if in_order else "sorted"
        most = None if limit is None or not in_order else max(0, limit - self._count)
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("CREATE TEMP TABLE IF NOT EXISTS sorted AS SELECT * FROM items WHERE 0")
            self._db.executemany(
                f"INSERT OR IGNORE INTO {table} ({_FIELDS}) VALUES (?, ?, ?, ?, ?)",  # noqa: S608 - our own names
                map(_row, islice(items, most)),
            )
            self._db.execute(
                f"INSERT OR IGNORE INTO items ({_FIELDS}) SELECT {_FIELDS} FROM sorted ORDER BY source LIMIT ?",  # noqa: S608
                (-1 if limit is None else max(0, limit - self._count),),
            )
            self._db.execute("DROP TABLE sorted")
        (self._count,) = self._db.execute("SELECT count(*) FROM items").fetchone()

    def __len__(self) -> int:
        """Return the number of images."""
        return self._count

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> list[str]: ...
    def __getitem__(self, position: int | slice) -> str | list[str]:
        """Return the name of the image at a position, or those at several."""
        if isinstance(position, slice):
            return [self[place] for place in range(*position.indices(self._count))]
        return self.item(position if position >= 0 else self._count + position).source

    def __iter__(self) -> Iterator[str]:
        """Yield the names in order."""
        return (source for (source,) in self._db.execute("SELECT source FROM items ORDER BY id"))

    def item(self, position: int) -> Item:
        """Return the image at a position."""
        row = self._db.execute(f"SELECT {_FIELDS} FROM items WHERE id = ?", (position + 1,)).fetchone()  # noqa: S608
        if row is None:
            raise IndexError(position)
        return _item(row)

    def items(self) -> Iterator[Item]:
        """Yield the images in order."""
        return map(_item, self._db.execute(f"SELECT {_FIELDS} FROM items ORDER BY id"))  # noqa: S608

    def annotate(self, column: Literal["label", "mask", "boxes"], values: Mapping[str, Any]) -> None:
        """Store labels, masks or boxes by the names of images."""
        pairs = ((json.dumps(value) if column == "boxes" else value, source) for source, value in values.items())
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany(f"UPDATE items SET {column} = ? WHERE source = ?", pairs)  # noqa: S608

    def values(self, column: Literal["label", "mask", "boxes"]) -> Annotations:
        """Return what one column holds, by the names of images."""
        return Annotations(self._db, column)

    def checksum(self, position: int) -> str:
        """Return the sha256 of an image, or "" if it cannot be read; it is computed once."""
        return self._checksum(position, "sha256", "coalesce(nullif(place, ''), source)")

    def mask_checksum(self, position: int) -> str:
        """Return the sha256 of an image's mask, or "" if it cannot be read; it is computed once."""
        return self._checksum(position, "mask_sha256", "mask")

    def _checksum(self, position: int, column: str, place: str) -> str:
        query = f"SELECT {column}, {place} FROM items WHERE id = ?"  # noqa: S608 - our own names
        known, where = self._db.execute(query, (position + 1,)).fetchone()
        if known is None:
            known = places.checksum(where)
            self._db.execute(f"UPDATE items SET {column} = ? WHERE id = ?", (known, position + 1))  # noqa: S608
        return str(known)


class Annotations(Mapping[str, Any]):
    """One column of what is known of a run's images, by their names."""

    def __init__(self, db: sqlite3.Connection, column: str) -> None:
        """Read nothing yet."""
        self._db, self._column = db, column

    def __getitem__(self, source: str) -> Any:
        """Return the value of an image that has one."""
        query = f"SELECT {self._column} FROM items WHERE source = ?"  # noqa: S608 - our own names
        row = self._db.execute(query, (source,)).fetchone()
        if row is None or row[0] is None:
            raise KeyError(source)
        return _boxes(row[0]) if self._column == "boxes" else row[0]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of images that have a value."""
        query = f"SELECT source FROM items WHERE {self._column} IS NOT NULL ORDER BY id"  # noqa: S608
        return (source for (source,) in self._db.execute(query))

    def __len__(self) -> int:
        """Return the number of images that have a value."""
        (count,) = self._db.execute(f"SELECT count({self._column}) FROM items").fetchone()  # noqa: S608
        return int(count)


def _row(item: Item) -> tuple[Any, ...]:
    try:
        item.source.encode()
    except UnicodeEncodeError as error:
        message = f"the file name {item.source!r} is not UTF-8, so it cannot be recorded"
        raise InputError(message, hint="rename the file") from error
    boxes = None if item.boxes is None else json.dumps(item.boxes)
    return item.source, item.place or None, item.label, item.mask, boxes


def _item(row: tuple[Any, ...]) -> Item:
    source, place, label, mask, boxes = row
    return Item(source=source, place=place or "", label=label, mask=mask, boxes=boxes and _boxes(boxes))


def _boxes(text: str) -> list[Box]:
    return [(left, top, right, bottom) for left, top, right, bottom in json.loads(text)]
