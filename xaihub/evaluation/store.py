"""The store of an evaluation run: one SQLite file for records, one safetensors file a map.

Everything is addressed by what it depends on, so an explanation is made once and a score measured once, whatever
interrupts the run. A record is committed wholly or not at all; a map's file is renamed into place before the record
that names it is committed. Results of earlier settings stay in the file, and are shown again when the run goes back to
them; `current` marks what the present plan asks for, and nothing else is shown.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from filelock import FileLock, Timeout

from xaihub.errors import OutputError
from xaihub.evaluation.results import Key, ScoreRow
from xaihub.records import canonical

if TYPE_CHECKING:
    import pandas as pd

    from xaihub.explainers.explanation import Explanation

__all__ = ["Key", "RunStore", "ScoreRow"]

FORMAT = 2
DATABASE = "run.sqlite"
MAPS = "maps"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS images (
    source TEXT PRIMARY KEY, sha256 TEXT, position INTEGER NOT NULL, error TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS explanations (
    key TEXT PRIMARY KEY, image TEXT NOT NULL, model TEXT NOT NULL, explainer TEXT NOT NULL,
    parameters TEXT NOT NULL, control INTEGER NOT NULL, record TEXT, error TEXT,
    current INTEGER NOT NULL DEFAULT 1) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scores (
    key TEXT NOT NULL, metric TEXT NOT NULL, parameters TEXT NOT NULL, basis TEXT NOT NULL, value REAL, details TEXT,
    curve TEXT, forward_passes INTEGER NOT NULL, backward_passes INTEGER NOT NULL, seconds REAL NOT NULL, error TEXT,
    current INTEGER NOT NULL DEFAULT 1, PRIMARY KEY (key, metric, parameters, basis)) WITHOUT ROWID;
"""

_ROWS = """
SELECT e.image, e.model, e.explainer, e.parameters AS explainer_parameters, e.control, s.metric,
       s.parameters AS metric_parameters, s.value, s.curve, s.details, s.forward_passes, s.backward_passes, s.seconds,
       coalesce(e.error, s.error) AS error, e.key, e.record
FROM scores s JOIN explanations e ON e.key = s.key
WHERE s.current AND e.current
ORDER BY e.model, s.metric, s.parameters, e.explainer, e.parameters, e.image
"""

# What at most one record that is shown may hold, in each table.
_SLOTS = {"explanations": "image, model, explainer, parameters", "scores": "key, metric, parameters"}


