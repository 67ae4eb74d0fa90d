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

__all__ = ["ROAD"]


class ROAD(Metric):
    """How far the score falls when the most relevant pixels are imputed, against the least relevant ones.

    morf is the mean of p(x) - p(x without the most relevant), lerf the mean of p(x without the least relevant) - p(x),
    combined the mean of the two, in which p(x) cancels. More is better for each.
    """

    order: Annotated[
        Literal["combined", "morf", "lerf"], Meta(description="Both sides, most or least relevant first.")
    ] = "combined"
    percentiles: Annotated[str, Meta(description="Percent of the pixels that are imputed, joined by commas.")] = (
        "10,20,30,40,50,60,70,80,90"
    )
    noise: Annotated[
        float, Meta(ge=0, description="Standard deviation of the noise on imputed pixels, in the model's units.")
    ] = 0.01
    output: Output = "probability"

    def score(self, case: Case) -> Measurement:
        """Return the mean over the percentiles, with the falls as a curve.

        Raises:
            ParameterError: A percentile is not a number between 0 and 100.
        """
        percents = _numbers(self.percentiles)
        wanted: list[Direction] = {"combined": ["hide", "show"], "morf": ["hide"], "lerf": ["show"]}[self.order]  # type: ignore[assignment]
        found = self._imputed(case, percents, wanted)
        whole = case.scene.score(case.scene.logits[None].double().cpu(), output=self.output)
        score = {side: case.scene.score(logits.double(), output=self.output) for side, logits in found.items()}
        sides = [whole - score["hide"]] if "hide" in score else []
        sides += [score["show"] - whole] if "show" in score else []
        falls = torch.stack(sides).mean(0)
        return Measurement(
            value=float(falls.mean()),
            curve=(percents, falls.tolist()),
            details={"whole": float(whole), **{_SIDES[side]: values.tolist() for side, values in score.items()}},
        )

    def _imputed(self, case: Case, percents: list[float], sides: list[Direction]) -> dict[Direction, Tensor]:
        """Return (n, K) logits a side; both sides that are not known yet share one stream of batches."""
        key = ("curves: imputed", tuple(percents), self.noise, case.seed)
        known: dict[Direction, Tensor] = case.memory.once(key, dict)
        missing = [side for side in sides if side not in known]
        if missing:
            order = ranking(case)
            counts = (torch.tensor(percents, dtype=torch.float64) / 100 * order.count).round().long()
            # The k least relevant pixels are hidden where the others alone are shown.
            draws = [order.draws(counts if side == "hide" else order.count - counts, side) for side in missing]
            batches = masked_forward_passes(
                case.model, case.scene.image, torch.cat(draws), removal=self._removal(case), expand=order.masks
            )
            answers = torch.cat([batch.outputs.cpu() for batch in batches])
            known.update(zip(missing, answers.split(len(percents)), strict=True))
        return {side: known[side] for side in sides}

    def _removal(self, case: Case) -> NoisyLinear:
        generator = torch.Generator().manual_seed(case.seed)
        return NoisyLinear(self.noise * torch.randn(case.scene.image.shape, generator=generator))


_SIDES: dict[Direction, str] = {"hide": "morf", "show": "lerf"}


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1.0]
    if not all(0 < number < 100 for number in numbers):
        raise ParameterError(
            f"percentiles cannot be {text!r}", hint="give numbers between 0 and 100, joined by commas: 10,30,50"
        )
    return numbers
