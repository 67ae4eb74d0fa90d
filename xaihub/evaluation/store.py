"""The store of a run: one SQLite file for records, one safetensors file per map.

Everything is keyed by what it depends on, so each explanation and each score is computed once, whatever interrupts the
run. A record is committed as a whole or not at all; a map's file is renamed into place before the record that names it
is committed. Results of earlier settings stay in the file and reappear when the run returns to those settings;
`current` marks what the present plan asks for, and only that is shown.
"""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from xaihub.errors import OutputError
from xaihub.evaluation.config import Config
from xaihub.evaluation.database import KEY, Database
from xaihub.evaluation.results import Key, Score, ScoreKey, ScoreRow
from xaihub.files import check_file, decoding, locked, read_packed, write_file
from xaihub.records import canonical
from xaihub.specs import Origin

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


_Passes = Annotated[float, msgspec.Meta(ge=0, le=1e15)]


class _Class(msgspec.Struct):
    index: int


class _Record(msgspec.Struct):
    forward_passes: _Passes | msgspec.UnsetType = msgspec.UNSET
    backward_passes: _Passes | msgspec.UnsetType = msgspec.UNSET
    target: _Class | msgspec.UnsetType = msgspec.UNSET
    predicted: _Class | msgspec.UnsetType = msgspec.UNSET


