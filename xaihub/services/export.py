"""Taking a run's scores elsewhere."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from xaihub.errors import MissingExtra
from xaihub.explanation import write_file
from xaihub.services.leaderboard import Board
from xaihub.store import RunStore, ScoreRow, canonical

__all__ = ["FORMATS", "export", "merge", "plot"]

FORMATS = ("csv", "parquet", "json")


def export(store: RunStore, format_: str, path: Path | None) -> str | None:
    """Write a run's scores, one row a score, to a file; without a path return the text (csv and json).

    Raises:
        MissingExtra: Parquet needs a library that is not installed.
        OutputError: The file cannot be written.
    """
    if format_ == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtra(
                "parquet needs 'pyarrow', which is not installed", hint="pip install 'xaihub[parquet]'"
            ) from error
        file = path or store.folder / "scores.parquet"
        frame = store.frame()
        for column in ("explainer_parameters", "metric_parameters"):
            frame[column] = frame[column].map(canonical)
        write_file(file, lambda temporary: frame.to_parquet(temporary))
        return None if path else str(file)
    rows = [_flat(row) for row in store.rows()]
    text = json.dumps(rows, indent=2, ensure_ascii=False) + "\n" if format_ == "json" else _csv(rows)
    if path is None:
        return text
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return None


def merge(folders: Sequence[str | Path], output: str | Path) -> RunStore:
    """Merge runs into a new one; a record that several hold is kept once.

    Raises:
        OutputError: A run is missing or damaged, or the output exists or cannot be written.
    """
    sources = [RunStore(folder) for folder in folders]
    merged = RunStore(output, create=True)
    with merged.writing():
        for source in sources:
            merged.absorb(source)
            source.close()
        merged.set_config(_joined(list(_configs(folders))))
    return merged


def plot(boards: Sequence[Board], rows: Sequence[ScoreRow], folder: Path) -> list[Path]:
    """Draw the mean curves of curve metrics, and quality against cost, as PNG files; return their paths."""
    from xaihub.services.charts import cost_chart, curve_chart

    written = []
    for board in boards:
        for name, figure in [*curve_chart(board, rows), *cost_chart(board, rows)]:
            file = folder / f"{name}__{board.model.replace('/', '_')}.png"
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=120)
            written.append(write_file(file, partial(_fill, buffer.getvalue())))
    return written


def _fill(data: bytes, file: Path) -> None:
    file.write_bytes(data)


def _flat(row: ScoreRow) -> dict[str, Any]:
    record = row.record
    return {
        **{name: value for name, value in row.__dict__.items() if name not in ("record", "curve", "details")},
        "target": record.get("target", {}).get("index"),
        "predicted": record.get("predicted", {}).get("index"),
        "details": row.details,
    }


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        flat = {name: canonical(value) if isinstance(value, dict) else value for name, value in row.items()}
        if writer is None:
            writer = csv.DictWriter(buffer, fieldnames=list(flat), lineterminator="\n")
            writer.writeheader()
        writer.writerow(flat)
    return buffer.getvalue()


def _configs(folders: Sequence[str | Path]) -> Iterable[dict[str, Any]]:
    for folder in folders:
        with RunStore(folder) as store:
            yield store.config


def _joined(configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Unite the lists of several plans, so that the merged run can be resumed."""
    joined: dict[str, Any] = {}
    for config in configs:
        for name, value in config.items():
            if isinstance(value, list):
                have = joined.setdefault(name, [])
                have += [item for item in value if item not in have]
            else:
                joined.setdefault(name, value)
    return joined
