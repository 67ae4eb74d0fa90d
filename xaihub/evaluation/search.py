"""The search for an explainer's parameters: all settings on one half of the images, the best one on the other half.

Each half is a run of its own (see `RunStore`), so that an interrupted search continues where it was.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from xaihub.errors import ParameterError
from xaihub.evaluation.bootstrap import interval
from xaihub.evaluation.config import Choice, Config
from xaihub.evaluation.engine import Engine
from xaihub.evaluation.estimate import estimate
from xaihub.evaluation.keys import Keys
from xaihub.evaluation.plan import Plan, load_models, make_plan
from xaihub.evaluation.results import ScoreRow
from xaihub.evaluation.run import Watch, evaluate
from xaihub.evaluation.sources import Sources
from xaihub.evaluation.space import Values
from xaihub.evaluation.store import DATABASE, RunStore
from xaihub.hub import DEFAULT_TIMEOUT, Hub
from xaihub.models.model import Model
from xaihub.records import canonical

DEVELOPMENT, TEST = "development", "test"
LEAST = 4  # images
Objectives = dict[str, float]  # of each image


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One setting, on the development half.

    Attributes:
        parameters: What differs from the defaults.
        objective: Mean over images of the metrics' sum, in which one counts negatively if lower is better; None if it
            failed for an image for which the defaults have a score.
        scores: Mean of each metric.
        passes: Mean passes per map, a backward pass as two.
        reason: Why there is no objective.
    """

    parameters: Values
    objective: float | None
    scores: Mapping[str, float]
    passes: float
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a setting adds to the objective of the defaults on the test half, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    images: int

    @property
    def positive(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0


@dataclass(frozen=True, kw_only=True)
class Found:
    """The result of a search.

    Attributes:
        tried: Every setting; the defaults first.
        best: The setting with the best objective.
        images: Number of development images.
        gain: Its gain on the test images; None if it is the defaults, or if no image has both scores.
        failed: The images that could not be used, with the reasons.
    """

    tried: Sequence[Tried]
    best: Tried
    images: int
    gain: Gain | None
    failed: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a search costs: what the defaults take on one image, multiplied.

    Attributes:
        settings: Number of settings.
        images: Numbers of development and test images.
        forward_passes: Forward passes.
        backward_passes: Backward passes.
        seconds: Wall time in one process.
        unknown: What failed on that image, with the reason; its cost is not included.
    """

    settings: int
    images: tuple[int, int]
    forward_passes: int
    backward_passes: int
    seconds: float
    unknown: Mapping[str, str]


class Search:
    """A search whose names, parameters and images have been checked."""

    def __init__(self, hub: Hub, config: Config, explainer: str, settings: Sequence[Values]) -> None:
        """Take the plan of an evaluation without its explainers, and the settings to try, the defaults first.

        Settings that the explainer refuses are left out.

        Raises:
            XaihubError: A name, a parameter or an image cannot be used, or a metric has no better direction.
        """
        self._hub, self._explainer = hub, explainer
        made = {canonical(hub.get_explainer(explainer, **settings[0]).parameters): settings[0]}
        for values in settings[1:]:
            with suppress(ParameterError):
                one = hub.get_explainer(explainer, **values)
                one.check_parameters()
                made.setdefault(canonical(one.parameters), values)
        self.settings = list(made.values())
        choices = [Choice(explainer, values) for values in self.settings]
        self._plan = make_plan(hub, _config(config, choices))
        self.notes = self._plan.notes[:1]
        self.signs = {metric.name: self._sign(metric.name) for metric in self._plan.metrics}
        self.halves = _halves(self._plan.images, config.seed)
        self._models: list[Model] = []

    def _sign(self, metric: str) -> int:
        better = self._hub.metrics.get(metric).higher_is_better
        if better is None:
            raise ParameterError(f"metric {metric!r} has no better direction, so nothing can be searched by it")
        return 1 if better else -1

    @property
    def models(self) -> list[Model]:
        """The model, loaded when it is first used."""
        self._models = self._models or load_models(self._hub, self._plan)
        return self._models

    def cost(self, folder: Path) -> Cost:
        """Run the defaults on one image, as the beginning of a search in `folder`, and multiply."""
        with _opened(folder / DEVELOPMENT) as store:
            one = estimate(self._hub, self._part(0, 1), store, self.models)
        development, test = map(len, self.halves)
        maps = len(self.settings) * development + 2 * test
        return Cost(
            settings=len(self.settings),
            images=(development, test),
            forward_passes=round(sum(part.forward_passes for part in one.parts) * maps),
            backward_passes=round(sum(part.backward_passes for part in one.parts) * maps),
            seconds=sum(part.seconds for part in one.parts) * maps,
            unknown=one.unknown,
        )

    def run(
        self,
        folder: Path,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        engine: Engine | None = None,
        watch: Watch | None = None,
    ) -> Found:
        """Try every setting on the development half, and the best one on the test half.

        Args:
            folder: Where both runs are kept; what they have already is not computed again.
            timeout: As for `evaluate`.
            engine: As for `evaluate`.
            watch: As for `evaluate`.

        Raises:
            XaihubError: As `evaluate`, or the defaults fail for every image.
        """
        how: dict[str, Any] = {"timeout": timeout, "engine": engine, "watch": watch}
        rows, failed = self._rows(folder / DEVELOPMENT, self._part(0, len(self.settings)), how)
        objectives = [self._objectives(one) for one in rows]
        if not objectives[0]:
            reasons = [*failed.values(), *(row.error for row in rows[0] if row.error)]
            raise ParameterError("the defaults have no score for any image", hint="; ".join(dict.fromkeys(reasons[:3])))
        tried = [
            self._tried(values, own, rows_of, objectives[0])
            for values, own, rows_of in zip(self.settings, objectives, rows, strict=True)
        ]
        best = max(range(len(tried)), key=lambda place: _or_worst(tried[place].objective))
        gain = None
        if best:
            (before, after), failed_there = self._rows(folder / TEST, self._part(1, 1, best), how)
            failed = {**failed, **failed_there}
            gain = _gain(self._objectives(before), self._objectives(after))
        return Found(tried=tried, best=tried[best], images=len(objectives[0]), gain=gain, failed=failed)

    def _part(self, half: int, count: int, *more: int) -> Plan:
        """Return the plan of the first settings, and of others by number, on one half."""
        places = [*range(count), *more]
        config = _config(self._plan.config, [Choice(self._explainer, self.settings[place]) for place in places])
        explainers = [self._plan.explainers[place] for place in places]
        return replace(self._plan, config=config, images=self.halves[half], explainers=explainers)

    def _rows(self, folder: Path, plan: Plan, how: Mapping[str, Any]) -> tuple[list[list[ScoreRow]], dict[str, str]]:
        """Evaluate a plan; return the scores of each explainer, and the images that failed."""
        with _opened(folder) as store:
            evaluate(self._hub, plan, store, self.models, **how)
            keys = Keys(self._hub, plan.config, self.models[0], plan.explainers)
            found: list[list[ScoreRow]] = [[] for _ in plan.explainers]
            # The folder may hold results of another search.
            wanted = {
                keys.digest(place, plan.images.checksum(position), item.label): place
                for position, item in enumerate(plan.images.items())
                for place in range(len(found))
            }
            for row in store.stream():
                if row.key in wanted:
                    found[wanted[row.key]].append(row)
            failures = store.failed_images()
            return found, {source: failures[source] for source in plan.images if source in failures}

    def _objectives(self, rows: Sequence[ScoreRow]) -> Objectives:
        """Return the objective of each image that has all scores."""
        scores: dict[str, list[float]] = {}
        for row in rows:
            if row.value is not None:
                scores.setdefault(row.image, []).append(self.signs[row.metric] * row.value)
        return {image: sum(found) for image, found in scores.items() if len(found) == len(self.signs)}

    def _tried(self, values: Values, own: Objectives, rows: Sequence[ScoreRow], first: Objectives) -> Tried:
        used = [row for row in rows if row.image in first and row.value is not None]
        means = {name: _mean([row.value or 0.0 for row in used if row.metric == name]) for name in self.signs}
        spent = [row.record["forward_passes"] + 2 * row.record["backward_passes"] for row in rows if row.record]
        whole = first.keys() <= own.keys()
        return Tried(
            parameters=values,
            objective=_mean([own[image] for image in first]) if whole else None,
            scores={name: mean for name, mean in means.items() if not math.isnan(mean)},
            passes=_mean(spent),
            reason="" if whole else next((row.error for row in rows if row.error), "it has no score for some image"),
        )


def _config(config: Config, explainers: Sequence[Choice]) -> Config:
    return msgspec.structs.replace(config, explainers=list(explainers), controls=False, maps="none")


def _halves(images: Sources, seed: int) -> tuple[Sources, Sources]:
    """Split the images at random, by their contents, so that copies of one image are in the same half.

    Raises:
        ParameterError: There are too few images.
    """
    places: dict[str, list[int]] = {}
    for place in range(len(images)):
        places.setdefault(images.checksum(place), []).append(place)
    readable = [sha256 for sha256 in places if sha256]
    if len(readable) < LEAST:
        raise ParameterError(
            f"{len(readable)} different images are too few for two halves", hint=f"give at least {LEAST}, better 40"
        )
    order = sorted(places, key=lambda sha256: hashlib.sha256(f"{seed}:{sha256}".encode()).digest())
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    parts = [sorted(place for sha256 in half for place in places[sha256]) for half in (first, second)]
    development, test = (Sources(images.item(place) for place in part) for part in parts)
    return development, test


def _opened(folder: Path) -> RunStore:
    return RunStore(folder, create=not (folder / DATABASE).exists())


def _gain(before: Objectives, after: Objectives) -> Gain | None:
    both = sorted(before.keys() & after.keys())
    if not both:
        return None
    mean, low, high = interval([after[image] - before[image] for image in both])
    return Gain(mean=mean, low=low, high=high, images=len(both))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _or_worst(objective: float | None) -> float:
    return -math.inf if objective is None else objective
