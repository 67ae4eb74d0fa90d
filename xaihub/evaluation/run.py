"""Executing a plan: each explanation and each score is computed once, however often the run is interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from xaihub.errors import XaihubError
from xaihub.evaluation.annotations import truth
from xaihub.evaluation.dependence import Dependence, code, with_files
from xaihub.evaluation.inputs import Inputs
from xaihub.evaluation.isolation import Isolation
from xaihub.evaluation.plan import Plan, load_models
from xaihub.evaluation.results import Key, Score, ScoreKey
from xaihub.evaluation.store import RunStore
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.explainers.target import Target
from xaihub.hub import DEFAULT_TIMEOUT, Hub
from xaihub.images import SourceImage, load_image
from xaihub.metric import Case, Scene
from xaihub.models.model import Model
from xaihub.records import canonical

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
        watch: Called with the current step, the number of explanations done, and their total number.

    Raises:
        XaihubError: A model cannot be loaded, or the store cannot be written. An image, an explainer or a metric
            that fails is recorded as failed, and the run continues.
    """
    with store.writing():
        run = Run(hub=hub, plan=plan, store=store, retry=retry, timeout=timeout, watch=watch)
        store.set_config(plan.config)
        store.add_origins(plan.origins)
        # First of all, so that a run that is interrupted again never shows old and new scores together.
        store.show_scores(run.depends.all_scores())
        return run.work(models)


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
    totals: Totals = field(default_factory=Totals, init=False)

    @cached_property
    def depends(self) -> Dependence:
        """What the scores depend on."""
        return Dependence(self.hub, self.plan)

    def work(self, models: Sequence[Model] | None = None) -> Totals:
        """Compute what is missing, model by model; the models are loaded if they are not given."""
        started = time.perf_counter()
        with Isolation(timeout=self.timeout) as isolation:
            for number, model in enumerate(load_models(self.hub, self.plan) if models is None else models):
                with model.counting() as counts:
                    _OfModel(self, model, number, isolation).work()
                self.totals.forward_passes += counts.forward_passes
                self.totals.backward_passes += counts.backward_passes
        self.totals.forward_passes += isolation.spent.forward_passes
        self.totals.backward_passes += isolation.spent.backward_passes
        self.totals.seconds = time.perf_counter() - started
        return self.totals


