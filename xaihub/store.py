"""The store of an evaluation run: one SQLite file for records, one safetensors file a map.

Everything is addressed by what it depends on, so an explanation is made once and a score measured once, whatever
interrupts the run. A record is committed wholly or not at all; a map's file is renamed into place before the record
that names it is committed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from xaihub.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd

    from xaihub.explanation import Explanation

__all__ = ["Key", "RunStore", "ScoreRow", "canonical"]

FORMAT = 1
DATABASE = "run.sqlite"
MAPS = "maps"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pictures (
    source TEXT PRIMARY KEY, sha256 TEXT, position INTEGER NOT NULL, error TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS explanations (
    key TEXT PRIMARY KEY, picture TEXT NOT NULL, model TEXT NOT NULL, explainer TEXT NOT NULL,
    parameters TEXT NOT NULL, control INTEGER NOT NULL, record TEXT, error TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scores (
    key TEXT NOT NULL, metric TEXT NOT NULL, parameters TEXT NOT NULL, value REAL, details TEXT, curve TEXT,
    forwards INTEGER NOT NULL, backwards INTEGER NOT NULL, seconds REAL NOT NULL, error TEXT,
    PRIMARY KEY (key, metric, parameters)) WITHOUT ROWID;
"""

_ROWS = """
SELECT e.picture, e.model, e.explainer, e.parameters AS explainer_parameters, e.control, s.metric,
       s.parameters AS metric_parameters, s.value, s.curve, s.details, s.forwards, s.backwards, s.seconds,
       coalesce(e.error, s.error) AS error, e.key, e.record
FROM scores s JOIN explanations e ON e.key = s.key
ORDER BY e.model, s.metric, s.parameters, e.explainer, e.parameters, e.picture
"""


@dataclass(frozen=True, kw_only=True)
class Key:
    """What an explanation depends on; equal keys mean equal values.

    Attributes:
        picture: The sha256 of the picture's file.
        model: The model's name, for reading only.
        weights: The hash of the weights.
        preprocessing: The model's preprocessing settings.
        explainer: The explainer's name.
        parameters: Its parameters.
        target: The target as asked for.
        seed: The seed.
        code: The versions of xaihub and of the plugin that made it.
        control: The explainer is a control, not a method.
    """

    picture: str
    model: str
    weights: str
    preprocessing: Mapping[str, Any]
    explainer: str
    parameters: Mapping[str, Any]
    target: str
    seed: int
    code: str
    control: bool = False

    @property
    def digest(self) -> str:
        """The sha256 over all but the model's name."""
        parts = {name: value for name, value in self.__dict__.items() if name not in ("model", "control")}
        return hashlib.sha256(canonical(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One score of one explanation."""

    picture: str
    model: str
    explainer: str
    explainer_parameters: Mapping[str, Any]
    control: bool
    metric: str
    metric_parameters: Mapping[str, Any]
    value: float | None
    curve: Any
    details: Mapping[str, Any]
    forwards: int
    backwards: int
    seconds: float
    error: str | None
    key: str
    record: Mapping[str, Any]


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
            self._db = sqlite3.connect(file, isolation_level=None, timeout=30)
        try:
            self._open(create=create)
        except BaseException:
            self._db.close()
            raise

    def _open(self, *, create: bool) -> None:
        self._db.row_factory = sqlite3.Row
        with self._guard():
            self._db.execute("PRAGMA journal_mode = WAL")
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
                raise OutputError(f"the run in {str(self.folder)!r} was written by another version of xaihub")
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

    def add_picture(self, source: str, position: int, *, sha256: str | None, error: str | None = None) -> None:
        """Note a picture of the run, or why it cannot be read."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?)", (source, sha256, position, error))

    def failed_pictures(self) -> dict[str, str]:
        """Return the pictures that cannot be read, with the reasons."""
        rows = self._db.execute("SELECT source, error FROM pictures WHERE error IS NOT NULL ORDER BY position")
        return {row["source"]: row["error"] for row in rows}

    def has_explanation(self, key: Key, *, retry: bool) -> bool:
        """Tell whether an explanation is stored; with `retry` a failed one counts as missing."""
        row = self._db.execute("SELECT error FROM explanations WHERE key = ?", (key.digest,)).fetchone()
        return row is not None and not (retry and row["error"])

    def missing_scores(self, key: Key, wanted: Iterable[tuple[str, str]], *, retry: bool) -> list[tuple[str, str]]:
        """Return which of the (metric, parameters) pairs have no score yet; with `retry` failed ones as well."""
        rows = self._db.execute("SELECT metric, parameters, error FROM scores WHERE key = ?", (key.digest,))
        done = {(row["metric"], row["parameters"]) for row in rows if not (retry and row["error"])}
        return [pair for pair in wanted if pair not in done]

    def add_explanation(self, key: Key, source: str, explanation: Explanation | None, error: str | None = None) -> None:
        """Store an explanation, or why there is none.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        from safetensors.torch import save

        from xaihub.explanation import write_file

        record = None
        if explanation is not None:
            packed = save(explanation.tensors())
            write_file(self._map_file(key.digest), lambda file: file.write_bytes(packed))
            record = canonical(explanation.to_dict())
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO explanations VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (key.digest, source, key.model, key.explainer, canonical(key.parameters), key.control, record, error),
            )

    def explanation(self, key: Key) -> Explanation | None:
        """Return a stored explanation, or None if it is missing, failed, or its map's file is lost."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        from xaihub.explanation import Explanation

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
        value: float | None = None,
        details: Mapping[str, Any] | None = None,
        curve: Any = None,
        forwards: int = 0,
        backwards: int = 0,
        seconds: float = 0.0,
        error: str | None = None,
    ) -> None:
        """Store one score, or why there is none."""
        packed = None if curve is None else canonical([[float(v) for v in axis] for axis in curve])
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    key.digest,
                    metric,
                    parameters,
                    value,
                    canonical(details or {}),
                    packed,
                    forwards,
                    backwards,
                    seconds,
                    error,
                ),
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

    def absorb(self, other: RunStore) -> None:
        """Copy every record and map of another run into this one; what is here already stays.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        from xaihub.explanation import write_file

        for row in other._db.execute("SELECT key FROM explanations WHERE record IS NOT NULL"):
            theirs, ours = other._map_file(row["key"]), self._map_file(row["key"])
            if theirs.is_file() and not ours.exists():
                write_file(ours, partial(shutil.copyfile, theirs))
        with self._transaction():
            for name in ("pictures", "explanations", "scores"):
                rows = [tuple(row) for row in other._db.execute(f"SELECT * FROM {name}")]  # noqa: S608 - our own names
                if rows:
                    marks = ", ".join("?" * len(rows[0]))
                    # A result is better than a failure, whichever run it came from.
                    fresh = f"INSERT OR IGNORE INTO {name} VALUES ({marks})"  # noqa: S608
                    self._db.executemany(fresh, rows)
                    better = [row for row in rows if row[_error_column(other._db, name)] is None]
                    self._db.executemany(f"INSERT OR REPLACE INTO {name} VALUES ({marks})", better)  # noqa: S608

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


def _error_column(database: sqlite3.Connection, table: str) -> int:
    names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    return names.index("error")


def canonical(value: Any) -> str:
    """Return a value as JSON in one fixed form, fit for comparing and hashing."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
