"""The store of a run: one SQLite file for records, one safetensors file per map.

Everything is keyed by what it depends on, so each explanation and each score is computed once, whatever interrupts the
run. A record is committed as a whole or not at all; a map's file is renamed into place before the record that names it
is committed. Results of earlier settings stay in the file and reappear when the run returns to those settings;
`current` marks what the present plan asks for, and only that is shown.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
from filelock import FileLock, Timeout

from xaihub.errors import OutputError
from xaihub.evaluation.config import Config
from xaihub.evaluation.results import Key, Score, ScoreKey, ScoreRow
from xaihub.records import canonical

if TYPE_CHECKING:
    import pandas as pd

    from xaihub.explainers.explanation import Explanation


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
SELECT e.image, e.model, e.explainer, e.parameters AS explainer_parameters, e.control = 1 AS control, s.metric,
       s.parameters AS metric_parameters, s.value, s.curve, s.details, s.forward_passes, s.backward_passes, s.seconds,
       coalesce(e.error, s.error) AS error, e.key, coalesce(e.record, '{}') AS record
FROM scores s JOIN explanations e ON e.key = s.key
WHERE s.current AND e.current
ORDER BY e.model, s.metric, s.parameters, e.explainer, e.parameters, e.image
"""

_JSON = ("explainer_parameters", "metric_parameters", "curve", "details", "record")

# At most one record per combination of these columns is shown.
_SLOTS = {"explanations": "image, model, explainer, parameters", "scores": "key, metric, parameters"}


