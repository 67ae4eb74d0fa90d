"""Exporting a run's scores as a table."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from xaihub.errors import MissingExtra
from xaihub.evaluation.database import BLOCK
from xaihub.evaluation.results import ScoreRow
from xaihub.evaluation.store import RunStore
from xaihub.files import write_file
from xaihub.records import canonical

FORMATS = ("csv", "parquet", "json")
PARTS = ("model", "metric")  # columns by which a partitioned table is divided
_NUMBERS = ("value", "seconds")
_COUNTS = ("forward_passes", "backward_passes", "target", "predicted")


def export(store: RunStore, format_: str, path: Path | None, *, partitioned: bool = False) -> str | None:
    """Write a run's scores to a file, one row per score; without a path return the text (csv and json).

    An image that failed has a row of its own, with only its path and the error. csv and parquet are written row by row,
    whatever the size of the run.

    Args:
        store: The run.
        format_: One of `FORMATS`.
        path: The file; without one, parquet is written into the run's folder.
        partitioned: For parquet: write a folder with one file per model and metric, as Hive, Spark, DuckDB, Polars and
            pyarrow read it, and the failed images into its file _failed.parquet.

    Raises:
        MissingExtra: The format is parquet, and pyarrow is not installed.
        OutputError: The file cannot be written.
    """
    rows: Iterator[dict[str, Any]] = map(_flat, store.stream())
    failed = itertools.starmap(_failed, store.failed_images().items())
    if format_ == "parquet" and partitioned:
        folder = path or store.folder / "scores"
        for parts, some in groupby(rows, key=lambda row: tuple(row[name] for name in PARTS)):
            inside = (f"{name}={quote(part, safe='')}" for name, part in zip(PARTS, parts, strict=True))
            _write_parquet(folder.joinpath(*inside, "part-0.parquet"), some, without=PARTS)
        _write_parquet(folder / "_failed.parquet", failed)  # readers of the folder skip names with an underscore
        return None if path else str(folder)
    rows = chain(rows, failed)
    if format_ == "parquet":
        file = path or store.folder / "scores.parquet"
        _write_parquet(file, rows)
        return None if path else str(file)
    if format_ == "json":
        text = json.dumps([*rows], indent=2, ensure_ascii=False) + "\n"
        if path is not None:
            write_file(path, text)
        return text if path is None else None
    if path is None:
        buffer = io.StringIO()
        _write_csv(buffer, rows)
        return buffer.getvalue()

    def fill(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            _write_csv(stream, rows)

    write_file(path, fill)
    return None


def _write_parquet(file: Path, rows: Iterable[dict[str, Any]], *, without: Sequence[str] = ()) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        hint = "pip install 'xaihub[parquet]'"
        raise MissingExtra(f"parquet needs {error.name!r}, which is not installed", hint=hint) from error
    kinds = {"control": pa.bool_(), **dict.fromkeys(_NUMBERS, pa.float64()), **dict.fromkeys(_COUNTS, pa.int64())}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in _failed("", "") if name not in without])

    def fill(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema) as writer:
            left = iter(rows)
            while block := [_packed(row) for row in islice(left, BLOCK)]:
                writer.write_table(pa.Table.from_pylist(block, schema=schema))

    write_file(file, fill)


def _flat(row: ScoreRow) -> dict[str, Any]:
    record = row.record
    return {
        **row.flat(),
        "target": record.get("target", {}).get("index"),
        "predicted": record.get("predicted", {}).get("index"),
        "details": row.details,
    }


def _failed(source: str, reason: str) -> dict[str, Any]:
    """Return the row of a failed image, with the columns of all rows."""
    names = [field.name for field in fields(ScoreRow) if field.name not in ("record", "curve", "details")]
    empty = dict.fromkeys([*names, "target", "predicted", "details"])
    return {**empty, "image": source, "error": reason}


def _packed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: canonical(value) if isinstance(value, dict) else value for name, value in row.items()}


def _write_csv(stream: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    writer = csv.DictWriter(stream, fieldnames=list(_failed("", "")), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_packed(row) for row in rows)
