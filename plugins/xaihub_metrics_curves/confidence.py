"""Average drop and increase in confidence (Chattopadhay et al. 2017, arXiv 1710.11063)."""

from __future__ import annotations

import torch

from xaihub import Case, Measurement, Metric, MetricRefused
from xaihub.masking import BaselineName, masked_forward_passes


class AverageDrop(Metric):
    """The fraction of the class's probability that is lost when the image is multiplied by the map.

    The map is scaled to [0, 1] by its minimum and maximum: only a signed map's lowest value becomes 0.
    """

    baseline: BaselineName = "zero"

    def score(self, case: Case) -> Measurement:
        """Return max(0, p(x) - p(m x)) / p(x).

        Raises:
            MetricRefused: The map is constant, the score of a contrast is not positive, or the outputs are values.
        """
        whole, masked = _probabilities(case, self.baseline)
        if whole <= 0:
            raise MetricRefused(f"the score of the image is {whole:.3g}, so a relative drop has no meaning")
        return Measurement(value=max(0.0, whole - masked) / whole, details={"whole": whole, "masked": masked})


class IncreaseInConfidence(Metric):
    """1 if the image multiplied by the map has a higher probability than the image, else 0."""

    baseline: BaselineName = "zero"

    def score(self, case: Case) -> Measurement:
        """Return 0 or 1; the mean over images is the published number.

        Raises:
            MetricRefused: The map is constant, or the outputs are values.
        """
        whole, masked = _probabilities(case, self.baseline)
        return Measurement(value=float(masked > whole), details={"whole": whole, "masked": masked})


def _probabilities(case: Case, baseline: str) -> tuple[float, float]:
    """Return the target's probability for the image, and for the image multiplied by its map."""
    if not case.scene.target.outputs.classify:
        raise MetricRefused(f"values ({case.scene.target.outputs.kind}) have no confidence")

    def evaluate() -> tuple[float, float]:
        lowest, highest = case.heat.min(), case.heat.max()
        if lowest == highest:
            raise MetricRefused(f"the map is constant, {float(lowest):.3g}, and cannot be scaled to [0, 1]")
        mask = (case.heat - lowest) / (highest - lowest)
        batches = masked_forward_passes(case.model, case.scene.image, mask[None, None], removal=case.removal(baseline))
        logits = torch.cat([case.scene.logits[None].cpu(), *(batch.outputs.cpu() for batch in batches)])
        whole, masked = case.scene.score(logits.double(), output="probability").tolist()
        return whole, masked

    return case.memory.once(("curves: multiplied by the map", baseline, case.seed), evaluate)
