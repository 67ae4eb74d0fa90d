"""Score curves: the model's outputs while an image is masked or revealed step by step.

Two curves cover every order: masking the least relevant pieces first is revealing the most relevant ones first, read
in reverse, and vice versa.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from xaihub import Case, Meta, Metric
from xaihub.masking import BaselineName, masked_forward_passes
from xaihub_metrics_curves.order import Direction, Patch, Ranking, Unit, ranking

Steps = Annotated[
    int, Meta(ge=1, description="Equal steps from the whole image to the baseline; each costs one forward pass.")
]
Output = Annotated[Literal["probability", "logit"], Meta(description="The model output that is scored.")]


class Curves:
    """The model's outputs for one image in the order of one map, on one baseline."""

    def __init__(self, case: Case, order: Ranking, *, steps: int, baseline: str) -> None:
        """Prepare `steps` equal steps, or one per piece if there are fewer pieces; nothing is evaluated yet."""
        self._case, self._order, self._baseline = case, order, baseline
        points = min(steps, order.count)
        self.counts = torch.arange(points + 1) * order.count // points  # pieces that have changed: 0, ..., all
        self.fractions = self.counts.double() / order.count  # of the image's pieces

    def logits(self, direction: Direction) -> Tensor:
        """Return (points, K) logits, evaluated once for all metrics.

        "hide" starts from the whole image and masks the highest values first; "show" starts from the baseline and
        reveals the highest values first.

        Raises:
            ParameterError: No baseline has that name.
        """
        key = ("curves: logits", direction, len(self.counts), self._order.key, self._baseline, self._case.seed)
        return self._case.memory.once(key, lambda: self._evaluate(direction))

    def scores(self, direction: Direction, output: str) -> Tensor:
        """Return the (points,) scores of the target along one curve, as float64."""
        return self._case.scene.score(self.logits(direction).double(), output=output)

    def _evaluate(self, direction: Direction) -> Tensor:
        case = self._case
        whole = case.scene.logits.detach().float().cpu()[None]
        empty = _empty(case, self._baseline)
        batches = masked_forward_passes(
            case.model,
            case.scene.image,
            self.counts[1:-1],
            removal=case.removal(self._baseline),
            expand=lambda counts: self._order.masks(counts, direction),
        )
        first, last = (whole, empty) if direction == "hide" else (empty, whole)
        between = [batch.outputs for batch in batches]
        return torch.cat([first, *(part.cpu() for part in between), last])


class CurveMetric(Metric):
    """A metric read off the curves; metrics with the same parameters share the forward passes."""

    steps: Steps = 28
    unit: Unit = "pixels"
    patch: Patch = 16
    baseline: BaselineName = "zero"

    def curves(self, case: Case) -> Curves:
        """Return the case's curves."""
        return Curves(case, ranking(case, self.unit, self.patch), steps=self.steps, baseline=self.baseline)


def _empty(case: Case, baseline: str) -> Tensor:
    """Return the (1, K) logits of the baseline alone, evaluated once per image."""

    def evaluate() -> Tensor:
        mask = torch.zeros(1, 1, *case.scene.image.shape[-2:])
        batches = masked_forward_passes(case.model, case.scene.image, mask, removal=case.removal(baseline))
        return torch.cat([batch.outputs for batch in batches]).cpu()

    return case.scene.memory.once(("curves: baseline", baseline, case.seed), evaluate)
