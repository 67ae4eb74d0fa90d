"""Reading a run's scores from its file: as rows, or column by column."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import numpy as np

from xaihub.evaluation.columns import Column, Curve, ModelScores, Which, labels, method_id, ordered
from xaihub.evaluation.database import Database
from xaihub.evaluation.results import ScoreRow
from xaihub.files import decoding
from xaihub.records import canonical

_SHOWN = (
    "scores s JOIN explanations e ON e.id = s.explanation_id JOIN methods m ON m.id = s.metric_id"
    " JOIN methods x ON x.id = e.explainer_id WHERE s.current AND e.current"
)
_ROWS = f"""
SELECT e.image, e.model, x.name AS explainer, x.parameters AS explainer_parameters, e.control = 1 AS control,
       m.name AS metric, m.parameters AS metric_parameters, s.value, s.curve, s.details,
       s.forward_passes, s.backward_passes, s.seconds, coalesce(e.error, s.error) AS error, e.key,
       coalesce(e.record, '{{}}') AS record
FROM {_SHOWN}
"""  # noqa: S608 - our own query
_ORDER = "ORDER BY x.name, x.parameters, e.image"
_MODELS = "SELECT DISTINCT model FROM explanations WHERE current ORDER BY model"
_METRICS = (
    "SELECT id, name, parameters FROM methods WHERE EXISTS (SELECT 1 FROM scores WHERE metric_id = methods.id)"
    " ORDER BY name, parameters"
)
_JSON = ("explainer_parameters", "metric_parameters", "curve", "details", "record")

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


def rows(db: Database, *, failed: bool = False) -> Iterator[ScoreRow]:
    """Yield every shown score, ordered by model, metric, explainer and image; with `failed` only failed ones.

    Raises:
        OutputError: The file is damaged or cannot be read.
    """
    some = " AND coalesce(e.error, s.error) IS NOT NULL" if failed else ""
    metrics = [row["id"] for row in db.read(_METRICS)]
    for model in [row["model"] for row in db.read(_MODELS)]:
        for metric in metrics:
            for row in db.read(f"{_ROWS}{some} AND e.model = ? AND s.metric_id = ? {_ORDER}", model, metric):
                yield ScoreRow(**{**dict(row), **_parts(db, row), "control": bool(row["control"])})


def count(db: Database) -> int:
    """Return the number of shown scores."""
    row = db.one(f"SELECT count(*) AS count FROM {_SHOWN}")  # noqa: S608 - our own query
    return int(row["count"]) if row else 0


def size(db: Database) -> int:
    """Return about how many bytes the explanations and scores of a run take, without the file's fixed part."""
    explanation = "2 * length(key) + length(image) + length(model) + coalesce(length(record), length(error)) + 24"
    score = "coalesce(length(details), 0) + coalesce(length(curve), 0) + coalesce(length(error), 0) + 36"
    query = (
        f"SELECT coalesce((SELECT sum({explanation}) FROM explanations), 0)"  # noqa: S608 - our own query
        f" + coalesce((SELECT sum({score}) FROM scores), 0) AS count"
    )
    row = db.one(query)
    return int(row["count"]) if row else 0


class StoredScores:
    """The shown scores of a run, by model."""

    def __init__(self, db: Database) -> None:
        """Read nothing yet."""
        self._db = db

    def models(self) -> list[ModelScores]:
        """Return the scores of each model.

        Raises:
            OutputError: The file is damaged or cannot be read.
        """
        used = (
            "SELECT id, name, parameters FROM methods WHERE id IN (SELECT explainer_id FROM explanations WHERE current)"
        )
        explainers, metrics = self._labels(used), self._labels(_METRICS)
        found = (_OfModel(self._db, row["model"], explainers, metrics) for row in [*self._db.read(_MODELS)])
        return [one for one in found if one.explainers]

    def _labels(self, query: str) -> dict[int, tuple[str, str]]:
        """Return label and name of each method, by its id."""
        methods = [(row["id"], row["name"], _object(self._db, row["parameters"])) for row in self._db.read(query)]
        short = labels(method[1:] for method in methods)
        return {id_: (short[method_id(name, parameters)], name) for id_, name, parameters in methods}


