"""What was measured for the explainers, which comes with xaihub; docs/measured.py writes it."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import msgspec

FILE = Path(__file__).with_name("measured.json")
CONTROLS = "control_"  # how the names of explainers begin that are only there to be beaten


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """The mean score of one explainer with one metric.

    Attributes:
        explainer: The explainer.
        metric: The metric.
        higher_is_better: The metric's direction.
        mean: The mean over the images.
        low: The lower end of the 95 % bootstrap interval of the mean.
        high: The upper end.
        count: Number of images with a score.
        best: The best mean of all methods.
    """

    explainer: str
    metric: str
    higher_is_better: bool
    mean: float
    low: float
    high: float
    count: int
    best: bool


class Measurements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The published table.

    Attributes:
        command: What was run.
        model: The model.
        images: Number of images.
        budget: Passes of each explanation, where the explainer can choose them.
        rows: The scores; those of controls are included.
    """

    command: str
    model: str
    images: int
    budget: int
    rows: list[Measurement]

    def of(self, explainer: str) -> list[Measurement]:
        """Return the measurements of one explainer."""
        return [row for row in self.rows if row.explainer == explainer]

    def ranks(self) -> dict[str, float]:
        """Return the mean rank of each explainer over the metrics, from 1 for the best (our choice)."""
        found: dict[str, list[int]] = {}
        for metric in dict.fromkeys(row.metric for row in self.rows):
            rows = [row for row in self.rows if row.metric == metric]
            rows.sort(key=lambda row: -row.mean if row.higher_is_better else row.mean)
            for place, row in enumerate(rows, start=1):
                found.setdefault(row.explainer, []).append(place)
        return {name: sum(places) / len(places) for name, places in found.items()}

    def beaten(self) -> set[str]:
        """Return the explainers than which some control is better by every metric."""
        signed: dict[str, dict[str, float]] = {}
        for row in self.rows:
            signed.setdefault(row.explainer, {})[row.metric] = row.mean if row.higher_is_better else -row.mean
        controls = [scores for name, scores in signed.items() if name.startswith(CONTROLS)]
        return {
            name
            for name, own in signed.items()
            for other in controls
            if all(other.get(metric, -math.inf) > mean for metric, mean in own.items())
        }


@cache
def measurements() -> Measurements:
    """Return the published table."""
    return msgspec.json.decode(FILE.read_bytes(), type=Measurements)
