"""AOPC, log-odds and monotonicity, read off the same curves."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from xaihub import Case, Measurement, Meta, MetricRefused, Scene
from xaihub_metrics_curves.curves import CurveMetric, Curves, Output

Removed = Annotated[float, Meta(gt=0, le=1, description="Fraction of the image up to which points of the curve count.")]


class AOPC(CurveMetric):
    """Area over the perturbation curve (Samek et al. 2015, arXiv 1509.06321).

    The mean of f(x) - f(x_k) over k = 0..L, where x_k masks the most relevant pieces first. With order=difference,
    f(x) is replaced by the score with equally many of the least relevant pieces masked.
    """

    output: Output = "probability"
    removed: Removed = 1.0
    order: Annotated[
        Literal["morf", "difference"],
        Meta(description="Most relevant first against the whole image, or against least relevant first."),
    ] = "morf"

    def score(self, case: Case) -> Measurement:
        """Return the mean drop with the drops as a curve.

        Raises:
            MetricRefused: No point of the curve lies within `removed`.
        """
        found = self.curves(case)
        points = _points(found, self.removed)
        if self.order == "difference":
            reference = found.scores("show", self.output).flip(0)
        else:
            reference = case.scene.score(case.scene.logits[None].double().cpu(), output=self.output)
        drops = (reference - found.scores("hide", self.output))[: points + 1]
        return Measurement(value=float(drops.mean()), curve=(found.fractions[: points + 1].tolist(), drops.tolist()))


class LogOdds(CurveMetric):
    """The mean change of log p/(1-p) while the most relevant pieces are masked (Chen et al. 2018, arXiv 1808.02610).

    For a contrast of two classes the odds are those of one class against the other.
    """

    removed: Removed = 0.2
    form: Annotated[
        Literal["odds", "probability"], Meta(description="log p/(1-p), or log p as in the literature on text.")
    ] = "odds"

    def score(self, case: Case) -> Measurement:
        """Return the mean change with the changes as a curve.

        Raises:
            MetricRefused: No point of the curve lies within `removed`, or the target has no odds: a value, several
                classes, or the only class.
        """
        found = self.curves(case)
        points = _points(found, self.removed)
        if self.form == "odds":
            values = _log_odds(case.scene, found.logits("hide").double())
        else:
            if not case.scene.target.outputs.classify:
                raise MetricRefused(f"values ({case.scene.target.outputs.kind}) have no probability")
            values = found.scores("hide", "log_probability")
        changes = (values - values[0])[: points + 1]
        return Measurement(
            value=float(changes[1:].mean()), curve=(found.fractions[: points + 1].tolist(), changes.tolist())
        )


class Monotonicity(CurveMetric):
    """The fraction of steps at which revealing the next more relevant pieces does not lower the score.

    Arya et al. 2019 (arXiv 1909.03012). The order is that of the signed map, lowest first. As in the published
    implementation, the first point already shows one step of the image: the bare baseline is not part of the curve.
    """

    output: Output = "probability"
    summary: Annotated[
        Literal["fraction", "all"], Meta(description="Fraction of steps, or 1 if the score never falls and else 0.")
    ] = "fraction"

    def score(self, case: Case) -> Measurement:
        """Return the fraction, or 0 or 1, with the curve.

        Raises:
            MetricRefused: There are fewer than two steps.
        """
        found = self.curves(case)
        if len(found.counts) < 3:
            raise MetricRefused("a single step cannot be monotone or not", hint="use 2 steps or more")
        # Revealing the least relevant first is masking the most relevant first, in reverse.
        scores = found.scores("hide", self.output).flip(0)
        shown = 1 - found.fractions.flip(0)
        holds = scores[1:].diff() >= 0
        value = float(holds.double().mean()) if self.summary == "fraction" else float(holds.all())
        return Measurement(value=value, curve=(shown.tolist(), scores.tolist()))


def _points(found: Curves, removed: float) -> int:
    """Return the last point with at most this fraction masked."""
    last = int((found.fractions <= removed + 1e-9).sum()) - 1
    if last < 1:
        raise MetricRefused(
            f"the first of {len(found.counts) - 1} steps masks more than the fraction {removed:g} of the image",
            hint="use more steps, or a larger removed",
        )
    return last


def _log_odds(scene: Scene, logits: Tensor) -> Tensor:
    """Return the (n,) log-odds of the target, exact even where its probability rounds to 1."""
    target = scene.target
    if not target.outputs.classify or target.also:
        what = "several classes" if target.also else f"values ({target.outputs.kind})"
        raise MetricRefused(f"{what} have no odds")
    if target.against is not None or target.outputs.kind != "multiclass":
        return scene.score(logits, output="logit")
    if logits.shape[1] < 2:
        raise MetricRefused("a model with one class has no odds")
    others = logits.index_fill(1, target.index.to(logits.device), -torch.inf)
    return scene.score(logits, output="logit") - others.logsumexp(1)
