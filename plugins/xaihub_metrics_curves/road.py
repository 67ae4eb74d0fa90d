"""ROAD, remove and debias (Rong et al. 2022, arXiv 2202.00449)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from xaihub import Case, Measurement, Meta, Metric, ParameterError
from xaihub.masking import masked_forward_passes
from xaihub_metrics_curves.curves import Output
from xaihub_metrics_curves.imputation import NoisyLinear
from xaihub_metrics_curves.order import Direction, ranking

_SIDES: dict[str, Direction] = {"morf": "hide", "lerf": "show"}


class ROAD(Metric):
    """Drop in the score when the most relevant pixels are imputed, compared with the least relevant pixels.

    morf is the mean of p(x) - p(x without the most relevant), lerf the mean of p(x without the least relevant) - p(x),
    combined the mean of the two, in which p(x) cancels. Higher is better for each.
    """

    order: Annotated[
        Literal["combined", "morf", "lerf"], Meta(description="Both sides, most or least relevant first.")
    ] = "combined"
    percentiles: Annotated[str, Meta(description="Percentages of pixels to impute, separated by commas.")] = (
        "10,20,30,40,50,60,70,80,90"
    )
    noise: Annotated[
        float, Meta(ge=0, description="Standard deviation of the noise on imputed pixels, in the model's units.")
    ] = 0.01
    output: Output = "probability"

    def score(self, case: Case) -> Measurement:
        """Return the mean over the percentiles, with the drops as a curve.

        Raises:
            ParameterError: A percentile is not a number between 0 and 100.
        """
        percents = _numbers(self.percentiles)
        whole = case.scene.score(case.scene.logits[None].double().cpu(), output=self.output)
        scores = {
            side: case.scene.score(self._imputed(case, percents, direction).double(), output=self.output)
            for side, direction in _SIDES.items()
            if self.order in (side, "combined")
        }
        drops = torch.stack([whole - s if side == "morf" else s - whole for side, s in scores.items()]).mean(0)
        return Measurement(
            value=float(drops.mean()),
            curve=(percents, drops.tolist()),
            details={"whole": float(whole), **{side: values.tolist() for side, values in scores.items()}},
        )

    def _imputed(self, case: Case, percents: list[float], direction: Direction) -> Tensor:
        """Return the (n, K) logits with each percentage of pixels imputed, evaluated once for all settings."""

        def evaluate() -> Tensor:
            order = ranking(case)
            counts = (torch.tensor(percents, dtype=torch.float64) / 100 * order.count).round().long()
            # The k least relevant pixels are masked where only the others are shown.
            counts = counts if direction == "hide" else order.count - counts
            generator = torch.Generator().manual_seed(case.seed)
            removal = NoisyLinear(self.noise * torch.randn(case.scene.image.shape, generator=generator))
            batches = masked_forward_passes(
                *(case.model, case.scene.image, counts),
                removal=removal,
                expand=lambda part: order.masks(part, direction),
            )
            return torch.cat([batch.outputs for batch in batches]).cpu()

        return case.memory.once(("curves: imputed", direction, tuple(percents), self.noise, case.seed), evaluate)


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1.0]
    if not all(0 < number < 100 for number in numbers):
        raise ParameterError(
            f"percentiles cannot be {text!r}", hint="give numbers between 0 and 100, separated by commas: 10,30,50"
        )
    return numbers