class _OfModel:
    """One model over all images."""

    def __init__(self, run: Run, model: Model, number: int, isolation: Isolation) -> None:
        self._run, self._plan, self._store, self._totals = run, run.plan, run.store, run.totals
        self._model, self._number, self._isolation = model, number, isolation
        self._metrics = {(metric.name, canonical(with_files(metric.parameters))): metric for metric in run.plan.metrics}
        self._explainers = [(explainer, with_files(explainer.settings)) for explainer in run.plan.explainers]
        self._pooled = any(metric.needs_pool for metric in run.plan.metrics)
        self._structure = model.structure_hash
        self._inputs = Inputs(model, run.plan.images)
        self._done = 0

    def work(self) -> None:
        homes = self._show_current()
        images, explainers = self._plan.images, self._explainers
        for position, source in enumerate(images[: self._run.limit]):
            self._done = (self._number * len(images) + position) * len(explainers)
            self._report(Path(source).name)
            try:
                image = load_image(source)
            except XaihubError as error:
                self._fail(source, position, None, str(error))
                continue
            if self._number == 0:  # a later model must not erase the error of an earlier one
                self._store.add_image(source, position, sha256=image.sha256)
            try:
                self._explain_all(image, position, homes)
            except _NoScene as error:
                self._fail(source, position, image.sha256, f"{self._model.name}: {error.__cause__}")
        self._totals.predicted += self._inputs.predicted
        if self._run.limit is None:
            self._done = (self._number + 1) * len(images) * len(explainers)
            self._report(self._model.name)

    def _fail(self, source: str, position: int, sha256: str | None, reason: str) -> None:
        self._totals.failed += 1
        self._store.add_image(source, position, sha256=sha256, error=reason)

    def _explain_all(self, image: SourceImage, position: int, homes: Mapping[str, str]) -> None:
        """Explain one image with every explainer, and score the explanations."""
        source, retry = image.source, self._run.retry
        scene: Scene | None = None
        wanted = self._run.depends.scores(source)
        for explainer, parameters in self._explainers:
            self._report(f"{Path(source).name}: {explainer.name}")
            key = self._key(source, image.sha256, explainer, parameters)
            # An image listed twice is explained and scored once, with the first one's neighbours.
            twice = homes.get(key.digest, source) != source
            missing = [] if twice else self._store.missing_scores(key, wanted, retry=retry)
            self._totals.kept += len(wanted) - len(missing)
            if missing or not (twice or self._store.has_explanation(key, retry=retry)):
                scene = scene or self._scene(image, position)
                self._score_all(key, image, scene, explainer, missing)
            self._done += 1

    def _show_current(self) -> dict[str, str]:
        """Make visible the rows of this model that the plan contains; return the first image of each explanation."""
        wanted: dict[str, tuple[str, str, str]] = {}
        for source in self._plan.images:
            checksum = self._run.depends.checksum(source)
            for explainer, parameters in self._explainers if checksum else ():
                digest = self._key(source, checksum, explainer, parameters).digest
                wanted.setdefault(digest, (source, explainer.name, canonical(parameters)))
        self._store.show_explanations(self._model.name, wanted)
        self._store.show_scores(self._run.depends.all_scores())  # again: an explanation may have moved to another path
        return {digest: slot[0] for digest, slot in wanted.items()}

    def _score_all(
        self, key: Key, image: SourceImage, scene: Scene, explainer: Explainer, missing: Sequence[ScoreKey]
    ) -> None:
        explanation = self._store.explanation(key) or self._explain(key, image, scene, explainer)
        if explanation is None:
            for wanted in missing:
                self._store.add_score(key, Score(wanted, error="there is no explanation to score"))
            return
        case = Case(scene=scene, explanation=explanation, explainer=explainer, seed=self._plan.config.seed)
        for wanted in missing:
            self._report(f"{Path(image.source).name}: {wanted.metric} of {explainer.name}")
            started = time.perf_counter()
            metric = self._metrics[wanted.metric, wanted.parameters]
            try:
                measured, counts = self._isolation.measure(metric, case)
            except XaihubError as error:
                self._totals.failed += 1
                self._store.add_score(key, Score(wanted, error=str(error)))
                continue
            score = Score(
                wanted,
                value=measured.value,
                details=measured.details,
                curve=measured.curve,
                forward_passes=counts.forward_passes,
                backward_passes=counts.backward_passes,
                seconds=time.perf_counter() - started,
            )
            self._store.add_score(key, score)
            self._totals.scores += 1

    def _explain(self, key: Key, image: SourceImage, scene: Scene, explainer: Explainer) -> Explanation | None:
        inputs, seed = scene.image[None], self._plan.config.seed
        try:
            target, logits = scene.target.fixed(), scene.logits[None]
            found = self._isolation.explain(explainer, self._model, inputs, target, seed=seed, logits=logits)
        except XaihubError as error:
            self._totals.failed += 1
            self._store.add_explanation(key, image.source, None, error=str(error))
            return None
        explanation = found.with_image(image, self._inputs.get(image.source, image).geometry)
        self._store.add_explanation(key, image.source, explanation)
        self._totals.explanations += 1
        return explanation

    def _key(self, source: str, sha256: str, explainer: Explainer, parameters: Mapping[str, Any]) -> Key:
        label = self._plan.labels.get(source)
        return Key(
            image=sha256,
            model=self._model.name,
            weights=self._model.weights_hash,
            structure=self._structure,
            preprocessing=self._model.preprocessing.description,
            explainer=explainer.name,
            parameters=parameters,
            target=str(self._plan.config.target if label is None else label),
            seed=self._plan.config.seed,
            code=code(self._run.hub, explainer),
            control=explainer.name in self._plan.controls,
        )

    def _scene(self, image: SourceImage, position: int) -> Scene:
        plan, source = self._plan, image.source
        label = plan.labels.get(source)
        try:
            found = self._inputs.get(source, image)
            text = plan.config.target if label is None else label
            wanted = Target.parse(text, self._model.classes, self._model.outputs)
            return Scene(
                model=self._model,
                image=found.pixels,
                logits=found.logits,
                target=wanted.resolve(found.logits[None], self._model.outputs),
                truth=truth(self._model, image.rgb, plan.masks.get(source), plan.boxes.get(source)),
                pool=self._inputs.pool(position) if self._pooled else (),
            )
        except XaihubError as error:
            raise _NoScene from error

    def _report(self, step: str) -> None:
        if self._run.watch is not None:
            total = len(self._plan.config.models) * len(self._plan.images) * len(self._plan.explainers)
            self._run.watch(step, self._done, total)


class _NoScene(Exception):
    """An image cannot be evaluated: its mask is unreadable, or the target contrasts a class with itself."""
