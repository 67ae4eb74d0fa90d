"""Completeness: whether the values sum to the score minus the baseline's (Sundararajan et al. 2017, Prop. 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from xaihub import Case, Measurement, Meta, Metric, MetricRefused
from xaihub.masking import BaselineName, baseline_image

# A difference of scores below this share of the scores is rounding, and no gap can be measured against it.
LEAST = 1e-6


class CompletenessGap(Metric):
    """Relative difference of the sum of the values and f(x) - f(baseline); 0 is complete."""

    baseline: Annotated[
        BaselineName | None,
        Meta(description="What the score is compared with; none takes the explainer's own, else zero."),
    ] = None
    output: Annotated[
        Literal["logit", "probability", "log_probability"] | None,
        Meta(description="The score f; none takes the explainer's own, else the logit."),
    ] = None
    claim: Annotated[
        Literal["required", "ignored"],
        Meta(description="Refuse maps that are not meant to sum to the score, or measure every map alike."),
    ] = "required"

    def score(self, case: Case) -> Measurement:
        """Return the gap that the explainer reported against its own baseline, or measure it.

        Raises:
            MetricRefused: The method does not claim completeness, or claims it for another baseline or output than is
                asked for, or the score does not differ from the baseline's.
        """
        record = case.explanation.metadata
        reported = None if self.claim == "ignored" else record.get("completeness_gap")
        claimed = reported is not None or (case.explainer is not None and case.explainer.completeness)
        if self.claim == "required" and not claimed:
            name = case.explanation.explainer or "the explainer"
            raise MetricRefused(
                f"{name} does not claim that its values sum to the score", hint="use claim=ignored to measure it"
            )
        own = {
            "baseline": _own(record, "baseline", otherwise="zero"),
            "output": _own(record, "output", otherwise="logit"),
        }
        baseline, output = self.baseline or own["baseline"], self.output or own["output"]
        if reported is not None and (baseline, output) != tuple(own.values()):
            raise MetricRefused(
                f"{case.explanation.explainer} tells its gap for {own['baseline']} and the {own['output']},"
                f" which says nothing of {baseline} and the {output}",
                hint="use claim=ignored to measure it",
            )
        difference = self._difference(case, baseline, output)
        # A reported gap comes first: a map of features paints each one's value onto many pixels, whose sum is another.
        total = float(case.explanation.values.double().sum())
        gap = abs(total - difference) if reported is None else abs(float(reported))
        details = {
            "source": "measured" if reported is None else "reported",
            "gap": gap,
            "difference": difference,
            "baseline": baseline,
            "output": output,
        }
        return Measurement(value=gap / abs(difference), details=details)

    def _difference(self, case: Case, baseline: str, output: str) -> float:
        scene = case.scene

        def ask() -> Tensor:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(case.seed)
                start = baseline_image(baseline, case.model, scene.image)
            return case.model.predict(start[None]).cpu()

        logits = scene.memory.once(("logits of the baseline", baseline, case.seed), ask)
        full = float(scene.score(scene.logits.cpu()[None], output=output))
        empty = float(scene.score(logits, output=output))
        if abs(full - empty) <= LEAST * max(abs(full), abs(empty)):
            raise MetricRefused(
                f"the score of the baseline {baseline!r} is that of the image", hint="use another baseline"
            )
        return full - empty


def _own(record: Mapping[str, Any], name: str, *, otherwise: str) -> str:
    """Return what the explainer was told to use."""
    value = record.get("parameters", {}).get(name)
    # Where all is hidden and nothing is left to fill in from, "inpaint" is zero.
    return value if isinstance(value, str) and value != "inpaint" else otherwise
