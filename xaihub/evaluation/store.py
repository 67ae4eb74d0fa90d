"""The store of a run: one SQLite file for records, one safetensors file per map.

Everything is keyed by what it depends on, so each explanation and each score is computed once, whatever interrupts the
run. A record is committed as a whole or not at all; a map's file is renamed into place before the record that names it
is committed. Results of earlier settings stay in the file and reappear when the run returns to those settings;
`current` marks what the present plan asks for, and only that is shown.

Scores are stored metric by metric, and texts that repeat are stored once, so that a leaderboard reads one metric at a
time and a score takes little more than its numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from xaihub.errors import OutputError
from xaihub.evaluation import reading, showing
from xaihub.evaluation.config import Config
from xaihub.evaluation.database import KEY, Database
from xaihub.evaluation.results import Key, Score, ScoreKey, ScoreRow
from xaihub.files import decoding, locked, read_packed, write_file
from xaihub.records import canonical
from xaihub.specs import Origin

if TYPE_CHECKING:
    import pandas as pd

    from xaihub.evaluation.maps import MapKind
    from xaihub.explainers.explanation import Explanation


T = TypeVar("T")
FORMAT = 3
DATABASE = "run.sqlite"
MAPS = "maps"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS images (
    source TEXT PRIMARY KEY, sha256 TEXT, position INTEGER NOT NULL, error TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS methods (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, parameters TEXT NOT NULL, UNIQUE (name, parameters));
CREATE TABLE IF NOT EXISTS bases (id INTEGER PRIMARY KEY, basis TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS explanations (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, image TEXT NOT NULL, model TEXT NOT NULL,
    explainer_id INTEGER NOT NULL, control INTEGER NOT NULL, record TEXT, error TEXT,
    current INTEGER NOT NULL DEFAULT 1);
CREATE TABLE IF NOT EXISTS scores (
    metric_id INTEGER NOT NULL, explanation_id INTEGER NOT NULL, basis_id INTEGER NOT NULL,
    value REAL, details TEXT, curve TEXT,
    forward_passes INTEGER NOT NULL, backward_passes INTEGER NOT NULL, seconds REAL NOT NULL, error TEXT,
    current INTEGER NOT NULL DEFAULT 1, PRIMARY KEY (metric_id, explanation_id, basis_id)) WITHOUT ROWID;
"""


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
        """The configuration that the run was last started with; `OutputError` if it is missing or damaged."""
        return self._read("config", Config, "the configuration of the run in {} is damaged")

    def set_config(self, config: Config) -> None:
        """Store the run's configuration."""
        self._write("config", msgspec.to_builtins(config))

    @property
    def choices(self) -> dict[str, Any]:
        """The batch sizes and threads that were found fastest, by what they depend on; see `xaihub.models.tuning`."""
        return self._read("choices", dict[str, Any], "the batch sizes of the run in {} are damaged")

    def set_choices(self, choices: Mapping[str, Any]) -> None:
        """Store what was found fastest."""
        self._write("choices", dict(choices))

    @property
    def origins(self) -> dict[str, Origin]:
        """Third-party plugins that made results, by "explainers/NAME" or "metrics/NAME"; `OutputError` if damaged."""
        return self._read("origins", dict[str, Origin], "the plugins of the run in {} are damaged")

    def add_origins(self, *found: Mapping[str, Origin]) -> None:
        """Store which plugins make its results; the last of several wins."""
        parts = (self.origins, *found)
        self._write("origins", {name: origin.record() for part in parts for name, origin in part.items()})

    @property
    def structures(self) -> dict[str, str]:
        """The hash of the architecture of each model, by its name, in order of the plans; `OutputError` if damaged."""
        return dict(self._read("structures", list[tuple[str, str]], "the models of the run in {} are damaged", "[]"))

    def add_structures(self, *found: Mapping[str, str]) -> None:
        """Store the architectures of its models; the last of several wins."""
        parts = (self.structures, *found)
        self._write("structures", [pair for part in parts for pair in part.items()])

    def add_image(self, source: str, position: int, *, sha256: str | None, error: str | None = None) -> None:
        """Store an image of the run, or the reason why it cannot be evaluated."""
        with self._db.transaction():
            self._db.insert("images", source=source, sha256=sha256, position=position, error=error)

    def set_images(
        self, images: Iterable[tuple[str, int, str]], own: Callable[[str], bool] = lambda _sha256: True
    ) -> None:
        """Store source, position and checksum of each image of a plan; none of them has failed yet.

        Of a shard, these are the images whose checksums are its `own`; all of them identify the plan's images.
        """
        every = hashlib.sha256()

        def kept() -> Iterator[tuple[str, int, str]]:
            for image in images:
                every.update(f"{image[2]}\n".encode())
                if own(image[2]):
                    yield image

        with self._db.transaction():
            query = "INSERT OR REPLACE INTO images (source, position, sha256) VALUES (?, ?, nullif(?, ''))"
            self._db.executemany(query, kept())
            self._db.insert("meta", name="images", value=every.hexdigest())

    @property
    def planned_images(self) -> str | None:
        """What identifies the images of its plan, in their order; None before it was evaluated."""
        return self._meta("images")

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
        explanation = self._id(key)
        query = "SELECT error FROM scores WHERE metric_id = ? AND explanation_id = ? AND basis_id = ?"

        def stored(score: ScoreKey) -> bool:
            metric, basis = self._find(score)
            found = None if None in (explanation, metric, basis) else self._db.one(query, metric, explanation, basis)
            return found is not None and not (retry and found["error"])

        return [score for score in wanted if not stored(score)]

    def unfinished(self, *, everywhere: Sequence[ScoreKey], retry: bool) -> Iterator[tuple[int, bool]]:
        """Yield the positions, in order, of what `show_explanations` and `show_scores` want.

        With each, whether an explanation or score of it is missing; with `retry` also whether one failed.
        """
        with self._db.transaction():
            keys = [self._added(score) for score in everywhere]
        return showing.unfinished(self._db, keys, retry=retry)

    def show_scores(
        self, images: Iterable[str], everywhere: Sequence[ScoreKey], own: Iterable[tuple[str, ScoreKey]] = ()
    ) -> None:
        """Of each image and (metric, parameters) of a plan show only the score with the wanted basis.

        Of images that are not named, scores that depend on other images or on masks are not shown.

        Args:
            images: The images of the plan.
            everywhere: The wanted scores whose basis is the same for all of them.
            own: The other wanted scores, with their images.
        """
        with self._db.transaction():
            theirs = ((image, *self._added(score)) for image, score in own)
            showing.show_scores(self._db, images, [self._added(score) for score in everywhere], theirs)

    def show_explanations(self, model: str, wanted: Iterable[tuple[int, str, str, str, str]]) -> bool:
        """Of each (image, explainer, parameters) of a model show only the explanation with the wanted digest.

        The others were made with another seed, target or version. A wanted explanation is moved to the image's present
        path.

        Args:
            model: The model.
            wanted: Position, digest, image, explainer and parameters of each; of equal digests the first counts.

        Returns:
            Whether anything changed.
        """
        with self._db.transaction():
            theirs = ((*one[:3], self._method(*one[3:])) for one in wanted)
            return showing.show_explanations(self._db, model, theirs)

    def add_explanation(
        self, key: Key, source: str, explanation: Explanation | None, error: str | None = None, *, maps: MapKind = "f32"
    ) -> None:
        """Store an explanation, or the reason why there is none; `maps` is how its map is stored.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        from xaihub.evaluation.maps import packed_map

        record = None
        if explanation is not None:
            if maps != "none":
                write_file(self.map_file(key.digest), packed_map(explanation, maps))
            record = canonical(explanation.to_dict())
        with self._db.transaction():
            method = self._method(key.explainer, canonical(key.parameters))
            self._db.execute(
                "INSERT INTO explanations (key, image, model, explainer_id, control, record, error)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET image = excluded.image,"
                " model = excluded.model, record = excluded.record, error = excluded.error, current = 1",
                (key.digest, source, key.model, method, key.control, record, error),
            )

    def explanation(self, key: Key | str, *, exact: bool = True) -> Explanation | None:
        """Return a stored explanation by key or digest; None if it is missing, failed, or has no map or a damaged one.

        With `exact`, also None if its map was stored with less precision than it had: scores are computed on the map
        itself.
        """
        from xaihub.evaluation.maps import restored_map

        digest = key if isinstance(key, str) else key.digest
        row = self._db.one("SELECT record FROM explanations WHERE key = ?", digest)
        if row is None or row["record"] is None:
            return None
        lost = OutputError(f"the map of {digest} is lost")
        try:
            with decoding(lost):
                tensors, notes = read_packed(self.map_file(digest), what="map", refusal=lost)
                return restored_map(json.loads(row["record"]), tensors, notes, exact=exact)
        except OutputError:
            return None

    def add_score(self, key: Key, score: Score) -> None:
        """Store a score of an explanation; one with another basis is no longer shown."""
        curve = None if score.curve is None else canonical([[float(v) for v in axis] for axis in score.curve])
        with self._db.transaction():
            metric, basis = self._added(score.key)
            values = {name: value for name, value in vars(score).items() if name != "key"}
            place = {"metric_id": metric, "explanation_id": self._id(key), "basis_id": basis}
            self._db.execute(
                "UPDATE scores SET current = 0 WHERE metric_id = ? AND explanation_id = ?",
                (metric, place["explanation_id"]),
            )
            packed = {"details": canonical(score.details) if score.details else None, "curve": curve, "current": 1}
            self._db.insert("scores", **{**values, **place, **packed})

    @contextmanager
    def together(self) -> Iterator[None]:
        """Commit everything that is stored inside as a whole."""
        with self._db.transaction():
            yield

    def rows(self) -> list[ScoreRow]:
        """Return every shown score with the explanation it belongs to, in a fixed order."""
        return list(self.stream())

    def stream(self, *, failed: bool = False) -> Iterator[ScoreRow]:
        """Yield the rows of `rows` one by one; with `failed` only those without a score."""
        return reading.rows(self._db, failed=failed)

    def scores(self) -> reading.StoredScores:
        """Return the shown scores column by column, for leaderboards and charts."""
        return reading.StoredScores(self._db)

    def size(self) -> tuple[int, int]:
        """Return about how many bytes the records take, and the bytes of the maps."""
        files = (self.folder / MAPS).glob("[0-9a-f][0-9a-f]/*.safetensors")
        return reading.size(self._db), sum(file.stat().st_size for file in files)

    def count(self) -> int:
        """Return the number of shown scores."""
        return reading.count(self._db)

    def frame(self) -> pd.DataFrame:
        """Return the scores as a pandas data frame, one row per score."""
        import pandas as pd

        return pd.DataFrame([row.flat() for row in self.stream()])

    def map_file(self, digest: str) -> Path:
        """Return the file of a map.

        Raises:
            OutputError: The digest is not one, or the folder is a link.
        """
        folder = self.folder / MAPS / digest[:2]
        if not KEY.fullmatch(digest) or folder.is_symlink():
            raise self._db.damaged(f"{digest[:70]!r} is not the key of a map in its own folder")
        return folder / f"{digest}.safetensors"

    @property
    def database(self) -> Database:
        """The file of the records, for merging."""
        return self._db

    def _id(self, key: Key) -> int | None:
        row = self._db.one("SELECT id FROM explanations WHERE key = ?", key.digest)
        return None if row is None else int(row["id"])

    def _method(self, name: str, parameters: str) -> int:
        return self._db.intern("methods", name=name, parameters=parameters)

    def _added(self, score: ScoreKey) -> tuple[int, int]:
        """Return the ids of a score's metric and basis, which are added if they are missing."""
        return self._method(score.metric, score.parameters), self._db.intern("bases", basis=score.basis)

    def _find(self, score: ScoreKey) -> tuple[int | None, int | None]:
        metric = self._db.one("SELECT id FROM methods WHERE name = ? AND parameters = ?", *score[:2])
        basis = self._db.one("SELECT id FROM bases WHERE basis = ?", score.basis)
        return (None if metric is None else metric["id"]), (None if basis is None else basis["id"])

    def _meta(self, name: str) -> str | None:
        row = self._db.one("SELECT value FROM meta WHERE name = ?", name)
        return None if row is None else str(row["value"])

    def _read(self, name: str, kind: type[T], damaged: str, empty: str = "{}") -> T:
        with decoding(OutputError(damaged.format(repr(str(self.folder))))):
            return msgspec.json.decode(self._meta(name) or empty, type=kind)

    def _write(self, name: str, value: object) -> None:
        with self._db.transaction():
            self._db.insert("meta", name=name, value=canonical(value))
