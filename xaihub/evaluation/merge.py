"""Merging runs into one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from xaihub.errors import OutputError
from xaihub.evaluation.config import Config
from xaihub.evaluation.database import Database
from xaihub.evaluation.store import RunStore
from xaihub.files import check_file, write_file

# At most one record per combination of these columns is shown.
_SLOTS = {"explanations": "image, model, explainer_id", "scores": "metric_id, explanation_id"}


def merge(folders: Sequence[str | Path], output: str | Path) -> tuple[RunStore, int]:
    """Merge runs into a new one; duplicate results are kept once, conflicting results are hidden.

    Returns:
        The merged run, and the number of hidden scores, which reappear or are recomputed when the merged run is
        resumed.

    Raises:
        OutputError: A run is missing or damaged, or the output exists or cannot be written.
    """
    with ExitStack() as opened:
        sources = [opened.enter_context(RunStore(folder)) for folder in folders]
        config = _joined([source.config for source in sources])
        merged = RunStore(output, create=True)
        try:
            with merged.writing():
                aside = absorb(merged, *sources)
                merged.set_config(config)
        except BaseException:
            merged.close()
            raise
    return merged, aside


def absorb(run: RunStore, *others: RunStore) -> int:
    """Copy every record and map of other runs into one, and hide conflicting results.

    A result takes precedence over a failure, whichever run it came from. Three kinds of rows are hidden until a plan
    contains them: scores of one map with different bases; explanations of one image with different seeds, targets or
    versions; and, if the runs have different images, scores that depend on the other images.

    Returns:
        The number of hidden scores.

    Raises:
        OutputError: The disk is full or cannot be written.
    """
    images = {one.planned_images for one in (run, *others) if one.planned_images is not None}
    for other in others:
        for row in other.database.read("SELECT key FROM explanations WHERE record IS NOT NULL"):
            theirs, ours = other.map_file(row["key"]), run.map_file(row["key"])
            if theirs.exists() and not ours.exists():
                check_file(theirs, what="map", error=OutputError, limit=2**28)
                write_file(ours, partial(shutil.copyfile, theirs))
    db = run.database
    with db.transaction():
        for other in others:
            _copy(db, other.database)
        before = run.count()
        for table, slot in _SLOTS.items():
            several = f"SELECT {slot} FROM {table} WHERE current GROUP BY {slot} HAVING count(*) > 1"  # noqa: S608
            db.execute(f"UPDATE {table} SET current = 0 WHERE ({slot}) IN ({several})")  # noqa: S608
        if len(images) == 1:
            db.insert("meta", name="images", value=images.pop())
        elif images:
            others_seen = """SELECT id FROM bases WHERE basis LIKE '%"pool":%'"""
            db.execute(f"UPDATE scores SET current = 0 WHERE basis_id IN ({others_seen})")  # noqa: S608
        after = run.count()
    run.add_origins(*(other.origins for other in others))
    run.add_structures(*(other.structures for other in others))
    return before - after


def _copy(db: Database, other: Database) -> None:
    """Copy the rows of a run, with ids of our own: a failure never replaces a row of ours, a result always does."""
    texts = {table: [*other.read(f"SELECT * FROM {table}")] for table in ("methods", "bases")}  # noqa: S608
    methods, bases = (
        {row["id"]: db.intern(table, **{name: row[name] for name in row.keys() if name != "id"}) for row in rows}  # noqa: SIM118
        for table, rows in texts.items()
    )
    for row in other.read("SELECT * FROM images"):
        db.insert("images", mode="IGNORE" if row["error"] else "REPLACE", **dict(row))
    for row in other.read("SELECT * FROM explanations"):
        mine = {**dict(row), "explainer_id": _mapped(other, methods, row["explainer_id"])}
        _add(db, "explanations", ("key",), {name: value for name, value in mine.items() if name != "id"})
    for row in other.read("SELECT s.*, e.key FROM scores s JOIN explanations e ON e.id = s.explanation_id"):
        mine = dict(row)
        found = db.one("SELECT id FROM explanations WHERE key = ?", mine.pop("key"))
        assert found is not None  # noqa: S101 - copied above
        mine["explanation_id"] = found["id"]
        mine["metric_id"] = _mapped(other, methods, row["metric_id"])
        mine["basis_id"] = _mapped(other, bases, row["basis_id"])
        _add(db, "scores", ("metric_id", "explanation_id", "basis_id"), mine)


def _add(db: Database, table: str, key: tuple[str, ...], row: dict[str, Any]) -> None:
    changes = ", ".join(f"{name} = excluded.{name}" for name in row if name not in key)
    action = "NOTHING" if row["error"] else f"UPDATE SET {changes}"
    columns, marks = ", ".join(row), ", ".join("?" * len(row))
    db.execute(
        f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT ({', '.join(key)}) DO {action}",  # noqa: S608
        row.values(),
    )


def _mapped(db: Database, ids: Mapping[int, int], id_: int) -> int:
    if id_ not in ids:
        raise db.damaged("a record names a method that is not there")
    return ids[id_]


def _joined(configs: Sequence[Config]) -> Config:
    """Return the first configuration with the lists of all, so that a merged run can be resumed."""
    first = msgspec.structs.replace(configs[0], shard=None)
    for name in ("images", "models", "explainers", "metrics"):
        items = [item for config in configs for item in getattr(config, name)]
        setattr(first, name, [item for place, item in enumerate(items) if item not in items[:place]])
    return first
