"""The work of an evaluation: explaining one image with a model's explainers, and scoring the explanations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from xaihub.errors import XaihubError
from xaihub.evaluation import places
from xaihub.evaluation.annotations import truth
from xaihub.evaluation.config import Config
from xaihub.evaluation.inputs import Inputs
from xaihub.evaluation.isolation import Isolation
from xaihub.evaluation.tasks import Explained, Record, Scored, Spent, Task, Unusable, Wanted
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.target import Target
from xaihub.images import SourceImage
from xaihub.metric import Case, Metric, Scene
from xaihub.models.model import Model
from xaihub.models.preprocessing import Geometry

Step = Callable[[str, int], None]
NO_EXPLANATION = "there is no explanation to score"


class Work:
    """Computes what tasks ask for, in this process; plugins of third parties run in a process of their own."""

    def __init__(
        self,
        config: Config,
        explainers: Sequence[Explainer],
        metrics: Sequence[Metric],
        isolation: Isolation,
        *,
        step: Step = lambda _text, _explainer: None,
    ) -> None:
        """Compute nothing yet; `step` is called with each step and the number of its explainer before it starts."""
        self._config, self._explainers, self._metrics = config, explainers, metrics
        self._isolation, self._step = isolation, step
        self._pooled = any(metric.needs_pool for metric in metrics)
        self._inputs: dict[str, Inputs] = {}

    def do(self, task: Task, model: Model) -> Iterator[Record]:
        """Yield the records that answer a task as they are done; whatever fails is one of them."""
        inputs = self._inputs.setdefault(model.name, Inputs(model, page=self._config.page))
        predicted, outside = inputs.predicted, self._isolation.spent
        with model.counting() as counts:
            yield from self._answer(task, model, inputs)
        spent = self._isolation.spent - outside
        yield Spent(
            forward_passes=counts.forward_passes + spent.forward_passes,
            backward_passes=counts.backward_passes + spent.backward_passes,
            predicted=inputs.predicted - predicted,
        )

    def _answer(self, task: Task, model: Model, inputs: Inputs) -> Iterator[Record]:
        name = Path(task.source).name
        self._step(name, 0)
        try:
            image = places.load(task.where, task.source, page=self._config.page)
        except XaihubError as error:
            yield Unusable(reason=str(error))
            return
        if image.sha256 != task.sha256:
            yield Unusable(reason="the image changed during the run")
            return
        scene: Scene | None = None
        for wanted in task.wanted:
            self._step(f"{name}: {self._explainers[wanted.explainer].name}", wanted.explainer)
            try:
                scene = scene or self._scene(task, image, model, inputs)
            except XaihubError as error:
                yield Unusable(reason=f"{model.name}: {error}", sha256=image.sha256)
                return
            yield from self._of_explainer(wanted, image, scene, inputs.get(task.where, image).geometry)

    def _of_explainer(self, wanted: Wanted, image: SourceImage, scene: Scene, geometry: Geometry) -> Iterator[Record]:
        explainer, explanation = self._explainers[wanted.explainer], wanted.known
        if explanation is None:
            made = self._explained(wanted.explainer, image, scene, geometry)
            yield made
            explanation = made.explanation
        if explanation is None:
            for metric in wanted.metrics:
                yield Scored(explainer=wanted.explainer, metric=metric, error=NO_EXPLANATION)
            return
        case = Case(scene=scene, explanation=explanation, explainer=explainer, seed=self._config.seed)
        for metric in wanted.metrics:
            name = f"{Path(image.source).name}: {self._metrics[metric].name} of {explainer.name}"
            self._step(name, wanted.explainer)
            yield self._scored(wanted.explainer, metric, case)

    def _explained(self, number: int, image: SourceImage, scene: Scene, geometry: Geometry) -> Explained:
        try:
            found = self._isolation.explain(
                self._explainers[number], scene.model, scene.image[None], scene.target.fixed(),
                seed=self._config.seed, logits=scene.logits[None],
            )  # fmt: skip
        except XaihubError as error:
            return Explained(explainer=number, error=str(error))
        return Explained(explainer=number, explanation=found.with_image(image, geometry))

    def _scored(self, explainer: int, metric: int, case: Case) -> Scored:
        started = time.perf_counter()
        try:
            measured, counts = self._isolation.measure(self._metrics[metric], case)
        except XaihubError as error:
            return Scored(explainer=explainer, metric=metric, error=str(error))
        return Scored(
            explainer=explainer,
            metric=metric,
            value=measured.value,
            details=measured.details,
            curve=None if measured.curve is None else [[float(value) for value in axis] for axis in measured.curve],
            forward_passes=counts.forward_passes,
            backward_passes=counts.backward_passes,
            seconds=time.perf_counter() - started,
        )

    def _scene(self, task: Task, image: SourceImage, model: Model, inputs: Inputs) -> Scene:
        found = inputs.get(task.where, image)
        text = self._config.target if task.label is None else task.label
        wanted = Target.parse(text, model.classes, model.outputs)
        return Scene(
            model=model,
            image=found.pixels,
            logits=found.logits,
            target=wanted.resolve(found.logits[None], model.outputs),
            truth=truth(model, image.rgb, task.mask, task.boxes),
            pool=inputs.pool(task.pool) if self._pooled else (),
        )
