"""RISE (Petsiuk, Das, Saenko 2018, arXiv 1806.07421).

Notation follows Sec. 3: N masks, each upsampled from an s x s grid whose cells are kept with probability p (Sec. 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor

from xaihub import (
    Attribution,
    Explainer,
    Meta,
    Model,
    Passes,
    ResolvedTarget,
    When,
    current_generator,
    preview,
    rounds,
)
from xaihub.masking import BaselineName, make_removal, masked_forward_passes
from xaihub_rise.estimators import Estimate, controlled, plain
from xaihub_rise.masks import RandomMasks

CHECKS = 8  # how often the standard error is checked during a run
LEAST = 64  # masks before a run may stop early


class RISE(Explainer):
    """Average of random masks, weighted by the target's score on the masked image."""

    stochastic = True
    parallel = True

    masks: Annotated[
        int,
        Meta(ge=1, description="Maximum number of random masks; each costs one forward pass."),
        Passes(tolerance=0.0),
    ] = 1000
    cell: Annotated[int, Meta(ge=1, description="Cells per side of the coarse grid (s in the paper).")] = 7
    keep: Annotated[float, Meta(gt=0, lt=1, description="Probability that a cell is visible (p in the paper).")] = 0.5
    baseline: BaselineName = "zero"
    output: Annotated[
        Literal["probability", "logit"],
        Meta(description="The class score that weights a mask; the paper uses the probability."),
    ] = "probability"
    estimator: Annotated[
        Literal["controlled", "plain"],
        Meta(
            description="plain is the paper's Eq. 6 over independent masks; controlled has the same expectation and"
            " less variance, by opposite pairs of masks and control variates."
        ),
    ] = "controlled"
    tolerance: Annotated[
        float,
        Meta(
            ge=0,
            description="Stop when the standard error is below this fraction of the map's spread; 0 draws all masks.",
        ),
        When(estimator="controlled"),
    ] = 0.25

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (1, 1, H, W): the mean of score times mask, divided by the keep probability.

        Values have no natural zero, so their mean over the masks is subtracted.
        """
        image = inputs[0]
        law = RandomMasks(size=(image.shape[1], image.shape[2]), cell=self.cell, keep=self.keep)
        careful = self.estimator == "controlled"
        draws = law.draw(self.masks, current_generator(), paired=careful)
        removal = make_removal(self.baseline, model, image)
        scores = torch.zeros(0)
        for count in rounds(self.masks, checks=CHECKS if careful and self.tolerance else 1):
            batches = masked_forward_passes(
                model, image, draws[len(scores) : count], removal=removal, expand=law.expand,
                done=len(scores), total=self.masks,
            )  # fmt: skip
            found = [target.score(batch.outputs, output=self.output) for batch in batches]
            scores = torch.cat([scores, *(part.cpu() for part in found)])
            make = controlled if careful else plain
            estimate = partial(make, law, draws[:count], scores, centred=not target.outputs.classify)
            if careful and count >= LEAST and count < self.masks and estimate().noise < self.tolerance:
                break
            preview(partial(self._attribution, estimate))
        return self._attribution(estimate)

    def _attribution(self, estimate: Callable[[], Estimate]) -> Attribution:
        found = estimate()
        noise = {} if found.noise != found.noise else {"stderr_to_spread": round(found.noise, 4)}  # not if NaN
        return Attribution(
            values=found.values.float()[None, None],
            details={"baseline": self.baseline, "estimator": self.estimator, "masks": found.masks, **noise},
        )