class RunStore:
    """An evaluation run on disk; any number of readers may look while one process writes."""

    def __init__(self, folder: str | Path, *, create: bool = False) -> None:
        """Open the run in `folder`, or make a new one.

        Raises:
            OutputError: There is no run (or, with `create`, there is one), it is damaged, or cannot be written.
        """
        self.folder = Path(folder)
        file = self.folder / DATABASE
        if not create and not file.is_file():
            raise OutputError(f"there is no run in {str(folder)!r}")
        with self._guard():
            if create:
                (self.folder / MAPS).mkdir(parents=True, exist_ok=True)
            self._db = _connected(file, readable=not create and not os.access(self.folder, os.W_OK))
        try:
            self._open(create=create)
        except BaseException:
            self._db.close()
            raise

    def _open(self, *, create: bool) -> None:
        self._db.row_factory = sqlite3.Row
        with self._guard():
            if create:
                self._db.execute("PRAGMA journal_mode = WAL")  # remembered in the file
            self._db.execute("PRAGMA synchronous = NORMAL")
            known = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not create and not known:
            raise OutputError(f"there is no run in {str(self.folder)!r}", hint="it was stopped before it began")
        if create:
            with self._transaction():
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (str(FORMAT),))
        with self._guard():
            if self._meta("format") != str(FORMAT):
                message = f"the run in {str(self.folder)!r} was written by another version of xaihub"
                raise OutputError(message, hint="read it with that version, or start a new run")
            # A run without a plan was killed while it was made; it may be made again.
            if create and self._meta("config") is not None:
                raise OutputError(
                    f"there is a run in {str(self.folder)!r} already", hint=f"continue it: --resume {self.folder}"
                )

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> RunStore:
        """Return the store itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run for one writer, and clear what a killed one left behind.

        Raises:
            OutputError: Another process is writing to it.
        """
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise OutputError(f"another process is writing to the run in {str(self.folder)!r}") from error
        except OSError as error:
            raise OutputError(f"cannot write to {str(self.folder)!r}: {error.strerror}") from error
        try:
            for leftover in (self.folder / MAPS).glob("*/.*"):
                leftover.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    @property
    def config(self) -> dict[str, Any]:
        """The run's plan, as it was last started with."""
        found: dict[str, Any] = json.loads(self._meta("config") or "{}")
        return found

    def set_config(self, config: Mapping[str, Any]) -> None:
        """Remember the run's plan."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('config', ?)", (canonical(config),))

    def add_image(self, source: str, position: int, *, sha256: str | None, error: str | None = None) -> None:
        """Note an image of the run, or why it cannot be read."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)", (source, sha256, position, error))

    def failed_images(self) -> dict[str, str]:
        """Return the images that cannot be read, with the reasons."""
        rows = self._db.execute("SELECT source, error FROM images WHERE error IS NOT NULL ORDER BY position")
        return {row["source"]: row["error"] for row in rows}

    def has_explanation(self, key: Key, *, retry: bool) -> bool:
        """Tell whether an explanation is stored; with `retry` a failed one counts as missing."""
        row = self._db.execute("SELECT error FROM explanations WHERE key = ?", (key.digest,)).fetchone()
        return row is not None and not (retry and row["error"])

    def missing_scores(
        self, key: Key, wanted: Iterable[tuple[str, str, str]], *, retry: bool
    ) -> list[tuple[str, str, str]]:
        """Return which (metric, parameters, basis) have no score yet; with `retry` failed ones as well."""
        rows = self._db.execute("SELECT metric, parameters, basis, error FROM scores WHERE key = ?", (key.digest,))
        done = {tuple(row)[:3] for row in rows if not (retry and row["error"])}
        return [score for score in wanted if score not in done]

    def show_scores(self, wanted: Mapping[str, Mapping[tuple[str, str], str]]) -> None:
        """Show only scores of the given basis, by image and by (metric, parameters).

        Of images that are not named, scores that look at other photos or at masks are not shown.
        """
        changes = []
        for row in self._db.execute(
            "SELECT s.current, s.key, s.metric, s.parameters, s.basis, e.image"
            " FROM scores s JOIN explanations e ON e.key = s.key"
        ):
            named = wanted.get(row["image"])
            if named is None:
                current = bool(row["current"]) and not {"truth", "pool"} & json.loads(row["basis"]).keys()
            else:
                basis = named.get((row["metric"], row["parameters"]))
                current = bool(row["current"]) if basis is None else row["basis"] == basis
            if current != bool(row["current"]):
                changes.append((current, *tuple(row)[1:5]))
        with self._transaction():
            self._db.executemany(
                "UPDATE scores SET current = ? WHERE key = ? AND metric = ? AND parameters = ? AND basis = ?", changes
            )

    def show_explanations(self, model: str, wanted: Mapping[str, tuple[str, str, str]]) -> None:
        """Of each (image, explainer, parameters) of a model show only the explanation of the given digest.

        Another explanation was made with another seed, target or version; one that is wanted belongs to the image's
        present path from now on.
        """
        slots = set(wanted.values())
        changes = []
        for row in self._db.execute("SELECT * FROM explanations WHERE model = ?", (model,)):
            slot = (row["image"], row["explainer"], row["parameters"])
            source = wanted[row["key"]][0] if row["key"] in wanted else row["image"]
            current = row["key"] in wanted or (slot not in slots and bool(row["current"]))
            if (source, current) != (row["image"], bool(row["current"])):
                changes.append((source, current, row["key"]))
        with self._transaction():
            self._db.executemany("UPDATE explanations SET image = ?, current = ? WHERE key = ?", changes)

    def add_explanation(self, key: Key, source: str, explanation: Explanation | None, error: str | None = None) -> None:
        """Store an explanation, or why there is none.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        from safetensors.torch import save

        from xaihub.files import write_file

        record = None
        if explanation is not None:
            packed = save(explanation.tensors())
            write_file(self._map_file(key.digest), packed)
            record = canonical(explanation.to_dict())
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO explanations VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1)",
                (key.digest, source, key.model, key.explainer, canonical(key.parameters), key.control, record, error),
            )

    def explanation(self, key: Key) -> Explanation | None:
        """Return a stored explanation, or None if it is missing, failed, or its map's file is lost."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        from xaihub.explainers.explanation import Explanation

        row = self._db.execute("SELECT record FROM explanations WHERE key = ?", (key.digest,)).fetchone()
        if row is None or row["record"] is None:
            return None
        try:
            return Explanation.from_dict(json.loads(row["record"]), load(self._map_file(key.digest).read_bytes()))
        except (OSError, SafetensorError, KeyError):
            return None

    def add_score(
        self,
        key: Key,
        metric: str,
        parameters: str,
        *,
        basis: str = "{}",
        value: float | None = None,
        details: Mapping[str, Any] | None = None,
        curve: Any = None,
        forward_passes: int = 0,
        backward_passes: int = 0,
        seconds: float = 0.0,
        error: str | None = None,
    ) -> None:
        """Store one score, or why there is none; `basis` says what it depends on beside map and parameters."""
        packed = None if curve is None else canonical([[float(v) for v in axis] for axis in curve])
        with self._transaction():
            slot = (key.digest, metric, parameters)
            self._db.execute("UPDATE scores SET current = 0 WHERE key = ? AND metric = ? AND parameters = ?", slot)
            row = (*slot, basis, value, canonical(details or {}), packed)
            self._db.execute(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
                (*row, forward_passes, backward_passes, seconds, error),
            )

    def rows(self) -> list[ScoreRow]:
        """Return every score with what it belongs to, in a fixed order."""
        with self._guard():
            found = self._db.execute(_ROWS).fetchall()
        return [
            ScoreRow(
                **{
                    **dict(row),
                    "control": bool(row["control"]),
                    "explainer_parameters": json.loads(row["explainer_parameters"]),
                    "metric_parameters": json.loads(row["metric_parameters"]),
                    "curve": json.loads(row["curve"]) if row["curve"] else None,
                    "details": json.loads(row["details"] or "{}"),
                    "record": json.loads(row["record"] or "{}"),
                }
            )
            for row in found
        ]

    def frame(self) -> pd.DataFrame:
        """Return the scores as a pandas data frame, one row a score."""
        import pandas as pd

        left_out = ("record", "curve", "details")
        return pd.DataFrame([{k: v for k, v in row.__dict__.items() if k not in left_out} for row in self.rows()])

    def absorb(self, *others: RunStore) -> int:
        """Copy every record and map of other runs into this one, and set aside what they disagree on.

        A result is better than a failure, whichever run it came from. Set aside, and shown when a plan asks for them,
        are scores of one map on a different basis, explanations of one image with a different seed, target or
        version, and, where the runs have different photos, scores that look at the other photos.

        Returns:
            The number of scores that are set aside.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        from xaihub.files import write_file

        photos = {tuple(run._photos()) for run in (self, *others)} - {()}
        for other in others:
            for row in other._db.execute("SELECT key FROM explanations WHERE record IS NOT NULL"):
                theirs, ours = other._map_file(row["key"]), self._map_file(row["key"])
                if theirs.is_file() and not ours.exists():
                    write_file(ours, partial(shutil.copyfile, theirs))
        with self._transaction():
            for other in others:
                for name in ("images", "explanations", "scores"):
                    self._copy(other, name)
            before = self._db.execute(f"SELECT count(*) FROM ({_ROWS})").fetchone()[0]  # noqa: S608 - our own query
            for table, slot in _SLOTS.items():
                several = self._db.execute(
                    f"SELECT {slot} FROM {table} WHERE current GROUP BY {slot} HAVING count(*) > 1"  # noqa: S608
                ).fetchall()
                same = " AND ".join(f"{column} = ?" for column in slot.split(", "))
                self._db.executemany(f"UPDATE {table} SET current = 0 WHERE {same}", map(tuple, several))  # noqa: S608
            if len(photos) > 1:
                self._db.execute("""UPDATE scores SET current = 0 WHERE basis LIKE '%"pool":%'""")
            after = self._db.execute(f"SELECT count(*) FROM ({_ROWS})").fetchone()[0]  # noqa: S608
        return int(before - after)

    def _copy(self, other: RunStore, table: str) -> None:
        rows = other._db.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - our own names
        marks = ", ".join("?" * len(rows[0])) if rows else ""
        for mode, chosen in (("IGNORE", rows), ("REPLACE", [row for row in rows if row["error"] is None])):
            statement = f"INSERT OR {mode} INTO {table} VALUES ({marks})"  # noqa: S608
            if chosen:
                self._db.executemany(statement, map(tuple, chosen))

    def _photos(self) -> list[str | None]:
        return [row["sha256"] for row in self._db.execute("SELECT sha256 FROM images ORDER BY position, source")]

    def _map_file(self, digest: str) -> Path:
        return self.folder / MAPS / digest[:2] / f"{digest}.safetensors"

    def _meta(self, name: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row["value"])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guard():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            hint = "free some space and resume" if "full" in str(error) or "disk I/O" in str(error) else ""
            raise OutputError(f"cannot write the run in {str(self.folder)!r}: {error}", hint=hint) from error
        except sqlite3.DatabaseError as error:
            raise OutputError(f"the run in {str(self.folder)!r} is damaged: {error}") from error
        except OSError as error:
            raise OutputError(f"cannot write the run in {str(self.folder)!r}: {error.strerror}") from error


def _connected(file: Path, *, readable: bool) -> sqlite3.Connection:
    """Open a run's file; one that is `readable` only, as it lies: its folder has no room for a journal of our own."""
    if not readable:
        return sqlite3.connect(file, isolation_level=None, timeout=30)
    unsaved = file.with_name(f"{file.name}-wal")
    if unsaved.is_file() and unsaved.stat().st_size:
        raise OutputError(
            f"{str(file.parent)!r} may only be read, and its last records were not put in order",
            hint="copy the folder to where you may write",
        )
    address = f"file:{quote(str(file.resolve()))}?immutable=1"
    return sqlite3.connect(address, uri=True, isolation_level=None, timeout=30)
