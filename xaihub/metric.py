"""The base class of metrics, and the case that one is asked to judge."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from xaihub.errors import MetricRefused
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.explainers.target import ResolvedTarget, Target
from xaihub.models.model import Counts, Model
from xaihub.params import Parametrised
from xaihub.randomness import seeded

__all__ = ["Case", "Measurement", "Metric", "Scene"]

T = TypeVar("T")


class _Memory:
    """Results by key, computed once."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what `compute` returned for this key, calling it the first time only."""
        if key not in self._known:
            self._known[key] = compute()
        found: T = self._known[key]
        return found


@dataclass(kw_only=True)
class Scene:
    """One image as one model sees it; shared by every explainer and metric that judges it.

    Attributes:
        model: The model.
        image: (C, H, W) input, on the model's device.
        logits: (K,) class scores of the image.
        target: The class that is explained.
        truth: (H, W) bool, the pixels where the evidence lies, where that is known.
        pool: Other images of the run, as (C, H, W) inputs with their predicted classes.
        memory: What depends on the image and the model only, such as the logits of random masks.
    """

    model: Model
    image: Tensor
    logits: Tensor
    target: ResolvedTarget
    truth: Tensor | None = None
    pool: Sequence[tuple[Tensor, int]] = ()
    memory: _Memory = field(default_factory=_Memory)

    def score(self, outputs: Tensor, *, output: str = "probability") -> Tensor:
        """Score (n, K) logits for the target: (n,), as "probability", "logit" or "log_probability"."""
        if output == "probability":
            outputs = outputs.softmax(1)
        elif output == "log_probability":
            outputs = outputs.log_softmax(1)
        return self.target.score(outputs)


class _Guarded(Scene):
    """A scene as a metric sees it: looking at what the metric has not declared is an error.

    Scores are kept by what their metric declares; one that looks at more would go on being shown after the masks or
    the photos were changed.
    """

    def __getattribute__(self, name: str) -> Any:
        closed: Mapping[str, str] = object.__getattribute__(self, "__dict__").get("_closed", {})
        if name in closed:
            raise MetricRefused(closed[name], hint=f"write needs_{name} = True in its class")
        return super().__getattribute__(name)


def _guarded(scene: Scene, metric: Metric, who: str) -> Scene:
    declared = {"truth": metric.needs_truth, "pool": metric.needs_pool}
    closed = {
        name: f"{who} looks at scene.{name}, which it does not declare" for name in declared if not declared[name]
    }
    seen = _Guarded(**{item.name: getattr(scene, item.name) for item in fields(Scene)})
    seen.__dict__["_closed"] = closed
    return seen


@dataclass(kw_only=True)
class Case:
    """One explanation to judge.

    Attributes:
        scene: The image and the model.
        explanation: What is judged.
        explainer: What made it, for metrics that explain again; None for a stored map of unknown origin.
        seed: Fixes every random choice.
        memory: What depends on this explanation, such as its deletion curve; shared by metrics.
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

    def explain(
        self,
        image: Tensor | None = None,
        *,
        model: Model | None = None,
        target: Target | None = None,
        seed: int | None = None,
    ) -> Explanation:
        """Explain again, with something changed; by default the same class of the same image.

        Args:
            image: (C, H, W) or (B, C, H, W) input instead of the scene's; of a batch the first row is returned.
            model: A model instead of the scene's.
            target: A class instead of the scene's.
            seed: A seed instead of the case's.

        Raises:
            MetricRefused: The explanation's origin is unknown.
        """
        return self.explain_batch(
            (self.scene.image if image is None else image)[None], model=model, target=target, seed=seed
        )[0]

    def explain_batch(
        self, images: Tensor, *, model: Model | None = None, target: Target | None = None, seed: int | None = None
    ) -> list[Explanation]:
        """Explain (B, C, H, W) inputs in one call; see `explain`."""
        if self.explainer is None:
            raise MetricRefused("this metric explains again, and it is unknown what made this map")
        against = self.scene.target.against
        wanted = target or Target(
            index=int(self.scene.target.index[0]),
            against=None if against is None else Target(index=int(against[0])),
        )
        return self.explainer.explain(model or self.model, images, wanted, seed=self.seed if seed is None else seed)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What `score` may return instead of a bare number.

    Attributes:
        value: The score; NaN is not allowed.
        curve: (x, y) points to draw, if the score is an area under a curve.
        details: Further facts for the record, JSON types only.
    """

    value: float
    curve: tuple[Sequence[float], Sequence[float]] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Metric(Parametrised, ABC):
    """One way to judge explanations. Parameters are declared as in an `Explainer`.

    Random numbers come from torch's global generator, which is seeded before each call.

    Attributes:
        needs_truth: The metric compares with masks or boxes (`case.scene.truth`), which must be given.
        needs_pool: The metric looks at other images of the run (`case.scene.pool`).

    Both are declared because stored scores depend on them; a metric that looks without declaring it is refused.

    Example::

        class Share(Metric):
            needs_truth = True

            def score(self, case):
                heat = case.heat.clamp(min=0)
                return float(heat[case.scene.truth].sum() / heat.sum())
    """

    needs_truth: ClassVar[bool] = False
    needs_pool: ClassVar[bool] = False

    @abstractmethod
    def score(self, case: Case) -> float | Measurement:
        """Judge one explanation.

        Raises:
            MetricRefused: The score has no meaning here (say why: a constant map, no evidence, ...).
        """

    def measure(self, case: Case) -> tuple[Measurement, Counts]:
        """Judge one explanation, seeded, with the model left as it was; also return the passes it took.

        Raises:
            MetricRefused: The score has no meaning here, came out NaN, or took what the metric does not declare.
            ParameterError: A parameter is out of range.
        """
        who = self.check_parameters()
        if self.needs_truth and case.scene.truth is None:
            raise MetricRefused(f"{who} needs masks or boxes", hint="give --masks or --boxes")
        with case.model.untouched(), case.model.counting() as counts, seeded(case.seed), torch.no_grad():
            result = self.score(replace(case, scene=_guarded(case.scene, self, who)))
        measured = result if isinstance(result, Measurement) else Measurement(value=float(result))
        if not math.isfinite(measured.value):
            raise MetricRefused(f"{who} came out as {measured.value}")
        return measured, counts
