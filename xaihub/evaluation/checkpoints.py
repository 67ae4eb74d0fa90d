"""Comparing checkpoints: how the scores of two models of one architecture differ on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from xaihub.evaluation.bootstrap import intervals
from xaihub.evaluation.columns import ListedScores, ModelScores
from xaihub.evaluation.reading import StoredScores
from xaihub.evaluation.results import ScoreRow
from xaihub.evaluation.significance import ALPHA, COSTS, holm, p_value, paired_differences
from xaihub.hub import Hub

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Change:
    """The paired difference of two checkpoints, B minus A, for one explainer and one metric.

    Attributes:
        explainer: The explainer.
        metric: The metric.
        mean: The mean of B's score minus A's, over the images for which both have a score.
        low: The lower end of the 95 % bootstrap interval of that mean.
        high: The upper end.
        count: Number of these images.
        p: Two-sided p-value of the paired test, corrected for the comparisons by Holm's method.
        comparisons: Number of comparisons of the metric: one per explainer, controls included.
        better: Whether B's mean is better, None where neither direction is.
    """

    explainer: str
    metric: str
    mean: float
    low: float
    high: float
    count: int
    p: float
    comparisons: int
    better: bool | None

    @property
    def significant(self) -> bool:
        """Whether the difference is more than chance, at a family-wise error of 5 % for the metric."""
        return self.p < ALPHA


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Two models of one architecture, compared on the same images.

    Attributes:
        first: Checkpoint A.
        second: Checkpoint B.
        controls: The names of the explainers that are controls.
        changes: The differences B minus A by explainer and metric.
        notes: Images for which they explain different classes.
    """

    first: str
    second: str
    controls: frozenset[str]
    changes: Sequence[Change]
    notes: Sequence[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON types."""
        changes = [one.__dict__ for one in self.changes]
        return {"first": self.first, "second": self.second, "changes": changes, "notes": [*self.notes]}

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas table with one row per explainer and metric."""
        import pandas as pd

        return pd.DataFrame([{"first": self.first, "second": self.second, **one.__dict__} for one in self.changes])


def checkpoints(
    scores: StoredScores | Sequence[ScoreRow], structures: Mapping[str, str], hub: Hub
) -> list[Checkpoints]:
    """Compare each model of a run with the first one of the same architecture.

    Args:
        scores: The scores of the run.
        structures: The hash of the architecture of each model, by its name; see `RunStore.structures`.
        hub: Where the directions of metrics come from.
    """
    models = ListedScores.of(scores) if isinstance(scores, Sequence) else scores.models()
    own = {one.model: one for one in models}
    firsts: dict[str, str] = {}
    found = []
    for name, structure in structures.items():
        if name in own and firsts.setdefault(structure, name) != name:
            found.append(_compared(own[firsts[structure]], own[name], hub))
    return [one for one in found if one.changes]


def _compared(first: ModelScores, second: ModelScores, hub: Hub) -> Checkpoints:
    return Checkpoints(
        first=first.model,
        second=second.model,
        controls=first.controls & second.controls,
        changes=[*_changes(first, second, hub)],
        notes=[*_other_classes(first, second)],
    )


def _changes(first: ModelScores, second: ModelScores, hub: Hub) -> Iterator[Change]:
    rows = {name: place for place, name in enumerate(second.explainers)}
    shared = [(place, rows[name]) for place, name in enumerate(first.explainers) if name in rows]
    for ours in first.columns():
        for theirs in second.columns(only=ours.metric) if ours.name not in COSTS else ():
            _, mine, yours = np.intersect1d(ours.images, theirs.images, assume_unique=True, return_indices=True)
            paired = {
                first.explainers[a]: paired_differences(theirs.values[b][yours], ours.values[a][mine])
                for a, b in shared
            }
            paired = {name: values for name, values in paired.items() if len(values)}
            spec = hub.metrics.find(ours.name)
            corrected = holm([p_value(values) for values in paired.values()])
            ends = intervals([*paired.values()])
            for name, p, (mean, low, high) in zip(paired, corrected, ends, strict=True):
                better = None if spec is None or spec.higher_is_better is None else (mean > 0) == spec.higher_is_better
                yield Change(
                    explainer=name, metric=ours.metric, mean=mean, low=low, high=high, count=len(paired[name]), p=p,
                    comparisons=len(paired), better=better,
                )  # fmt: skip


def _other_classes(first: ModelScores, second: ModelScores) -> Iterator[str]:
    ours, theirs = dict(first.classes("target")), dict(second.classes("target"))
    differ = sum(index != theirs[image] for image, index in ours.items() if image in theirs)
    if differ:
        yield (
            f"{first.model} and {second.model} explain different classes for {differ} of"
            f" {len(ours.keys() & theirs.keys())} images; give labels or a target to explain the same class"
        )
