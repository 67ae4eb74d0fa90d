"""Executing a plan: each explanation and each score is computed once, however often the run is interrupted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from xaihub.errors import EngineError
from xaihub.evaluation.config import Choice
from xaihub.evaluation.dependence import Dependence, neighbours
from xaihub.evaluation.engine import Engine, Lost, Start
from xaihub.evaluation.isolation import Isolation, packed, settings_of_torch
from xaihub.evaluation.keys import Keys
from xaihub.evaluation.plan import Plan, Shard, load_models
from xaihub.evaluation.results import Score
from xaihub.evaluation.store import RunStore
from xaihub.evaluation.tasks import (
    Explained,
    Record,
    Spent,
    Task,
    Unusable,
    Wanted,
    pack_task,
    unpack_records,
    unpack_task,
)
from xaihub.evaluation.work import NO_EXPLANATION, Work
from xaihub.hub import DEFAULT_TIMEOUT, Hub
from xaihub.models.model import Model
from xaihub.models.tuning import choices_of_run
from xaihub.params import Parametrised
from xaihub.specs import Origin

log = logging.getLogger(__name__)
Watch = Callable[[str, int, int], None]


@dataclass(kw_only=True)
class Totals:
    """What a run did.

    Attributes:
        explanations: Explanations made.
        scores: Scores computed.
        kept: Scores that were already stored.
        failed: Images, explanations and scores that failed.
        predicted: Forward passes that predicted an image's class, one per image and model. All explanations and
            scores share them, and none is charged for them.
        forward_passes: All rows that went forward, the predictions included. What several scores share is counted
            once here, and in full with each score.
        backward_passes: All rows that went backward.
        seconds: Wall time.
    """

    explanations: int = 0
    scores: int = 0
    kept: int = 0
    failed: int = 0
    predicted: int = 0
    forward_passes: int = 0
    backward_passes: int = 0
    seconds: float = 0.0


def evaluate(
    hub: Hub,
    plan: Plan,
    store: RunStore,
    models: Sequence[Model] | None = None,
    *,
    retry: bool = True,
    timeout: float = DEFAULT_TIMEOUT,
    engine: Engine | None = None,
    watch: Watch | None = None,
) -> Totals:
    """Compute what a plan's run lacks; may be interrupted and called again at any time.

    Args:
        hub: Where the plan's names come from.
        plan: What to compute.
        store: Where results go.
        models: The plan's models as returned by `load_models`; loaded here by default.
        retry: Retry what failed before.
        timeout: Limit for one explanation or score by a plugin of a third party, in seconds; see `Isolation`.
        engine: Where it is computed; in this process by default.
        watch: Called with the current step, the number of explanations done, and their total number.

    Raises:
        XaihubError: A model cannot be loaded, the store cannot be written, or the workers cannot be used. An image, an
            explainer or a metric that fails is recorded as failed, and the run continues.
    """
    with store.writing():
        run = Run(hub=hub, plan=plan, store=store, retry=retry, timeout=timeout, engine=engine, watch=watch)
        store.set_config(plan.config)
        store.add_origins(plan.origins)
        # First of all, so that a run that is interrupted again never shows old and new scores together.
        run.show_scores()
        with choices_of_run(store.choices) as choices:
            try:
                return run.work(models)
            finally:
                store.set_choices(choices)


@dataclass(kw_only=True)
class Run:
    """The work of a plan, for the first `limit` images only if that is given."""

    hub: Hub
    plan: Plan
    store: RunStore
    retry: bool = True
    watch: Watch | None = None
    limit: int | None = None
    timeout: float = DEFAULT_TIMEOUT
    engine: Engine | None = None
    totals: Totals = field(default_factory=Totals, init=False)

    def __post_init__(self) -> None:
        """Look at the plan once."""
        self._depends = Dependence(self.hub, self.plan)
        self._everywhere = self._depends.everywhere
        self._pooled = any(metric.needs_pool for metric in self.plan.metrics)
        self._shard = Shard.parse(self.plan.config.shard)
        self._keys: list[Keys] = []
        self._done = 0

    def show_scores(self) -> None:
        """Show the scores that the plan wants."""
        self.store.show_scores(self.plan.images, self._everywhere, self._depends.own())

    def work(self, models: Sequence[Model] | None = None) -> Totals:
        """Compute what is missing, model by model; the models are loaded if they are not given."""
        started = time.perf_counter()
        loaded = load_models(self.hub, self.plan) if models is None else models
        self.store.add_structures({model.name: model.structure_hash for model in loaded})
        self._keys = [Keys(self.hub, self.plan.config, model, self.plan.explainers) for model in loaded]
        if self.engine is None:
            self._here(loaded)
        else:
            self._elsewhere(self.engine, loaded)
        if self.limit is None:
            self._report(loaded[-1].name, self._before(len(loaded), 0))
        self.totals.seconds = time.perf_counter() - started
        return self.totals

    def _here(self, models: Sequence[Model]) -> None:
        with Isolation(timeout=self.timeout) as isolation:
            config, explainers, metrics = self.plan.config, self.plan.explainers, self.plan.metrics
            work = Work(
                config, explainers, metrics, isolation, step=lambda *step: self._report(step[0], done + step[1])
            )
            for task in self._tasks():
                done = self._before(task.model, task.position)
                for record in work.do(task, models[task.model]):
                    self._keep(task, record)

    def _elsewhere(self, engine: Engine, models: Sequence[Model]) -> None:
        settings = settings_of_workers(self.hub, self.plan, models, engine, self.timeout, self.store.choices)
        with closing(engine.run(Start(settings), map(pack_task, self._tasks()))) as answers:
            for asked, answer in answers:
                task = unpack_task(asked)
                records: list[Record]
                records = [Unusable(reason=str(answer))] if isinstance(answer, Lost) else unpack_records(answer)
                with self.store.together():
                    for record in records:
                        self._keep(task, record)
                self._done = max(self._done, self._before(task.model, task.position) + len(self.plan.explainers))
                self._report(Path(task.source).name, self._done)

    def _tasks(self) -> Iterator[Task]:
        """Yield what is missing, model by model; images that are finished are passed over."""
        images, scores = self.plan.images, len(self.plan.explainers) * len(self.plan.metrics)
        for number, keys in enumerate(self._keys):
            if self.store.show_explanations(keys.model.name, self._wanted(keys)):
                self.show_scores()  # again: an explanation may have moved to another path
            if number == 0:  # a later model must not erase the error of an earlier one
                every = ((images[place], place, images.checksum(place)) for place in range(len(images)))
                self.store.set_images(every, lambda sha256: self._shard is None or self._shard.has(sha256))
            unfinished = self.store.unfinished(everywhere=self._everywhere, retry=self.retry)
            place, missing = next(unfinished, (-1, False))
            for position in self._positions():
                if position != place and not images.checksum(position):
                    yield self._task(number, position, ())  # its answer is the reason why it cannot be read
                elif position == place and missing:
                    yield self._task(number, position, self._missing(keys, position))
                else:  # finished, or the same image came before: it is explained once, with the first one's neighbours
                    self.totals.kept += scores
                if position == place:
                    place, missing = next(unfinished, (-1, False))

    def _positions(self) -> Iterator[int]:
        for position in range(len(self.plan.images) if self.limit is None else self.limit):
            if self._shard is None or self._shard.has(self.plan.images.checksum(position)):
                yield position

    def _wanted(self, keys: Keys) -> Iterator[tuple[int, str, str, str, str]]:
        """Yield position, digest, image, explainer and parameters of every explanation of the plan."""
        methods = [(explainer.name, keys.parameters(place)) for place, explainer in enumerate(self.plan.explainers)]
        for position in self._positions():
            item, sha256 = self.plan.images.item(position), self.plan.images.checksum(position)
            for place, method in enumerate(methods) if sha256 else ():
                yield position, keys.digest(place, sha256, item.label), item.source, *method

    def _missing(self, keys: Keys, position: int) -> Iterator[Wanted]:
        images = self.plan.images
        sha256, label = images.checksum(position), images.item(position).label
        scores = self._depends.scores(position)
        for place in range(len(self.plan.explainers)):
            key = keys.key(place, sha256, label)
            missing = set(self.store.missing_scores(key, scores, retry=self.retry))
            self.totals.kept += len(scores) - len(missing)
            if missing or not self.store.has_explanation(key, retry=self.retry):
                numbers = [number for number, score in enumerate(scores) if score in missing]
                known = self.store.explanation(key)
                yield Wanted(explainer=place, digest=key.digest, metrics=numbers, known=known)

    def _task(self, number: int, position: int, wanted: Iterable[Wanted]) -> Task:
        images = self.plan.images
        item = images.item(position)
        pool = neighbours(len(images), position) if self._pooled else []
        return Task(
            model=number,
            position=position,
            source=item.source,
            where=item.where,
            sha256=images.checksum(position),
            label=item.label,
            mask=item.mask,
            boxes=item.boxes,
            pool=[images.item(place).where for place in pool],
            wanted=list(wanted),
        )

    def _keep(self, task: Task, record: Record) -> None:
        """Store a record."""
        if isinstance(record, Spent):
            self.totals.predicted += record.predicted
            self.totals.forward_passes += record.forward_passes
            self.totals.backward_passes += record.backward_passes
            return
        if isinstance(record, Unusable):
            self.totals.failed += 1
            log.info("%s: %s", task.source, record.reason)
            self.store.add_image(task.source, task.position, sha256=record.sha256, error=record.reason)
            return
        key = self._keys[task.model].key(record.explainer, task.sha256, task.label)
        self.totals.failed += record.error not in (None, NO_EXPLANATION)
        if isinstance(record, Explained):
            maps = self.plan.config.maps
            self.store.add_explanation(key, task.source, record.explanation, record.error, maps=maps)
            self.totals.explanations += record.explanation is not None
        else:
            wanted = self._depends.scores(task.position)[record.metric]
            values = {name: value for name, value in vars(record).items() if name not in ("explainer", "metric")}
            self.store.add_score(key, Score(wanted, **values))
            self.totals.scores += record.error is None

    def _before(self, model: int, position: int) -> int:
        """Return the number of explanations before those of an image, for a progress bar."""
        return (model * len(self.plan.images) + position) * len(self.plan.explainers)

    def _report(self, step: str, done: int) -> None:
        if self.watch is not None:
            self.watch(step, done, self._before(len(self.plan.config.models), 0))


def settings_of_workers(
    hub: Hub, plan: Plan, models: Sequence[Model], engine: Engine, timeout: float, choices: Mapping[str, Any]
) -> bytes:
    """Return what workers in other processes need to compute the tasks of a plan.

    Args:
        hub: Where the plan's names come from.
        plan: What they compute.
        models: The plan's models.
        engine: Where they run.
        timeout: As in `evaluate`.
        choices: The fastest batch sizes that are known.

    Raises:
        EngineError: Something of the plan exists in this process only.
    """
    shared = shared_settings(hub, [*plan.explainers, *plan.metrics], engine)
    hint = "use the engine 'local' with one job"
    unnamed = next((model.name for model in models if model.loaded is None and not model.head), None)
    if unnamed is not None:
        raise EngineError(f"model {unnamed!r} exists in this process only", hint=f"{hint}, or load it by name")
    if "-" in plan.config.images:
        raise EngineError("workers cannot read standard input", hint=hint)
    # By name, as another process may have other controls; each with its budget, as the plan's apply to all.
    named = {
        "explainers": [
            Choice(one.name, one.parameters, one.granted.typed if one.granted else None) for one in plan.explainers
        ],
        "metrics": [Choice(one.name, one.parameters) for one in plan.metrics],
    }
    config = msgspec.structs.replace(plan.config, images=["-"], controls=False, budget=None, **named)
    message = {"config": msgspec.to_builtins(config), "timeout": timeout, "choices": choices, **shared}
    return packed(message, {})


def shared_settings(hub: Hub, methods: Sequence[Parametrised], engine: Engine) -> dict[str, Any]:
    """Return what any worker needs to know: the plugin files, and the settings of torch with its part of the threads.

    Raises:
        EngineError: A method exists in this process only.
    """
    here = next((one for one in methods if not _elsewhere(one.origin)), None)
    if here is not None:
        raise EngineError(
            f"{here.described} exists in this process only", hint="use one job, or put it into a plugin file"
        )
    files = [info.module for info in hub.host.plugins if info.module.endswith(".py")]
    torch = settings_of_torch()
    return {"files": files, "torch": {**torch, "threads": engine.threads(torch["threads"])}}


def _elsewhere(origin: Origin) -> bool:
    return origin.builtin or bool(origin.distribution or origin.sha256)
