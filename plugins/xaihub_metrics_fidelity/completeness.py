"""Completeness: whether the values sum to the score minus the baseline's (Sundararajan et al. 2017, Prop. 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from torch import Tensor

from xaihub import Case, Measurement, Meta, Metric, MetricRefused
from xaihub.masking import BaselineName

# A difference of scores below this fraction of the scores is a rounding error; no gap is relative to it.
LEAST = 1e-6


class CompletenessGap(Metric):
    """Relative difference of the sum of the values and f(x) - f(baseline); 0 is complete."""

    baseline: Annotated[
        BaselineName | None,
        Meta(description="Baseline of the comparison (default: the explainer's own, else zero)."),
    ] = None
    output: Annotated[
        Literal["logit", "probability", "log_probability"] | None,
        Meta(description="The score f (default: the explainer's own, else the logit)."),
    ] = None
    claim: Annotated[
        Literal["required", "ignored"],
        Meta(description="Refuse methods that do not claim completeness, or measure every map."),
    ] = "required"

    def score(self, case: Case) -> Measurement:
        """Return the gap that the explainer reported for its own baseline, or else measure it.

        Raises:
            MetricRefused: The method does not claim completeness, or reported its gap for another baseline or output,
                or the score equals the baseline's.
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
                f"{case.explanation.explainer} reports its gap for {own['baseline']} and the {own['output']},"
                f" not for {baseline} and the {output}",
                hint="use claim=ignored to measure it",
            )
        difference = self._difference(case, baseline, output)
        # A reported gap takes precedence: a map that paints a feature's value onto many pixels has another sum.
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

        def evaluate() -> Tensor:
            return case.model.predict(case.baseline(baseline)[None]).cpu()

        logits = scene.memory.once(("logits of the baseline", baseline, case.seed), evaluate)
        full = float(scene.score(scene.logits.cpu()[None], output=output))
        empty = float(scene.score(logits, output=output))
        if abs(full - empty) <= LEAST * max(abs(full), abs(empty)):
            raise MetricRefused(
                f"the baseline {baseline!r} has the same score as the image", hint="use another baseline"
            )
        return full - empty


def _own(record: Mapping[str, Any], name: str, *, otherwise: str) -> str:
    """Return a parameter of the explainer."""
    value = record.get("parameters", {}).get(name)
    # With all pixels masked there is nothing to inpaint from, and "inpaint" is zero.
    return value if isinstance(value, str) and value != "inpaint" else otherwise
