"""Runs of an evaluation: SQLite files with changed values, keys, schemas and pages; read, exported and merged."""

from __future__ import annotations

import random
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from functools import cache
from pathlib import Path

import torch

from tests.fuzzing.driver import Format, changed, nasty
from tests.fuzzing.formats.configs import whole_hub
from tests.fuzzing.formats.packed import change_json
from xaihub import ClassScore, Explanation
from xaihub.errors import XaihubError
from xaihub.evaluation.config import Config
from xaihub.evaluation.export import export
from xaihub.evaluation.leaderboard import boards
from xaihub.evaluation.merge import merge
from xaihub.evaluation.results import Key, Score, ScoreKey
from xaihub.evaluation.store import RunStore

KEY = Key(
    image="ab" * 32, model="toy", weights="w", preprocessing={"size": 8}, explainer="gradcam", parameters={"a": 3},
    target="None", seed=0, code="1",
)  # fmt: skip
HOSTILE = (
    "CREATE TRIGGER t AFTER UPDATE ON scores BEGIN DELETE FROM images; END",
    "CREATE TABLE extra (a)",
    "CREATE INDEX i ON scores (metric_id)",
    "DROP TABLE images",
    "DROP TABLE scores; CREATE VIEW scores AS SELECT * FROM explanations",
    "ALTER TABLE scores ADD COLUMN more TEXT",
    "CREATE TRIGGER t AFTER INSERT ON meta BEGIN SELECT load_extension('canary'); END",
    "UPDATE explanations SET key = '../../../canary'",
    "UPDATE explanations SET key = '/tmp/canary'",
    "UPDATE scores SET value = 9e999",
    "UPDATE scores SET seconds = -9e999",
    "UPDATE scores SET forward_passes = 'many'",
    "UPDATE scores SET details = zeroblob(1000)",
    "UPDATE methods SET name = CAST(x'ff' AS TEXT)",
    "UPDATE scores SET curve = '[[1e999], [1]]'",
    "UPDATE scores SET details = replace(hex(zeroblob(50000)), '00', '[')",
    "UPDATE meta SET value = '{}' WHERE name = 'config'",
    "DELETE FROM meta",
    "UPDATE meta SET value = 3",
)
_TABLES = {
    "meta": ("name", "value"),
    "images": ("source", "sha256", "position", "error"),
    "methods": ("id", "name", "parameters"),
    "bases": ("id", "basis"),
    "explanations": ("key", "image", "model", "explainer_id", "control", "record", "error", "current"),
    "scores": ("metric_id", "explanation_id", "basis_id", "value", "details", "curve", "forward_passes", "seconds"),
}
_JSON = ("parameters", "basis", "record", "details", "curve")


@cache
def _seed() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        with RunStore(Path(folder) / "run", create=True) as store:
            store.set_config(Config(images=["photos"]))
            store.add_image("a.png", 0, sha256="ab" * 32)
            store.add_image("b.png", 1, sha256=None, error="damaged")
            best = ClassScore(index=1, name="cat", logit=2.0, probability=0.7)
            made = Explanation(
                values=torch.ones(1, 4, 4), target=best, predicted=best, metadata={"explainer": "gradcam"}
            )
            store.add_explanation(KEY, "a.png", made)
            for value in (0.2, 0.4):
                score = Score(
                    ScoreKey("insertion", f'{{"steps": {int(10 * value)}}}'), value=value, curve=([0, 1], [0, 1])
                )
                store.add_score(KEY, score)
        with closing(sqlite3.connect(Path(folder) / "run" / "run.sqlite")) as file:
            file.execute("PRAGMA journal_mode = DELETE")
        return (Path(folder) / "run" / "run.sqlite").read_bytes()


def _change(data: bytes, draw: random.Random) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(data)
        with (
            closing(sqlite3.connect(path, isolation_level=None)) as file,
            suppress(sqlite3.Error, ValueError, ArithmeticError, RecursionError),
        ):
            if draw.random() < 0.3:
                file.executescript(draw.choice(HOSTILE))
            for _ in range(draw.choice((1, 1, 2))):
                table = draw.choice(list(_TABLES))
                column = draw.choice(_TABLES[table])
                value = nasty(draw)
                old = file.execute(f"SELECT {column} FROM {table}").fetchone()  # noqa: S608
                if column in _JSON and old and isinstance(old[0], str) and draw.random() < 0.7:
                    value = change_json(old[0], draw)
                elif isinstance(value, (list, dict)):
                    value = str(changed(value, draw))
                file.execute(f"UPDATE {table} SET {column} = ?", (value,))  # noqa: S608
        return path.read_bytes()


def _read(file: Path) -> None:
    for suffix in ("-wal", "-shm", "-journal"):
        file.with_name(f"{file.name}{suffix}").unlink(missing_ok=True)
    with RunStore(file.parent) as store:
        rows = store.rows()
        for format_ in ("csv", "json"):
            export(store, format_, None)
        store.failed_images()
        store.has_explanation(KEY, retry=True)
        store.explanation(KEY)
        store.missing_scores(KEY, [ScoreKey("insertion", "{}")], retry=True)
        boards(rows, whole_hub())
        boards(store.scores(), whole_hub())
        with suppress(XaihubError):
            _ = store.config
        with store.writing():
            store.show_scores(["a.png"], [ScoreKey("insertion", "{}")], [("a.png", ScoreKey("mass", "{}"))])
            store.show_explanations("toy", [(0, KEY.digest, "a.png", "gradcam", "{}")])
            list(store.unfinished(everywhere=[ScoreKey("insertion", "{}")], retry=True))
    merged = file.parent / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merge([file.parent], merged)[0].close()


FORMATS = (Format(name="run.sqlite", seeds=lambda: [_seed()], change=_change, read=_read, file="run.sqlite"),)