class _OfModel(ModelScores):
    def __init__(
        self, db: Database, model: str, explainers: dict[int, tuple[str, str]], metrics: dict[int, tuple[str, str]]
    ) -> None:
        self.model, self._db, self._metrics = model, db, metrics
        query = (
            "SELECT DISTINCT explainer_id AS id, control = 1 AS control FROM explanations WHERE model = ? AND current"
        )
        pairs = [(row["id"], row["control"]) for row in db.read(query, model) if row["id"] in explainers]
        self._labels = {id_: explainers[id_][0] for id_, _ in pairs}
        self.controls = frozenset(self._labels[id_] for id_, control in pairs if control)
        self.explainers = ordered(self._labels.values(), self.controls)

    def columns(self, only: str | None = None) -> Iterator[Column]:
        """Yield each metric, or `only` that of this label; see `ModelScores.columns`.

        Raises:
            OutputError: The file is damaged or cannot be read.
        """
        places = {label: place for place, label in enumerate(self.explainers)}
        rows_of = {id_: places[label] for id_, label in self._labels.items()}
        names: list[str] = []
        ids, explainers, images = [], [], []
        query = "SELECT id, explainer_id, image FROM explanations WHERE model = ? AND current ORDER BY image"
        for row in self._db.read(query, self.model):
            if row["explainer_id"] in rows_of:
                if not names or names[-1] != row["image"]:
                    names.append(row["image"])
                ids.append(row["id"])
                explainers.append(rows_of[row["explainer_id"]])
                images.append(len(names) - 1)
        order = np.argsort(np.array(ids, dtype=np.int64))
        known, row_of, column_of = (np.array(one, dtype=np.int64)[order] for one in (ids, explainers, images))
        shape = (len(self.explainers), len(names))
        for metric, (label, name) in self._metrics.items():
            if only not in (None, label):
                continue
            values, scored = np.full(shape, np.nan), np.zeros(shape[0], dtype=np.int64)
            query = "SELECT explanation_id, value FROM scores WHERE metric_id = ? AND current"
            for block in self._db.numbers(query, metric):
                own = block[:, 0].astype(np.int64)
                place = np.minimum(np.searchsorted(known, own), len(known) - 1)
                mine = known[place] == own  # the others are of another model, or hidden
                place = place[mine]
                values[row_of[place], column_of[place]] = block[mine, 1]
                scored += np.bincount(row_of[place], minlength=shape[0])
            if scored.any():
                yield Column(label, name, values, scored, names)

    def classes(self, which: Which = "predicted") -> Iterator[tuple[str, int]]:
        """Yield images with a class; see `ModelScores.classes`."""
        query = (
            "SELECT image, record FROM explanations WHERE model = ? AND current AND record IS NOT NULL GROUP BY image"
        )
        for row in self._db.read(query, self.model):
            found = _checked(self._db, _parsed(self._db, row["record"]), _Record)
            if (known := getattr(found, which)) is not msgspec.UNSET:
                yield row["image"], known.index

    def curves(self) -> Iterator[tuple[str, Iterator[tuple[str, Curve]]]]:
        """Yield each metric that has curves, with the curves and the explainers they belong to."""
        query = (
            "SELECT s.curve, e.explainer_id AS id FROM scores s JOIN explanations e ON e.id = s.explanation_id"
            " WHERE s.metric_id = ? AND s.current AND e.current AND e.model = ? AND s.curve IS NOT NULL"
        )
        for metric, (label, _) in self._metrics.items():
            if self._db.one(query, metric, self.model) is not None:
                found = (
                    (self._labels[row["id"]], _curve(self._db, row["curve"]))
                    for row in self._db.read(query, metric, self.model)
                    if row["id"] in self._labels
                )
                yield label, found

    def passes(self) -> dict[str, float]:
        """Return the mean number of forward and backward passes per map, by explainer."""
        query = (
            "SELECT explainer_id, avg(coalesce(json_extract(record, '$.forward_passes'), 0)"
            " + coalesce(json_extract(record, '$.backward_passes'), 0)) FROM explanations"
            " WHERE model = ? AND current AND record IS NOT NULL GROUP BY explainer_id"
        )
        found = [pair for block in self._db.numbers(query, self.model) for pair in block.tolist()]
        return {self._labels[int(id_)]: passes for id_, passes in found if int(id_) in self._labels}


def _parts(db: Database, row: sqlite3.Row) -> dict[str, Any]:
    """Return the JSON columns of a row, and check what tables and charts read of it."""
    found = {name: _parsed(db, row[name]) for name in _JSON}
    found["details"] = found["details"] or {}
    parts = _checked(db, found, _Parts)
    x, y = parts.curve or ([0.0], [0.0])
    numbers = [row["value"] or 0.0, row["seconds"], *x, *y]
    if isinstance(row["value"], str) or not all(map(math.isfinite, numbers)) or not len(x) == len(y) > 0:
        raise db.damaged()
    return found


def _checked(db: Database, found: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(found, type=kind)
    except (msgspec.ValidationError, OverflowError) as error:
        raise db.damaged(str(error)) from error


def _curve(db: Database, text: str) -> Curve:
    x, y = _checked(db, _parsed(db, text), tuple[list[float], list[float]])
    if not all(map(math.isfinite, (*x, *y))) or not len(x) == len(y) > 0:
        raise db.damaged("a curve is not one")
    return x, y


def _object(db: Database, text: str) -> dict[str, Any]:
    found: dict[str, Any] = _checked(db, _parsed(db, text), dict[str, Any])
    return found


def _parsed(db: Database, text: str | None) -> Any:
    with decoding(db.damaged("a value is not JSON")):
        found = json.loads(text or "null")
        if "\\ud" in (text or "").lower():  # half of a surrogate pair is no text
            canonical(found).encode()
    return found
