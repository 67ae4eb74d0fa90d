"""Explanation metrics of a trained model on the images that its run held out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xaihub.errors import ExplainerRefused, MetricRefused
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.explainers.target import Target
from xaihub.hub import Hub
from xaihub.images import SourceImage
from xaihub.metric import Case, Metric, Scene
from xaihub.models.model import Model
from xaihub.specs import Judged
from xaihub.training.config import Config
from xaihub.training.setup import labelled_images, prepared

if TYPE_CHECKING:
    from xaihub.training.loop.trainer import Watch

Judges = Sequence[tuple[Explainer, Sequence[Metric]]]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What explanations of a model score.

    Attributes:
        scores: Mean scores by "explainer metric"; None if refused.
        reasons: Why a score was refused, by the same names.
        examples: The explanations of the first images, one list per image.
        images: Number of explained images.
    """

    scores: dict[str, float | None]
    reasons: dict[str, str]
    examples: list[list[Explanation]]
    images: int


def make_judges(hub: Hub, judged: Sequence[Judged]) -> Judges:
    """Return the explainers with the metrics that score them.

    Raises:
        XaihubError: One of them does not exist, or refuses a parameter.
    """
    return [
        (
            hub.get_explainer(item.explainer, **item.parameters),
            [hub.get_metric(name, **item.metric_parameters.get(name, {})) for name in item.metrics],
        )
        for item in judged
    ]


def judge(plan: Config, model: Model, judges: Judges, *, images: int, shown: int, watch: Watch) -> Verdict:
    """Explain the true class of up to `images` held-out images (training images if none are held out), and score it."""
    data = prepared(labelled_images(plan), model, plan, watch, checked=True)
    held = list(data.val or data.train)
    some = [held[round(i * (len(held) - 1) / max(images - 1, 1))] for i in range(min(images, len(held)))]
    found: dict[str, list[float]] = {f"{e.name} {m.name}": [] for e, metrics in judges for m in metrics}
    reasons: dict[str, str] = {}
    examples: list[list[Explanation]] = []
    for number, index in enumerate(some):
        watch("explaining", number, len(some))
        image, name = data.images.read(index), data.images.names[index]
        inputs, geometry = model.prepare(image)
        logits = model.predict(inputs[None])
        target = Target(index=data.images.labels[index])  # the true class, so that all models explain the same one
        scene = Scene(model=model, image=inputs, logits=logits[0], target=target.resolve(logits))
        row: list[Explanation] = []
        for explainer, metrics in judges:
            try:
                explanation = explainer.explain(model, inputs[None], target, seed=plan.seed, logits=logits)[0]
            except ExplainerRefused as error:
                reasons |= {f"{explainer.name} {metric.name}": str(error) for metric in metrics}
                continue
            photo = SourceImage(rgb=image, name=Path(name).stem, source=name, sha256="")
            row.append(explanation.with_image(photo, geometry))
            case = Case(scene=scene, explanation=explanation, explainer=explainer, seed=plan.seed)
            for metric in metrics:
                key = f"{explainer.name} {metric.name}"
                try:
                    found[key].append(metric.measure(case)[0].value)
                except MetricRefused as error:
                    reasons[key] = str(error)
        if row and len(examples) < shown:
            examples.append(row)
    means = {key: statistics.fmean(values) if values else None for key, values in found.items()}
    return Verdict(scores=means, reasons=reasons, examples=examples, images=len(some))