class _Parts(msgspec.Struct):
    """What is read of the JSON columns."""

    explainer_parameters: dict[str, Any]
    metric_parameters: dict[str, Any]
    curve: tuple[list[float], list[float]] | None
    details: dict[str, Any] | None
    record: _Record


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
        if not create and (self.folder / MAPS).is_symlink():
            raise OutputError(f"cannot open the run in {str(folder)!r}: {MAPS!r} is a link")
        try:
            if create:
                (self.folder / MAPS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write the run in {str(folder)!r}: {error.strerror}") from error
        self._db = Database(self.folder, file, _SCHEMA, create=create)
        try:
            self._check(create=create)
        except BaseException:
            self._db.close()
            raise

    def _check(self, *, create: bool) -> None:
        if not create and self._db.empty:
            raise OutputError(f"there is no run in {str(self.folder)!r}", hint="it was interrupted before it began")
        if create:
            with self._db.transaction():
                self._db.insert("meta", mode="IGNORE", name="format", value=str(FORMAT))
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
        with locked(self.folder, busy=f"another process is writing to the run in {str(self.folder)!r}"):
            for folder in (self.folder / MAPS).glob("[0-9a-f][0-9a-f]"):
                for leftover in () if folder.is_symlink() else folder.glob(".*"):
                    leftover.unlink(missing_ok=True)
            yield

    @property
    def config(self) -> Config:
        """The configuration that the run was last started with.

        Raises:
            OutputError: It is missing or damaged.
        """
        with decoding(OutputError(f"the configuration of the run in {str(self.folder)!r} is damaged")):
            return msgspec.json.decode(self._meta("config") or "{}", type=Config)

    def set_config(self, config: Config) -> None:
        """Store the run's configuration."""
        with self._db.transaction():
            self._db.insert("meta", name="config", value=canonical(msgspec.to_builtins(config)))

    @property
    def origins(self) -> dict[str, Origin]:
        """The plugins of third parties that made its results, by "explainers/NAME" and "metrics/NAME".

        Raises:
            OutputError: They are damaged.
        """
        with decoding(OutputError(f"the plugins of the run in {str(self.folder)!r} are damaged")):
            return msgspec.json.decode(self._meta("origins") or "{}", type=dict[str, Origin])

    def add_origins(self, *found: Mapping[str, Origin]) -> None:
        """Store which plugins make its results; the last of several wins."""
        known = {name: origin.record() for part in (self.origins, *found) for name, origin in part.items()}
        with self._db.transaction():
            self._db.insert("meta", name="origins", value=canonical(known))

    def add_image(self, source: str, position: int, *, sha256: str | None, error: str | None = None) -> None:
        """Store an image of the run, or the reason why it cannot be evaluated."""
        with self._db.transaction():
            self._db.insert("images", source=source, sha256=sha256, position=position, error=error)

    def failed_images(self) -> dict[str, str]:
        """Return the images that cannot be evaluated, with the reasons."""
        rows = self._db.read("SELECT source, error FROM images WHERE error IS NOT NULL ORDER BY position")
        return {row["source"]: row["error"] for row in rows}

    def images(self) -> dict[str, str]:
        """Return the images of the run in order, each with the checksum of its file ("" if it could not be read)."""
        rows = self._db.read("SELECT source, sha256 FROM images ORDER BY position, source")
        return {row["source"]: row["sha256"] or "" for row in rows}

    def has_explanation(self, key: Key, *, retry: bool) -> bool:
        """Whether an explanation is stored; with `retry` a failed one counts as missing."""
        row = self._db.one("SELECT error FROM explanations WHERE key = ?", key.digest)
        return row is not None and not (retry and row["error"])

    def missing_scores(self, key: Key, wanted: Sequence[ScoreKey], *, retry: bool) -> list[ScoreKey]:
        """Return the scores of an explanation that are not stored; with `retry` also those that failed."""
        rows = self._db.read("SELECT metric, parameters, basis, error FROM scores WHERE key = ?", key.digest)
        done = {tuple(row)[:3] for row in rows if not (retry and row["error"])}
        return [score for score in wanted if score not in done]

    def show_scores(self, wanted: Mapping[str, Sequence[ScoreKey]]) -> None:
        """Of each image and (metric, parameters) show only the score with the wanted basis.

        Of images that are not named, scores that depend on other images or on masks are not shown.
        """
        bases = {source: {(one.metric, one.parameters): one.basis for one in keys} for source, keys in wanted.items()}
        changes = []
        for row in self._db.read(
            "SELECT s.current, s.key, s.metric, s.parameters, s.basis, e.image"
            " FROM scores s JOIN explanations e ON e.key = s.key"
        ):
            named = bases.get(row["image"])
            if named is None:
                current = bool(row["current"]) and not {"truth", "pool"} & set(self._parsed(row["basis"]) or ())
            else:
                basis = named.get((row["metric"], row["parameters"]))
                current = bool(row["current"]) if basis is None else row["basis"] == basis
            if current != bool(row["current"]):
                changes.append((current, *tuple(row)[1:5]))
        with self._db.transaction():
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
        rows = self._db.read(
            "SELECT key, image, explainer, parameters, current FROM explanations WHERE model = ?", model
        )
        for row in rows:
            slot = (row["image"], row["explainer"], row["parameters"])
            source = wanted[row["key"]][0] if row["key"] in wanted else row["image"]
            current = row["key"] in wanted or (slot not in slots and bool(row["current"]))
            if (source, current) != (row["image"], bool(row["current"])):
                changes.append((source, current, row["key"]))
        with self._db.transaction():
            self._db.executemany("UPDATE explanations SET image = ?, current = ? WHERE key = ?", changes)

    def add_explanation(self, key: Key, source: str, explanation: Explanation | None, error: str | None = None) -> None:
        """Store an explanation, or the reason why there is none.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        from safetensors.torch import save

        record = None
        if explanation is not None:
            packed = save(explanation.tensors())
            write_file(self._map_file(key.digest), packed)
            record = canonical(explanation.to_dict())
        with self._db.transaction():
            self._db.insert(
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

    def explanation(self, key: Key | str) -> Explanation | None:
        """Return a stored explanation by key or digest; None if it is missing or failed, or its map lost or damaged."""
        from xaihub.explainers.explanation import Explanation

        digest = key if isinstance(key, str) else key.digest
        row = self._db.one("SELECT record FROM explanations WHERE key = ?", digest)
        if row is None or row["record"] is None:
            return None
        lost = OutputError(f"the map of {digest} is lost")
        try:
            with decoding(lost):
                tensors, _ = read_packed(self._map_file(digest), what="map", refusal=lost)
                return Explanation.from_dict(json.loads(row["record"]), tensors)
        except OutputError:
            return None

    def add_score(self, key: Key, score: Score) -> None:
        """Store a score of an explanation; one with another basis is no longer shown."""
        curve = None if score.curve is None else canonical([[float(v) for v in axis] for axis in score.curve])
        packed = {"key": key.digest, "details": canonical(score.details), "curve": curve, "current": 1}
        with self._db.transaction():
            self._db.execute(
                "UPDATE scores SET current = 0 WHERE key = ? AND metric = ? AND parameters = ?",
                (key.digest, score.key.metric, score.key.parameters),
            )
            self._db.insert("scores", **{**vars(score), **score.key._asdict(), **packed})

    def rows(self) -> list[ScoreRow]:
        """Return every shown score with the explanation it belongs to, in a fixed order."""
        return [ScoreRow(**{**dict(row), **self._parts(row)}) for row in self._db.read(_ROWS)]

    def _parts(self, row: sqlite3.Row) -> dict[str, Any]:
        """Return the JSON columns of a row, and check what tables and charts read of it."""
        found = {name: self._parsed(row[name]) for name in _JSON}
        try:
            parts = msgspec.convert(found, type=_Parts)
            x, y = parts.curve or ([0.0], [0.0])
            numbers = [row["value"] or 0.0, row["seconds"], *x, *y]
            if isinstance(row["value"], str) or not all(map(math.isfinite, numbers)) or not len(x) == len(y) > 0:
                raise self._db.damaged()
        except (msgspec.ValidationError, OverflowError) as error:
            raise self._db.damaged(str(error)) from error
        return found

    def _parsed(self, text: str | None) -> Any:
        with decoding(self._db.damaged("a value is not JSON")):
            found = json.loads(text or "null")
            if "\\ud" in (text or "").lower():  # half of a surrogate pair is no text
                canonical(found).encode()
        return found

    def frame(self) -> pd.DataFrame:
        """Return the scores as a pandas data frame, one row per score."""
        import pandas as pd

        return pd.DataFrame([row.flat() for row in self.rows()])

    def absorb(self, *others: RunStore) -> int:
        """Copy every record and map of other runs into this one, and hide conflicting results.

        A result takes precedence over a failure, whichever run it came from. Three kinds of rows are hidden until a
        plan contains them: scores of one map with different bases; explanations of one image with different seeds,
        targets or versions; and, if the runs have different images, scores that depend on the other images.

        Returns:
            The number of hidden scores.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        images = {tuple(run.images().values()) for run in (self, *others)} - {()}
        for other in others:
            for row in other._db.read("SELECT key FROM explanations WHERE record IS NOT NULL"):
                theirs, ours = other._map_file(row["key"]), self._map_file(row["key"])
                if theirs.exists() and not ours.exists():
                    check_file(theirs, what="map", error=OutputError, limit=2**28)
                    write_file(ours, partial(shutil.copyfile, theirs))
        with self._db.transaction():
            for other in others:
                for name in ("images", "explanations", "scores"):
                    self._copy(other, name)
            before = self._count()
            for table, slot in _SLOTS.items():
                several = [*self._db.read(
                    f"SELECT {slot} FROM {table} WHERE current GROUP BY {slot} HAVING count(*) > 1"  # noqa: S608
                )]  # fmt: skip
                same = " AND ".join(f"{column} = ?" for column in slot.split(", "))
                self._db.executemany(f"UPDATE {table} SET current = 0 WHERE {same}", several)  # noqa: S608
            if len(images) > 1:
                self._db.execute("""UPDATE scores SET current = 0 WHERE basis LIKE '%"pool":%'""")
            after = self._count()
        self.add_origins(*(other.origins for other in others))
        return before - after

    def _count(self) -> int:
        row = self._db.one(f"SELECT count(*) AS count FROM ({_ROWS})")  # noqa: S608 - our own query
        return int(row["count"]) if row else 0

    def _copy(self, other: RunStore, table: str) -> None:
        """Copy a table's rows: a failure never replaces a row of ours, a result always does."""
        for row in [*other._db.read(f"SELECT * FROM {table}")]:  # noqa: S608 - our own names
            self._db.insert(table, mode="IGNORE" if row["error"] else "REPLACE", **dict(row))

    def _map_file(self, digest: str) -> Path:
        folder = self.folder / MAPS / digest[:2]
        if not KEY.fullmatch(digest) or folder.is_symlink():
            raise self._db.damaged(f"{digest[:70]!r} is not the key of a map in its own folder")
        return folder / f"{digest}.safetensors"

    def _meta(self, name: str) -> str | None:
        row = self._db.one("SELECT value FROM meta WHERE name = ?", name)
        return None if row is None else str(row["value"])
