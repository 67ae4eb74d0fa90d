"""What a report shows of a run: its scores by image, model and explainer, and the details of each image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from xaihub.errors import InputError, XaihubError
from xaihub.evaluation.annotations import read_labels
from xaihub.evaluation.board import Board, labelled, mean_curves
from xaihub.evaluation.checkpoints import Checkpoints, checkpoints
from xaihub.evaluation.columns import ListedScores
from xaihub.evaluation.columns import ordered as in_order
from xaihub.evaluation.leaderboard import Leaderboard, boards
from xaihub.evaluation.report.series import Point, series
from xaihub.evaluation.results import ScoreRow
from xaihub.evaluation.store import RunStore
from xaihub.evaluation.tables import metric_facts, ordered
from xaihub.explainers.heat import Drawing
from xaihub.explainers.page.document import data_uri
from xaihub.explainers.page.view import command, photo, view
from xaihub.hub import Hub
from xaihub.images import SourceImage, load_image

Place = tuple[int, int, int]  # image, model, explainer
UNUSED = "there is no explanation to score"


@dataclass(kw_only=True)
class Shown:
    """An explanation of the run with its scores, in the order of `Contents.metrics`."""

    row: ScoreRow
    scores: list[float | None]
    curves: dict[int, Any] = field(default_factory=dict)
    error: str = ""


class Contents:
    """A run as a report shows it."""

    def __init__(self, store: RunStore, hub: Hub, *, images: bool = True) -> None:
        """Read a run.

        Args:
            store: The run.
            hub: Where summaries and directions of metrics come from.
            images: Show images, maps and file names.

        Raises:
            OutputError: The run is damaged.
        """
        self.store, self.hub, self.images = store, hub, images
        self.sources, self.config = store.images(), store.config
        self.order = list(self.sources)
        self.labelled = labelled(store.rows())
        self.names = display_names(self.order) if images else {s: f"image {n + 1}" for n, s in enumerate(self.order)}
        self.labels, self.lost_labels = _labels(self.config.labels, self.order)

    @cached_property
    def boards(self) -> list[Leaderboard]:
        """One leaderboard per model."""
        return boards([row for row, *_ in self.labelled], self.hub, self.labels)

    @cached_property
    def checkpoints(self) -> list[Checkpoints]:
        """Each model compared with the first one of the same architecture."""
        return checkpoints([row for row, *_ in self.labelled], self.store.structures, self.hub)

    @cached_property
    def series(self) -> dict[str, Point]:
        """The curve and the budget of each explainer that ran with several."""
        return series(self.labelled, self.hub)

    @cached_property
    def models(self) -> list[str]:
        """The models' names."""
        return [board.model for board in self.boards]

    @cached_property
    def explainers(self) -> dict[str, bool]:
        """The explainers' names, methods first, each with whether it is a control."""
        controls = {name for board in self.boards for name in board.controls}
        names = in_order((name for board in self.boards for name in board.explainers), controls)
        return {name: name in controls for name in names}

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The metrics, see `metric_facts`."""
        found = {
            metric: metric_facts(board, metric, self.summaries) for board in self.boards for metric in ordered(board)
        }
        return list(found.values())

    @cached_property
    def summaries(self) -> dict[str, str]:
        """The summaries of the run's explainers and metrics that are still registered."""
        explainers = {row.explainer: self.hub.explainers.find(row.explainer) for row, *_ in self.labelled}
        metrics = {row.metric: self.hub.metrics.find(row.metric) for row, *_ in self.labelled}
        return {name: spec.summary for name, spec in {**explainers, **metrics}.items() if spec is not None}

    @cached_property
    def shown(self) -> dict[Place, Shown]:
        """Every explanation, also failed ones, by image, model and explainer."""
        place = {name: number for number, name in enumerate(self.explainers)}
        column = {metric["name"]: number for number, metric in enumerate(self.metrics)}
        models = {name: number for number, name in enumerate(self.models)}
        images = {source: number for number, source in enumerate(self.order)}
        found: dict[Place, Shown] = {}
        for row, explainer, metric in self.labelled:
            if row.image not in images:
                continue
            key = (images[row.image], models[row.model], place[explainer])
            one = found.setdefault(key, Shown(row=row, scores=[None] * len(column)))
            one.scores[column[metric]] = row.value
            if row.curve:
                one.curves[column[metric]] = row.curve
            if row.error and not row.record and row.error != UNUSED:
                one.error = self.text(row.error)
        return found

    def text(self, text: str) -> str:
        """Return an error's or a warning's text as the report shows it.

        The folders of images are left out; where images are not shown, their names as well.
        """
        names = {} if self.images else {part: name for source, name in self.names.items()
                                        for part in (source, Path(source).name)}  # fmt: skip
        for part, name in {**names, **dict.fromkeys(self._folders, "")}.items():
            text = text.replace(part, name)
        return text

    @cached_property
    def _folders(self) -> list[str]:
        """The folders of the images, the longest first, so that none is left in part."""
        return sorted({f"{Path(source).parent}{os.sep}" for source in self.order}, key=len, reverse=True)

    def data(self, thumbnails: Sequence[str | None], pages: Sequence[str | None]) -> dict[str, Any]:
        """Return images and scores for the script of the page; thumbnails and pages are of the `explained` images."""
        row_of = {number: place for place, number in enumerate(self.explained)}
        return {
            "images": [
                {"name": self.names[self.order[number]], "thumb": thumb, "href": page, "cases": self._cases(number)}
                for number, thumb, page in zip(self.explained, thumbnails, pages, strict=True)
            ],
            "records": [[row_of[image], model, explainer, *map(_rounded, one.scores)]
                        for (image, model, explainer), one in self.shown.items() if one.row.record],
            "points": list(self._points()),
            "curves": list(self._curves()),
        }  # fmt: skip

    @cached_property
    def explained(self) -> list[int]:
        """The numbers of the images with an explanation, in order."""
        return sorted({image for (image, *_), one in self.shown.items() if one.row.record})

    def _cases(self, number: int) -> list[list[Any]]:
        """Return [model, predicted class, explained class, correct or None] for each model that has an explanation."""
        found: list[list[Any]] = []
        for model in range(len(self.models)):
            record = next((one.row.record for _, one in self._explained_by(number, model) if one.row.record), None)
            if record is not None:
                predicted, target = record.get("predicted") or {}, record.get("target") or {}
                label = self.labels.get(self.order[number])
                correct = None if label is None else predicted.get("index") == label
                found.append([model, str(predicted.get("name", "")), str(target.get("name", "")), correct])
        return found

    def _explained_by(self, number: int, model: int) -> list[tuple[int, Shown]]:
        """Return the explanations of one image and model with the numbers of their explainers."""
        found = ((place, self.shown.get((number, model, place))) for place in range(len(self.explainers)))
        return [(place, one) for place, one in found if one is not None]

    def _points(self) -> Any:
        places = {name: number for number, name in enumerate(self.explainers)}
        columns = {metric["name"]: number for number, metric in enumerate(self.metrics)}
        for model, board in enumerate(self.boards):
            spent = self._scores(board).passes()
            for (explainer, metric), entry in board.entries.items():
                if explainer in spent and not metric.startswith("cost_") and board.directions[metric] is not None:
                    yield {"model": model, "metric": columns[metric], "explainer": places[explainer],
                           "x": spent[explainer], "mean": entry.mean, "low": entry.low, "high": entry.high}  # fmt: skip

    def _curves(self) -> Any:
        places = {name: number for number, name in enumerate(self.explainers)}
        columns = {metric["name"]: number for number, metric in enumerate(self.metrics)}
        for model, board in enumerate(self.boards):
            for metric, lines in mean_curves(self._scores(board)).items():
                yield {"model": model, "metric": columns[metric], "lines": [
                    {"explainer": places[name], "x": [*map(_rounded, x)], "y": [*map(_rounded, y)]}
                    for name, (x, y) in sorted(lines.items(), key=lambda item: places[item[0]])
                ]}  # fmt: skip

    def _scores(self, board: Board) -> ListedScores:
        return ListedScores(board.model, [one for one in self.labelled if one[0].model == board.model])

    def load(self, number: int) -> tuple[SourceImage | None, str]:
        """Return an image if its file is still the one that was explained, and otherwise why it is not shown."""
        source = self.order[number]
        if not self.images:
            return None, "images are left out of this report"
        if source == "-":
            return None, "the image came from standard input, which is not kept"
        try:
            image = load_image(source, page=self.config.page)
        except XaihubError as error:
            return None, self.text(f"the image cannot be shown: {error}")
        if image.sha256 != self.sources[source]:
            return None, "the image cannot be shown: its file has changed since the run"
        return image, ""

    def detail(self, number: int, image: SourceImage | None, note: str, drawing: Drawing) -> dict[str, Any]:
        """Return everything about one image: for each model the prediction and every explainer's map and scores."""
        parts, names = [], [*self.explainers]
        for model, predicted, target, correct in self._cases(number):
            explained = self._explained_by(number, model)
            record = next(one.row.record for _, one in explained if one.row.record)
            parts.append({
                "model": self.models[model], "predicted": predicted + _percent(record.get("predicted")),
                "target": target + _percent(record.get("target")), "correct": correct,
                "views": [self._view(one, names[place], place, number, drawing) for place, one in explained],
            })  # fmt: skip
        base = "" if image is None else data_uri(photo(image.rgb), "jpeg")
        return {"name": self.names[self.order[number]], "base": base, "note": note, "models": parts}

    def _view(self, one: Shown, name: str, place: int, number: int, drawing: Drawing) -> dict[str, Any]:
        shown: dict[str, Any] = {"explainer": name, "index": place, "control": self.explainers[name]}
        if not one.row.record:
            return {**shown, "error": one.error or UNUSED}
        explanation = self.store.explanation(one.row.key)
        if explanation is None:
            return {**shown, "error": "the map's file is lost or damaged"}
        facts = view(explanation, drawing, images=self.images)
        facts["warnings"] = [self.text(text) for text in facts["warnings"]]
        source = self.order[number] if self.images else "IMAGE"
        return {
            **shown, **facts, "command": command(source, one.row.record),
            "scores": [_rounded(score) for score in one.scores],
            "curves": [{"metric": column, "x": [*map(_rounded, x)], "y": [*map(_rounded, y)]}
                       for column, (x, y) in one.curves.items()],
        }  # fmt: skip


def display_names(sources: list[str]) -> dict[str, str]:
    """Return the file name of each image, with as many folders before it as make it unique."""
    names = {source: Path(source).name or source for source in sources}
    depth = 1
    while len(set(names.values())) < len(names) and depth < max(len(Path(source).parts) for source in sources):
        depth += 1
        counts: dict[str, int] = {}
        for name in names.values():
            counts[name] = counts.get(name, 0) + 1
        names = {s: "/".join(Path(s).parts[-depth:]).lstrip("/") if counts[n] > 1 else n for s, n in names.items()}
    return names


def _labels(path: str | None, sources: list[str]) -> tuple[dict[str, int], bool]:
    """Return the labels of the run's images, and whether their file cannot be read any more."""
    try:
        return read_labels(path, sources), False
    except InputError:
        return {}, True


def _percent(score: Mapping[str, Any] | None) -> str:
    probability = (score or {}).get("probability")
    return "" if probability is None else f" {probability:.1%}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
