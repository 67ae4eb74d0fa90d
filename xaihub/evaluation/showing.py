"""Which records of a run are shown, and which a plan still lacks: set operations inside the run's file.

What a plan wants stands in temporary tables, which SQLite keeps on disk, so that the memory of a run does not grow with
its images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from xaihub.evaluation.database import Database

_TABLES = (
    "CREATE TEMP TABLE IF NOT EXISTS wanted ("
    " key TEXT PRIMARY KEY, position INTEGER, image TEXT, explainer_id INTEGER) WITHOUT ROWID",
    "CREATE TEMP TABLE IF NOT EXISTS planned (image TEXT PRIMARY KEY) WITHOUT ROWID",
    "CREATE TEMP TABLE IF NOT EXISTS own ("
    " image TEXT, metric_id INTEGER, basis_id INTEGER, PRIMARY KEY (image, metric_id)) WITHOUT ROWID",
)
_OTHERS = "SELECT id FROM bases WHERE basis LIKE '%\"truth\":%' OR basis LIKE '%\"pool\":%'"
_PLANNED = "SELECT id FROM explanations WHERE image IN planned"


def show_explanations(db: Database, model: str, wanted: Iterable[tuple[int, str, str, int]]) -> bool:
    """Show of a model's explanations those that are wanted, and return whether that changed any.

    See `RunStore.show_explanations`. Call it inside a transaction, with (position, digest, image, id of the explainer)
    of each.
    """
    _emptied(db, "wanted")
    db.executemany("INSERT OR IGNORE INTO wanted (position, key, image, explainer_id) VALUES (?, ?, ?, ?)", wanted)
    hidden = db.execute(
        "UPDATE explanations SET current = 0 WHERE model = ? AND current AND key NOT IN (SELECT key FROM wanted)"
        " AND (image, explainer_id) IN (SELECT image, explainer_id FROM wanted)",
        (model,),
    )
    shown = db.execute(
        "UPDATE explanations SET current = 1, image = wanted.image FROM wanted WHERE wanted.key = explanations.key"
        " AND explanations.model = ? AND (NOT explanations.current OR explanations.image != wanted.image)",
        (model,),
    )
    return bool(hidden.rowcount or shown.rowcount)


def show_scores(
    db: Database,
    images: Iterable[str],
    everywhere: Sequence[tuple[int, int]],
    own: Iterable[tuple[str, int, int]],
) -> None:
    """Show the scores that are wanted; see `RunStore.show_scores`.

    Call it inside a transaction, with the ids of metrics and bases.
    """
    _emptied(db, "planned")
    _emptied(db, "own")
    db.executemany("INSERT OR IGNORE INTO planned VALUES (?)", ((image,) for image in images))
    db.executemany("INSERT OR REPLACE INTO own VALUES (?, ?, ?)", own)
    update = (
        "UPDATE scores SET current = (basis_id = ?) WHERE metric_id = ? AND current != (basis_id = ?)"  # noqa: S608
        f" AND explanation_id IN ({_PLANNED})"
    )
    for metric, basis in everywhere:
        db.execute(update, (basis, metric, basis))
    for metric in [row["metric_id"] for row in db.read("SELECT DISTINCT metric_id FROM own")]:
        db.execute(
            "UPDATE scores SET current = (scores.basis_id = own.basis_id) FROM explanations e, own"
            " WHERE scores.metric_id = ? AND e.id = scores.explanation_id AND own.image = e.image AND own.metric_id = ?"
            " AND scores.current != (scores.basis_id = own.basis_id)",
            (metric, metric),
        )
    elsewhere = f"basis_id IN ({_OTHERS}) AND explanation_id NOT IN ({_PLANNED})"
    db.execute(f"UPDATE scores SET current = 0 WHERE current AND {elsewhere}")  # noqa: S608 - our own query


def unfinished(db: Database, everywhere: Sequence[tuple[int, int]], *, retry: bool) -> Iterator[tuple[int, bool]]:
    """Yield each wanted position in order, and whether something of it is missing; see `RunStore.unfinished`."""
    sound = " AND error IS NULL" if retry else ""
    lacks = ["e.id IS NULL", *(["e.error IS NOT NULL"] if retry else [])]
    lacks += [
        f"NOT EXISTS (SELECT 1 FROM scores WHERE metric_id = {metric} AND explanation_id = e.id"  # noqa: S608
        f" AND basis_id = {basis}{sound})"
        for metric, basis in everywhere
    ]
    lacks.append(
        "EXISTS (SELECT 1 FROM own WHERE own.image = w.image AND NOT EXISTS (SELECT 1 FROM scores WHERE"  # noqa: S608
        f" scores.metric_id = own.metric_id AND explanation_id = e.id AND scores.basis_id = own.basis_id{sound}))"
    )
    query = (
        f"SELECT w.position AS position, max({' OR '.join(lacks)}) AS count FROM wanted w"  # noqa: S608
        " LEFT JOIN explanations e ON e.key = w.key GROUP BY w.position ORDER BY w.position"
    )
    return ((row["position"], bool(row["count"])) for row in db.read(query))


def _emptied(db: Database, table: str) -> None:
    for statement in _TABLES:
        db.execute(statement)
    db.execute(f"DELETE FROM {table}")  # noqa: S608 - our own name
