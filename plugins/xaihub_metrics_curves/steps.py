"""What else is read off the curves: AOPC, log-odds and monotonicity."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from xaihub import Case, Measurement, Meta, Metric, MetricRefused, Scene
from xaihub.masking import BaselineName
from xaihub_metrics_curves.curves import Curves, Output, Steps, curves
from xaihub_metrics_curves.order import Patch, Unit

__all__ = ["AOPC", "LogOdds", "Monotonicity"]

Removed = Annotated[
    float, Meta(gt=0, le=1, description="Share of the image up to which points of the curve are taken.")
]


class AOPC(Metric):
    """Area over the perturbation curve (Samek et al. 2015, arXiv 1509.06321).

    The mean of f(x) - f(x_k) over k = 0..L, where x_k hides the most relevant pieces first. With order=difference,
    f(x) gives way to the score with as many of the least relevant pieces hidden.
    """

    steps: Steps = 28
    unit: Unit = "pixels"
    patch: Patch = 16
    baseline: BaselineName = "zero"
    output: Output = "probability"
    removed: Removed = 1.0
    order: Annotated[
        Literal["morf", "difference"],
        Meta(description="Most relevant first against the whole image, or against least relevant first."),
    ] = "morf"

    def score(self, case: Case) -> Measurement:
        """Return the mean fall with the falls as a curve.

        Raises:
            MetricRefused: No point of the curve lies within `removed`.
        """
        found = curves(case, steps=self.steps, unit=self.unit, patch=self.patch, baseline=self.baseline)
        if self.order == "difference":
            found.logits("hide", "show")  # both in one stream
            above = found.scores("show", self.output).flip(0)
        else:
            above = case.scene.score(case.scene.logits[None].double().cpu(), output=self.output)
        points = _points(found, self.removed)
        falls = (above - found.scores("hide", self.output))[: points + 1]
        return Measurement(value=float(falls.mean()), curve=(found.shares[: points + 1].tolist(), falls.tolist()))


class LogOdds(Metric):
    """The mean change of log p/(1-p) while the most relevant pieces are hidden (Chen et al. 2018, arXiv 1808.02610).

    For a contrast of two classes the odds are those of one class against the other.
    """

    steps: Steps = 28
    unit: Unit = "pixels"
    patch: Patch = 16
    baseline: BaselineName = "zero"
    removed: Removed = 0.2
    form: Annotated[Literal["odds", "probability"], Meta(description="log p/(1-p), or log p as in work on text.")] = (
        "odds"
    )

    def score(self, case: Case) -> Measurement:
        """Return the mean change with the changes as a curve.

        Raises:
            MetricRefused: No point of the curve lies within `removed`, or the model has one class only.
        """
        found = curves(case, steps=self.steps, unit=self.unit, patch=self.patch, baseline=self.baseline)
        points = _points(found, self.removed)
        logits = found.logits("hide")[0].double()
        values = _log_odds(case.scene, logits) if self.form == "odds" else case.scene.score(logits.log_softmax(1))
        changes = (values - values[0])[: points + 1]
        return Measurement(
            value=float(changes[1:].mean()), curve=(found.shares[: points + 1].tolist(), changes.tolist())
        )


class Monotonicity(Metric):
    """The share of steps on which showing the next more relevant pieces does not lower the score (Arya et al. 2019).

    The order is that of the signed map, lowest first. As in the published implementation the first point already
    shows one step of the image: the bare baseline is no part of it.
    """

    steps: Steps = 28
    unit: Unit = "pixels"
    patch: Patch = 16
    baseline: BaselineName = "zero"
    output: Output = "probability"
    summary: Annotated[
        Literal["share", "all"], Meta(description="Share of steps, or 1 if the score never falls and else 0.")
    ] = "share"

    def score(self, case: Case) -> Measurement:
        """Return the share, or 0 or 1, with the curve.

        Raises:
            MetricRefused: There are fewer than two steps.
        """
        found = curves(case, steps=self.steps, unit=self.unit, patch=self.patch, baseline=self.baseline)
        if len(found.counts) < 3:
            raise MetricRefused("one step has no course that could be monotone", hint="use 2 steps or more")
        # Showing the least relevant first is hiding the most relevant first, in reverse.
        scores = found.scores("hide", self.output).flip(0)
        shown = 1 - found.shares.flip(0)
        holds = scores[1:].diff() >= 0
        value = float(holds.double().mean()) if self.summary == "share" else float(holds.all())
        return Measurement(value=value, curve=(shown.tolist(), scores.tolist()))


def _points(found: Curves, removed: float) -> int:
    """Return the last point with at most this share hidden."""
    last = int((found.shares <= removed + 1e-9).sum()) - 1
    if last < 1:
        raise MetricRefused(
            f"the first of {len(found.counts) - 1} steps hides more than the share {removed:g}",
            hint="use more steps, or a larger removed",
        )
    return last


def _log_odds(scene: Scene, logits: Tensor) -> Tensor:
    """Return the (n,) log-odds of the target, exact also where its probability rounds to 1."""
    if scene.target.against is not None:
        return scene.score(logits, output="logit")
    if logits.shape[1] < 2:
        raise MetricRefused("a model with one class has no odds")
    others = logits.index_fill(1, scene.target.index.to(logits.device), -torch.inf)
    return scene.score(logits, output="logit") - others.logsumexp(1)