class RunStore:
    """A run on disk; any number of processes may read it while one writes."""

    def __init__(self, folder: str | Path, *, create: bool = False) -> None:
        """Open the run in `folder`, or create one.

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
            raise OutputError(f"there is no run in {str(self.folder)!r}", hint="it was interrupted before it began")
        if create:
            with self._transaction():
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._insert("meta", mode="IGNORE", name="format", value=str(FORMAT))
        with self._guard():
            if self._meta("format") != str(FORMAT):
                message = f"the run in {str(self.folder)!r} was written by another version of xaihub"
                raise OutputError(message, hint="read it with that version, or start a new run")
            # A run without a configuration was killed while it was created, and may be created again.
            if create and self._meta("config") is not None:
                raise OutputError(
                    f"there is already a run in {str(self.folder)!r}", hint=f"continue it: --resume {self.folder}"
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
        """Lock the run for one writer, and delete what a killed one left behind.

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
    def config(self) -> Config:
        """The configuration that the run was last started with.

        Raises:
            OutputError: It is missing or damaged.
        """
        try:
            return msgspec.json.decode(self._meta("config") or "{}", type=Config)
        except msgspec.DecodeError as error:
            raise OutputError(f"the configuration of the run in {str(self.folder)!r} is damaged: {error}") from error

    def set_config(self, config: Config) -> None:
        """Store the run's configuration."""
        with self._transaction():
            self._insert("meta", name="config", value=canonical(msgspec.to_builtins(config)))

    def add_image(self, source: str, position: int, *, sha256: str | None, error: str | None = None) -> None:
        """Store an image of the run, or the reason why it cannot be evaluated."""
        with self._transaction():
            self._insert("images", source=source, sha256=sha256, position=position, error=error)

    def failed_images(self) -> dict[str, str]:
        """Return the images that cannot be evaluated, with the reasons."""
        rows = self._db.execute("SELECT source, error FROM images WHERE error IS NOT NULL ORDER BY position")
        return {row["source"]: row["error"] for row in rows}

    def has_explanation(self, key: Key, *, retry: bool) -> bool:
        """Whether an explanation is stored; with `retry` a failed one counts as missing."""
        row = self._db.execute("SELECT error FROM explanations WHERE key = ?", (key.digest,)).fetchone()
        return row is not None and not (retry and row["error"])

    def missing_scores(self, key: Key, wanted: Sequence[ScoreKey], *, retry: bool) -> list[ScoreKey]:
        """Return the scores of an explanation that are not stored; with `retry` also those that failed."""
        rows = self._db.execute("SELECT metric, parameters, basis, error FROM scores WHERE key = ?", (key.digest,))
        done = {tuple(row)[:3] for row in rows if not (retry and row["error"])}
        return [score for score in wanted if score not in done]

    def show_scores(self, wanted: Mapping[str, Sequence[ScoreKey]]) -> None:
        """Of each image and (metric, parameters) show only the score with the wanted basis.

        Of images that are not named, scores that depend on other images or on masks are not shown.
        """
        bases = {source: {(one.metric, one.parameters): one.basis for one in keys} for source, keys in wanted.items()}
        changes = []
        for row in self._db.execute(
            "SELECT s.current, s.key, s.metric, s.parameters, s.basis, e.image"
            " FROM scores s JOIN explanations e ON e.key = s.key"
        ):
            named = bases.get(row["image"])
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
        """Of each (image, explainer, parameters) of a model show only the explanation with the wanted digest.

        The others were made with another seed, target or version. A wanted explanation is moved to the image's present
        path.
        """
        slots = set(wanted.values())
        changes = []
        rows = self._db.execute(
            "SELECT key, image, explainer, parameters, current FROM explanations WHERE model = ?", (model,)
        )
        for row in rows:
            slot = (row["image"], row["explainer"], row["parameters"])
            source = wanted[row["key"]][0] if row["key"] in wanted else row["image"]
            current = row["key"] in wanted or (slot not in slots and bool(row["current"]))
            if (source, current) != (row["image"], bool(row["current"])):
                changes.append((source, current, row["key"]))
        with self._transaction():
            self._db.executemany("UPDATE explanations SET image = ?, current = ? WHERE key = ?", changes)

    def add_explanation(self, key: Key, source: str, explanation: Explanation | None, error: str | None = None) -> None:
        """Store an explanation, or the reason why there is none.

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
            self._insert(
                "explanations",
                key=key.digest,
                image=source,
                model=key.model,
                explainer=key.explainer,
                parameters=canonical(key.parameters),
                control=key.control,
                record=record,
                error=error,
                current=1,
            )

    def explanation(self, key: Key) -> Explanation | None:
        """Return a stored explanation; None if it is missing or failed, or if its map's file is lost."""
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

    def add_score(self, key: Key, score: Score) -> None:
        """Store a score of an explanation; one with another basis is no longer shown."""
        curve = None if score.curve is None else canonical([[float(v) for v in axis] for axis in score.curve])
        packed = {"key": key.digest, "details": canonical(score.details), "curve": curve, "current": 1}
        with self._transaction():
            self._db.execute(
                "UPDATE scores SET current = 0 WHERE key = ? AND metric = ? AND parameters = ?",
                (key.digest, score.key.metric, score.key.parameters),
            )
            self._insert("scores", **{**vars(score), **score.key._asdict(), **packed})

    def rows(self) -> list[ScoreRow]:
        """Return every shown score with the explanation it belongs to, in a fixed order."""
        with self._guard():
            found = [dict(row) for row in self._db.execute(_ROWS)]
        return [ScoreRow(**{**row, **{name: json.loads(row[name] or "null") for name in _JSON}}) for row in found]

    def frame(self) -> pd.DataFrame:
        """Return the scores as a pandas data frame, one row per score."""
        import pandas as pd

        return pd.DataFrame([row.flat() for row in self.rows()])

    def absorb(self, *others: RunStore) -> int:
        """Copy every record and map of other runs into this one, and hide conflicting results.

        A result takes precedence over a failure, whichever run it came from. Hidden until a plan asks for them are
        scores of one map with different bases, explanations of one image with different seeds, targets or versions,
        and, if the runs have different images, scores that depend on the other images.

        Returns:
            The number of hidden scores.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        from xaihub.files import write_file

        images = {tuple(run._images()) for run in (self, *others)} - {()}
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
            if len(images) > 1:
                self._db.execute("""UPDATE scores SET current = 0 WHERE basis LIKE '%"pool":%'""")
            after = self._db.execute(f"SELECT count(*) FROM ({_ROWS})").fetchone()[0]  # noqa: S608
        return int(before - after)

    def _copy(self, other: RunStore, table: str) -> None:
        """Copy a table's rows: a failure never replaces a row of ours, a result always does."""
        for row in other._db.execute(f"SELECT * FROM {table}").fetchall():  # noqa: S608 - our own names
            self._insert(table, mode="IGNORE" if row["error"] else "REPLACE", **dict(row))

    def _insert(self, table: str, *, mode: str = "REPLACE", **row: Any) -> None:
        columns, marks = ", ".join(row), ", ".join("?" * len(row))
        self._db.execute(f"INSERT OR {mode} INTO {table} ({columns}) VALUES ({marks})", tuple(row.values()))  # noqa: S608

    def _images(self) -> list[str | None]:
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
