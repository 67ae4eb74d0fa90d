"""The base class of metrics, and the case that a metric scores."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import astuple, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from xaihub.errors import MetricRefused
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.explainers.target import ResolvedTarget, Target
from xaihub.masking import Removal, baseline_image, make_removal
from xaihub.models.model import Model
from xaihub.models.passes import Counts
from xaihub.params import Parametrised
from xaihub.randomness import seeded
from xaihub.records import plain

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(eq=False)
class _Result:
    """A remembered value, the passes spent on it, and the remembered results it rests on (their passes excluded)."""

    value: Any
    cost: Counts
    rests_on: set[_Result]


class _Meter:
    """Charges a measurement for its own passes and for all remembered results it uses, whoever computed them.

    So the passes recorded with a score are those of computing it alone, whatever the order of a run's scores and
    wherever the run was interrupted.
    """

    def __init__(self, passes: Counts) -> None:
        self._passes = passes  # grows while the network runs
        self._remembered = Counts()  # the part of them that results account for
        self.used: set[_Result] = set()

    @property
    def own(self) -> Counts:
        return self._passes - self._remembered

    def computed(self, compute: Callable[[], Any]) -> _Result:
        before, outer, self.used = self.own, self.used, set()
        try:
            result = _Result(compute(), self.own - before, self.used)
        finally:
            self.used = outer
        self._remembered += result.cost
        return result

    def charged(self) -> Counts:
        return sum((result.cost for result in self.used), self.own)


_METER: ContextVar[_Meter | None] = ContextVar("meter", default=None)


class _Memory:
    """Results by key, each computed once."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Result] = {}
        self._apart: dict[str, _Memory] = {}

    def apart(self, plugin: str) -> _Memory:
        """Return the memory of one plugin alone, which no other plugin's results are taken from."""
        return self._apart.setdefault(plugin, _Memory())

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what `compute` returned for this key, calling it the first time only."""
        meter = _METER.get() or _Meter(Counts())
        if key not in self._known:
            self._known[key] = meter.computed(compute)
        result = self._known[key]
        meter.used |= {result, *result.rests_on}
        found: T = result.value
        return found

    def many(self, keys: Sequence[K], compute: Callable[[list[K]], Sequence[T]]) -> list[T]:
        """Return one result per key; those that are missing are computed in one call.

        Each is charged an equal part of the call's passes, so each must need the same number, such as one row.
        """
        meter = _METER.get() or _Meter(Counts())
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        if missing:
            whole = meter.computed(lambda: compute(missing))
            part = Counts(*(spent // len(missing) for spent in astuple(whole.cost)))
            for key, value in zip(missing, whole.value, strict=True):
                self._known[key] = _Result(value, part, whole.rests_on)
        results = [self._known[key] for key in keys]
        meter.used.update(*({result, *result.rests_on} for result in results))
        return [result.value for result in results]


@dataclass(kw_only=True)
class Scene:
    """One image as one model sees it, shared by all explainers and metrics.

    Attributes:
        model: The model.
        image: (C, H, W) input, on the model's device.
        logits: (K,) class scores of the image.
        target: The class that is explained.
        truth: (H, W) bool, the pixels that hold the evidence, if known.
        pool: Other images of the run, as (C, H, W) inputs with their predicted classes.
        memory: Results that depend only on the image and the model, such as the logits of random masks.
    """

    model: Model
    image: Tensor
    logits: Tensor
    target: ResolvedTarget
    truth: Tensor | None = None
    pool: Sequence[tuple[Tensor, int]] = ()
    memory: _Memory = field(default_factory=_Memory)

    def score(self, logits: Tensor, *, output: str = "probability") -> Tensor:
        """Score (n, K) logits for the target: (n,), as "probability", "logit" or "log_probability"."""
        return self.target.score(logits, output=output)


class _Guarded(Scene):
    """A scene as a metric sees it: reading what the metric has not declared is an error.

    Stored scores are keyed by what their metric declares; an undeclared dependence would keep them after the masks or
    the other images changed.
    """

    def __getattribute__(self, name: str) -> Any:
        closed: Mapping[str, str] = object.__getattribute__(self, "__dict__").get("_closed", {})
        if name in closed:
            raise MetricRefused(closed[name], hint=f"write needs_{name} = True in its class")
        return super().__getattribute__(name)


def _private(case: Case, metric: Metric, who: str) -> Case:
    """Return the case as a metric sees it: what a third party writes to must not reach the scores of others."""
    scene = case.scene
    if metric.origin.builtin:
        return replace(case, scene=_guarded(scene, metric, who))
    scene = replace(
        scene,
        image=scene.image.clone(),
        logits=scene.logits.clone(),
        target=copy.deepcopy(scene.target),
        truth=None if scene.truth is None else scene.truth.clone(),
        pool=[(image.clone(), label) for image, label in scene.pool] if metric.needs_pool else (),
        memory=scene.memory.apart(metric.origin.plugin),
    )
    explanation = replace(copy.deepcopy(replace(case.explanation, image=None)), image=case.explanation.image)
    memory = case.memory.apart(metric.origin.plugin)
    return replace(case, scene=_guarded(scene, metric, who), explanation=explanation, memory=memory)


def _plain(result: Any) -> Measurement:
    """Return what `score` returned as numbers and JSON types, while the metric can still be blamed."""
    found = result if isinstance(result, Measurement) else Measurement(value=float(result))
    curve = None if found.curve is None else tuple([float(value) for value in axis] for axis in found.curve)
    return replace(found, value=float(found.value), curve=curve, details=plain(found.details))  # type: ignore[arg-type]


def _guarded(scene: Scene, metric: Metric, who: str) -> Scene:
    declared = {"truth": metric.needs_truth, "pool": metric.needs_pool}
    closed = {name: f"{who} reads scene.{name} without declaring it" for name in declared if not declared[name]}
    seen = _Guarded(**{item.name: getattr(scene, item.name) for item in fields(Scene)})
    seen.__dict__["_closed"] = closed
    return seen


@dataclass(kw_only=True)
class Case:
    """One explanation to score.

    Attributes:
        scene: The image and the model.
        explanation: The explanation.
        explainer: What made it, for metrics that re-run the explainer; None for a stored map of unknown origin.
        seed: Fixes every random choice.
        memory: Results that depend on this explanation, such as its deletion curve; shared by metrics.
    """

    scene: Scene
    explanation: Explanation
    explainer: Explainer | None = None
    seed: int = 0
    memory: _Memory = field(default_factory=_Memory)

    @property
    def model(self) -> Model:
        """The model."""
        return self.scene.model

    @cached_property
    def heat(self) -> Tensor:
        """(H, W) float32 map on the CPU: the values summed over channels."""
        return self.explanation.heatmap()

    def baseline(self, name: str) -> Tensor:
        """Return the (C, H, W) baseline image called `name`; noise is the same for all metrics.

        Raises:
            ParameterError: No baseline has that name, or it is not a fixed image.
        """
        return self._seeded(baseline_image, name)

    def removal(self, name: str) -> Removal:
        """Return the removal operator for the baseline called `name`; noise is the same for all metrics.

        Raises:
            ParameterError: No baseline has that name.
        """
        return self._seeded(make_removal, name)

    def _seeded(self, make: Callable[[str, Model, Tensor], T], name: str) -> T:
        def compute() -> T:
            with seeded(self.seed):
                return make(name, self.model, self.scene.image)

        return self.scene.memory.once((make, name, self.seed), compute)

    def explain(
        self,
        image: Tensor | None = None,
        *,
        model: Model | None = None,
        target: Target | None = None,
        seed: int | None = None,
    ) -> Explanation:
        """Re-run the explainer with something changed; by default for the same class of the same image.

        Args:
            image: (C, H, W) input instead of the scene's.
            model: A model instead of the scene's.
            target: A class instead of the scene's.
            seed: A seed instead of the case's.

        Raises:
            MetricRefused: The explanation's explainer is unknown.
        """
        known = self.scene.logits[None] if image is None and model is None else None
        inputs = (self.scene.image if image is None else image)[None]
        return self.explain_batch(inputs, model=model, target=target, seed=seed, logits=known)[0]

    def explain_batch(
        self,
        images: Tensor,
        *,
        model: Model | None = None,
        target: Target | None = None,
        seed: int | None = None,
        logits: Tensor | None = None,
    ) -> list[Explanation]:
        """Explain (B, C, H, W) inputs, with (B, K) `logits` if known, in one call; see `explain`."""
        if self.explainer is None:
            raise MetricRefused("this metric re-runs the explainer, but the map's explainer is unknown")
        wanted, seed = target or self.scene.target.fixed(), self.seed if seed is None else seed
        return self.explainer.explain(model or self.model, images, wanted, seed=seed, logits=logits)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What `score` may return instead of a bare number.

    Attributes:
        value: The score; must be finite.
        curve: (x, y) points to draw, if the score summarises a curve.
        details: Additional facts for the record, JSON types only.
    """

    value: float
    curve: tuple[Sequence[float], Sequence[float]] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Metric(Parametrised, ABC):
    """One way to score explanations. Parameters are declared as in an `Explainer`.

    Random numbers come from torch's global generator, which is seeded before each call; so one metric runs at a time,
    whatever the number of threads.

    Attributes:
        needs_truth: The metric compares with masks or boxes (`case.scene.truth`), which must be given.
        needs_pool: The metric uses other images of the run (`case.scene.pool`).

    Both must be declared because stored scores depend on them; undeclared access is refused.

    Example::

        class Inside(Metric):
            needs_truth = True

            def score(self, case):
                heat = case.heat.clamp(min=0)
                return float(heat[case.scene.truth].sum() / heat.sum())
    """

    needs_truth: ClassVar[bool] = False
    needs_pool: ClassVar[bool] = False
    noun: ClassVar[str] = "metric"

    @abstractmethod
    def score(self, case: Case) -> float | Measurement:
        """Score one explanation.

        Raises:
            MetricRefused: The score has no meaning here (give the reason: a constant map, no evidence, ...).
        """

    def measure(self, case: Case) -> tuple[Measurement, Counts]:
        """Score one explanation, seeded, leaving the model as it was; also return the passes of scoring it alone.

        Remembered results (`case.memory`, `case.scene.memory`) are charged in full, whoever computed them; the
        predictions for `scene.logits` and `scene.pool` are not charged.

        Raises:
            MetricRefused: The score has no meaning here, is not finite, or used what the metric does not declare.
            ParameterError: A parameter is out of range.
            PluginError: `score` changed the network or the process and did not undo it.
        """
        who = self.check_parameters()
        if self.needs_truth and case.scene.truth is None:
            raise MetricRefused(f"{who} needs masks or boxes", hint="give --masks or --boxes")
        with (
            case.model.untouched(by=self),
            case.model.counting() as passes,
            seeded(case.seed),
            torch.no_grad(),
        ):
            outer = _METER.set(meter := _Meter(passes))
            try:
                result = self.score(_private(case, self, who))
            finally:
                _METER.reset(outer)
            measured = _plain(result)
        if not math.isfinite(measured.value):
            raise MetricRefused(f"{who} returned {measured.value}")
        return measured, meter.charged()
