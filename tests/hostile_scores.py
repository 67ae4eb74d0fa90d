"""Metrics and global explainers that misbehave, beside a good one of each, as a single-file plugin."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

from xaihub import Case, GlobalExplainer, Measurement, Metric, Model, Ranking


class GoodMean(Metric):
    """The mean of the map times the masked score."""

    def score(self, case: Case) -> float:
        blank = case.model(torch.zeros_like(case.scene.image)[None])
        return float(case.heat.mean() * case.scene.score(blank))


class GoodRanking(GlobalExplainer):
    """The norms of the classifier's columns, times the mean of the images."""

    def rank(self, model: Model, inputs: Iterable[Tensor], labels: Tensor | None) -> Ranking:
        mean = torch.stack([batch.mean() for batch in inputs]).mean()
        return Ranking(weights=model.module[5].weight.norm(dim=0) * mean, feature="channel", layer="5")


class EndsRanking(GlobalExplainer):
    """Ends the process as if all were well."""

    def rank(self, model: Model, inputs: Iterable[Tensor], labels: Tensor | None) -> Ranking:
        ctypes.CDLL(None)._exit(0)


class _Unusual(BaseException):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class SpoilsMap(Metric):
    """Writes to the map and the image."""

    def score(self, case: Case) -> float:
        case.explanation.values.zero_()
        case.scene.image.zero_()
        case.scene.memory.once("drop", lambda: 7)
        return 1.0


class SpoilsModel(Metric):
    """Changes the weights."""

    def score(self, case: Case) -> float:
        case.model.module[5].weight.data.zero_()
        return 1.0


class ExitsScoring(Metric):
    """Exits as if all were well."""

    def score(self, case: Case) -> float:
        sys.exit(0)


class ScoresNonsense(Metric):
    """Returns a record that cannot be written."""

    def score(self, case: Case) -> Measurement:
        return Measurement(value=1.0, details={"what": _Unusual()})
