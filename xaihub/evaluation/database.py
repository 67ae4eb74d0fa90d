"""The SQLite file of a run: opened without trusting its content, and read and written through one boundary."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from weakref import WeakSet

from xaihub.errors import OutputError

if TYPE_CHECKING:
    import numpy as np

KEY = re.compile("[0-9a-f]{64}")  # of an explanation; it is part of a file name
LARGEST = 2**24  # bytes of one value
BLOCK = 50_000  # rows that are read at a time
CACHE = 65_536  # KiB of the file that are kept in memory
INTERNED = 10_000  # ids of repeated texts that are remembered
_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")

_COLUMNS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("source", "key", "image", "model", "explainer", "metric", "basis", "name", "sql", "type"), str),
    **dict.fromkeys(("parameters", "explainer_parameters", "metric_parameters", "tbl_name", "quick_check"), str),
    **dict.fromkeys(("sha256", "error", "record", "details", "curve"), (str, type(None))),
    **dict.fromkeys(("position", "control", "current", "forward_passes", "backward_passes", "count", "id"), int),
    **dict.fromkeys(("explainer_id", "metric_id", "explanation_id", "basis_id"), int),
    "seconds": (float, int),
    "value": (float, int, str, type(None)),  # text in the table of settings
}


class Database:
    """One SQLite file with a known schema.

    A file that comes from elsewhere cannot run anything: a schema that differs (triggers, views) is refused before any
    table is read, links are not followed, and every value read has the type of its column.
    """

    def __init__(self, folder: Path, file: Path, schema: str, *, create: bool) -> None:
        """Open the file, or create it.

        Raises:
            OutputError: It is damaged, is not a run's, or cannot be read or written.
        """
        self._folder = str(folder)
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()
        self._interned: dict[tuple[str, ...], int] = {}
        self.empty = False
        _refuse_links(file)
        with self._guard("open"):
            self._db = _connected(file, readable=not create and not os.access(folder, os.W_OK))
        try:
            self._open(schema, create=create)
        except BaseException:
            self.close()
            raise

    def _open(self, schema: str, *, create: bool) -> None:
        self._db.row_factory = sqlite3.Row
        self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST)
        with self._guard("open"):
            self._db.execute("PRAGMA trusted_schema = OFF")
            self._db.execute("PRAGMA cell_size_check = ON")
            self._db.execute(f"PRAGMA cache_size = -{CACHE}")
            if create:
                self._db.execute("PRAGMA journal_mode = WAL")  # remembered in the file
            self._db.execute("PRAGMA synchronous = NORMAL")
        found = self._schema()
        self.empty = not found
        if found and found != _wanted(schema):
            raise OutputError(f"{self._shown} is not one of xaihub: its tables differ", hint="start a new run")
        # Pages that are used twice let a small file grow when it is read.
        if found and [row["quick_check"] for row in self.read("PRAGMA quick_check(1)")] != ["ok"]:
            raise OutputError(f"{self._shown} is damaged")
        if create and not found:
            with self.transaction():
                for statement in schema.split(";"):
                    self._db.execute(statement)

    def _schema(self) -> list[tuple[Any, ...]]:
        return sorted(map(tuple, self.read("SELECT type, name, tbl_name, coalesce(sql, '') AS sql FROM sqlite_master")))

    @property
    def _shown(self) -> str:
        return f"the run in {self._folder!r}"

    def close(self) -> None:
        """Close the file, also for readings that an error left unfinished: they would keep it locked."""
        for cursor in list(self._cursors):
            cursor.close()
        self._db.close()

    def execute(self, query: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        """Execute a statement inside a transaction."""
        return self._db.execute(query, tuple(values))

    def executemany(self, query: str, rows: Iterable[Iterable[Any]]) -> None:
        """Execute a statement per row inside a transaction."""
        self._db.executemany(query, map(tuple, rows))

    def insert(self, table: str, *, mode: str = "REPLACE", **row: Any) -> None:
        """Insert a row inside a transaction."""
        columns, marks = ", ".join(row), ", ".join("?" * len(row))
        self._db.execute(f"INSERT OR {mode} INTO {table} ({columns}) VALUES ({marks})", tuple(row.values()))  # noqa: S608

    def intern(self, table: str, **row: str) -> int:
        """Return the id of a row of a table of distinct texts; inside a transaction, it is added if it is missing."""
        place = (table, *row.values())
        if place not in self._interned:
            same = " AND ".join(f"{column} = ?" for column in row)
            query = f"SELECT id FROM {table} WHERE {same}"  # noqa: S608 - our own names
            found = self.one(query, *row.values())
            if found is None:
                self.insert(table, mode="ABORT", **row)
                found = self.one(query, *row.values())
            assert found is not None  # noqa: S101 - inserted above
            if len(self._interned) >= INTERNED:
                return int(found["id"])
            self._interned[place] = int(found["id"])
        return self._interned[place]

    def read(self, query: str, *values: Any) -> Iterator[sqlite3.Row]:
        """Yield rows whose columns have the types of `_COLUMNS`, and whose keys are digests.

        Raises:
            OutputError: The file is damaged or cannot be read, or a value has another type.
        """
        with self._guard("read"):
            cursor = self._db.execute(query, values)
            self._cursors.add(cursor)
            names = [column[0] for column in cursor.description]
            types, place = [_COLUMNS[name] for name in names], names.index("key") if "key" in names else None
            for row in cursor:
                if not all(map(isinstance, row, types)) or (place is not None and not KEY.fullmatch(row[place])):
                    raise self.damaged()
                yield row

    def numbers(self, query: str, *values: Any) -> Iterator[np.ndarray]:
        """Yield blocks of rows as (rows, columns) float64 arrays, with NaN for NULL.

        Raises:
            OutputError: The file is damaged or cannot be read, or a value is not a finite number.
        """
        import numpy as np

        with self._guard("read"):
            cursor = self._db.execute(query, values)
            self._cursors.add(cursor)
            cursor.row_factory = None
            while rows := cursor.fetchmany(BLOCK):
                try:
                    block = np.array(rows, dtype=float)
                except (TypeError, ValueError) as error:
                    raise self.damaged() from error
                if np.isinf(block).any():
                    raise self.damaged("a value is not finite")
                yield block

    def one(self, query: str, *values: Any) -> sqlite3.Row | None:
        """Return the first row, or None; raises as `read`."""
        return next(self.read(query, *values), None)

    def damaged(self, reason: str = "a value has a wrong type") -> OutputError:
        """Return the error for content that xaihub cannot have written."""
        return OutputError(f"{self._shown} is damaged: {reason}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything inside as a whole, or nothing; may be nested.

        Raises:
            OutputError: The disk is full, or the file is damaged or cannot be written.
        """
        if self._db.in_transaction:  # it is part of one that is open
            yield
            return
        with self._guard("write"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._interned.clear()
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _guard(self, verb: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            hint = "free some space and resume" if "full" in str(error) or "disk I/O" in str(error) else ""
            raise OutputError(f"cannot {verb} {self._shown}: {error}", hint=hint) from error
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            raise OutputError(f"{self._shown} is damaged: {error}") from error
        except OSError as error:
            raise OutputError(f"cannot {verb} {self._shown}: {error.strerror}") from error


def _wanted(schema: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(":memory:") as fresh:
        fresh.executescript(schema)
        found = fresh.execute("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master").fetchall()
    fresh.close()
    return sorted(found)


def _refuse_links(file: Path) -> None:
    """Refuse what would make SQLite write to or delete other files: links, and a journal that names a further one."""
    beside = [file.with_name(f"{file.name}{suffix}") for suffix in ("", "-wal", "-shm", "-journal")]
    for one in beside:
        if one.is_symlink() or (one.exists() and not one.is_file()):
            raise OutputError(f"cannot open the run in {str(file.parent)!r}: {one.name!r} is not a regular file")
    with suppress(FileNotFoundError), beside[-1].open("rb") as journal:
        journal.seek(max(0, os.fstat(journal.fileno()).st_size - len(_SUPER_JOURNAL)))
        if journal.read() == _SUPER_JOURNAL:
            raise OutputError(f"cannot open the run in {str(file.parent)!r}: {beside[-1].name!r} is not of xaihub")


def _connected(file: Path, *, readable: bool) -> sqlite3.Connection:
    """Open a run's file; one in a read-only folder as immutable, since no journal can be written there."""
    if not readable:
        return sqlite3.connect(file, isolation_level=None, timeout=30)
    unsaved = file.with_name(f"{file.name}-wal")
    if unsaved.is_file() and unsaved.stat().st_size:
        raise OutputError(
            f"the run in {str(file.parent)!r} is read-only and has an unmerged write-ahead log",
            hint="copy it to a writable folder",
        )
    address = f"file:{quote(str(file.resolve()))}?immutable=1"
    return sqlite3.connect(address, uri=True, isolation_level=None, timeout=30)
