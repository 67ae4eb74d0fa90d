"""Average drop and increase in confidence (Chattopadhay et al. 2017, arXiv 1710.11063)."""

from __future__ import annotations

import torch

from xaihub import Case, Measurement, Metric, MetricRefused
from xaihub.masking import BaselineName, masked_forward_passes
from xaihub_metrics_curves.curves import removal

__all__ = ["AverageDrop", "IncreaseInConfidence"]


class AverageDrop(Metric):
    """The share of the class's probability that the image loses when it is seen through the map.

    The map is scaled to [0, 1] by its lowest and highest value: a signed map's negative values do not become 0
    unless they are its lowest.
    """

    baseline: BaselineName = "zero"

    def score(self, case: Case) -> Measurement:
        """Return max(0, Y - O) / Y.

        Raises:
            MetricRefused: The map is constant, or the score of a contrast is not positive.
        """
        whole, through = _probabilities(case, self.baseline)
        if whole <= 0:
            raise MetricRefused(f"a drop is a share of the score, which is {whole:.3g}")
        return Measurement(value=max(0.0, whole - through) / whole, details={"whole": whole, "masked": through})


class IncreaseInConfidence(Metric):
    """1 if the image seen through the map has a higher probability than the image, else 0."""

    baseline: BaselineName = "zero"

    def score(self, case: Case) -> Measurement:
        """Return 0 or 1; the mean over images is the published figure.

        Raises:
            MetricRefused: The map is constant.
        """
        whole, through = _probabilities(case, self.baseline)
        return Measurement(value=float(through > whole), details={"whole": whole, "masked": through})


def _probabilities(case: Case, baseline: str) -> tuple[float, float]:
    """Return the target's probability for the image, and for the image seen through its map."""

    def ask() -> tuple[float, float]:
        lowest, highest = case.heat.min(), case.heat.max()
        if lowest == highest:
            raise MetricRefused(f"the map is constant, {float(lowest):.3g}, and cannot be scaled to [0, 1]")
        mask = (case.heat - lowest) / (highest - lowest)
        batches = masked_forward_passes(case.model, case.scene.image, mask[None, None], removal=removal(case, baseline))
        outputs = torch.cat([case.scene.logits[None].cpu(), *(batch.outputs.cpu() for batch in batches)])
        whole, through = case.scene.score(outputs.double(), output="probability").tolist()
        return whole, through

    key = ("curves: seen through the map", baseline, case.seed if baseline == "noise" else None)
    return case.memory.once(key, ask)
