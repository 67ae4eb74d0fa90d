"""Exporting a run's scores as a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from xaihub.errors import MissingExtra
from xaihub.evaluation.results import ScoreRow
from xaihub.evaluation.store import RunStore
from xaihub.files import write_file
from xaihub.records import canonical

FORMATS = ("csv", "parquet", "json")
_COUNTS = ("forward_passes", "backward_passes", "target", "predicted")


def export(store: RunStore, format_: str, path: Path | None) -> str | None:
    """Write a run's scores to a file, one row per score; without a path return the text (csv and json).

    An image that failed has a row of its own, with only its path and the error.

    Raises:
        MissingExtra: The format is parquet, and pandas or pyarrow is not installed.
        OutputError: The file cannot be written.
    """
    rows = [_flat(row) for row in store.rows()]
    rows += [_failed(source, reason) for source, reason in store.failed_images().items()]
    if format_ == "parquet":
        try:
            import pandas as pd
            import pyarrow  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"parquet needs {error.name!r}, which is not installed", hint="pip install 'xaihub[parquet]'"
            ) from error
        file = path or store.folder / "scores.parquet"
        frame = pd.DataFrame([_packed(row) for row in rows], columns=list(_failed("", "")))
        frame = frame.astype({"value": "float64", "control": "boolean", **dict.fromkeys(_COUNTS, "Int64")})
        write_file(file, lambda temporary: frame.to_parquet(temporary))
        return None if path else str(file)
    text = json.dumps(rows, indent=2, ensure_ascii=False) + "\n" if format_ == "json" else _csv(rows)
    if path is None:
        return text
    write_file(path, text)
    return None


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


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(_failed("", "")), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_packed(row) for row in rows)
    return buffer.getvalue()
