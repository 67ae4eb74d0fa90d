"""Causal explanations: each pixel's responsibility for the decision, and a minimal set of pixels that keeps it.

The engine follows ReX (Chockler, Kelly, Kroening 2021, arXiv 2103.03622); `convad` masks pixels as Chanchal, Kelly,
Chockler 2025 (arXiv 2510.01038) do.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from xaihub import (
    Attribution,
    Explainer,
    Meta,
    Model,
    ParameterError,
    PixelSet,
    ResolvedTarget,
    current_generator,
    forked_generator,
    preview,
)
from xaihub.masking import batch_rows
from xaihub_convad.baselines import named_removal
from xaihub_convad.search.evaluation import SLACK, Evaluator
from xaihub_convad.search.extraction import SAME_CONFIDENCE, neighbours
from xaihub_convad.search.procedure import LEAST_BUDGET, MUTANTS, CausalSearch, FoundSet, Result
from xaihub_convad.search.scheduling import run_all
from xaihub_convad.search.settings import Settings

LITTLE = 0.1  # of the original confidence; a set that keeps less is worth a warning
STABLE = 0.5  # a lower expected correlation with another seed's map is worth a warning


class _Causal(Settings, Explainer):
    """The causal search; subclasses choose the default removal."""

    stochastic = True
    parallel = True
    together = True
    own_baseline: ClassVar[str]

    baseline: Annotated[
        str,
        Meta(
            description="What replaces masked pixels: auto (zero for rex, deactivate_most for convad), min or max (the"
            " smallest or largest value of the model's input), mean, zero, blur, noise, inpaint, black, white, grey,"
            " constant:V, image:PATH, or a name from 'xaihub list baselines'."
        ),
    ] = "auto"

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> list[Attribution]:
        """Return for each row its (1, 1, H, W) responsibility and its sets of pixels.

        Raises:
            ParameterError: The budget does not cover one split and one set.
            ExplainerRefused: The target is a contrast whose first class does not lead.
        """
        least = LEAST_BUDGET * (self.alternatives if self.strategy == "multiple" else 1)
        if self.budget is not None and self.budget < least:
            raise ParameterError(
                f"budget={self.budget} does not cover one split and one set",
                hint=f"give {least} forward passes or more",
            )
        name = self.own_baseline if self.baseline == "auto" else self.baseline
        seed = int(torch.randint(2**62, (), generator=current_generator()))
        searches: list[CausalSearch] = []
        seen: dict[str, Any] = {"seen": _preview} if len(inputs) == 1 else {}
        for row, image in enumerate(inputs):
            with forked_generator():  # a random baseline depends on its own image only
                removal = named_removal(name, model, image)
            evaluator = Evaluator(model, image, target[row : row + 1], removal)
            wave = -(-batch_rows(model) // MUTANTS)
            searches.append(CausalSearch(settings=self, evaluator=evaluator, seed=seed, wave=wave, **seen))
        results = run_all([(one.evaluator, one.task()) for one in searches])
        return [self._reported(name, one.evaluator, found) for one, found in zip(searches, results, strict=True)]

    def _reported(self, baseline: str, evaluator: Evaluator, result: Result) -> Attribution:
        """Evaluate every set once more, separately, and build the result."""
        sets = [self._checked(baseline, evaluator, one) for one in result.sets]
        merged, error = result.merged, result.merged.standard_error
        return Attribution(
            values=_map(merged.values),
            sets=[sets],
            extras={"standard_error": _map(error)},
            details={
                "baseline": baseline,
                "confidence": evaluator.confidence,
                "rank": evaluator.rank,
                "iterations": merged.count,
                "refinements": result.splits,
                "expected_agreement": merged.agreement,
                "mean_standard_error": float(error.mean()),
                "forward_passes_search": result.searched,
                "forward_passes_extraction": evaluator.rows - result.searched,
                **({"stopped": result.stopped} if result.stopped else {}),
            },
            warnings=_warnings(evaluator, result, sets),
            forward_passes=evaluator.rows,
        )

    def _checked(self, baseline: str, evaluator: Evaluator, one: FoundSet) -> PixelSet:
        """Evaluate a set in separate forward passes: alone, to a pixel, and its complement where the role needs it."""
        verdict = evaluator.alone(one.mask, *neighbours(one.mask))
        score, runner_up = float(verdict.confidence[0]), float(verdict.runner_up[0])
        holds, details = bool(verdict.pass_at(self.confidence * evaluator.confidence)[0]), {}
        if one.role == "contrastive":
            details = {"sufficient": holds, "necessary": not bool(evaluator.alone(~one.mask).keeps[0])}
            holds = all(details.values())
        if one.role == "complete":
            holds = holds and abs(score - evaluator.confidence) < SAME_CONFIDENCE + SLACK
        eroded, dilated = map(bool, verdict.keeps[1:])
        return PixelSet(
            mask=torch.from_numpy(one.mask),
            role=one.role,
            holds=holds,
            score=score,
            whole=evaluator.confidence,
            runner_up=None if math.isnan(runner_up) else runner_up,
            baseline=baseline,
            details={"minimal_to_a_cell": one.minimal, "kept_if_eroded": eroded, "kept_if_dilated": dilated, **details},
        )


class Rex(_Causal):
    """Responsibility and a minimal sufficient set of pixels, with masked pixels replaced."""

    own_baseline = "zero"


class ConvAD(_Causal):
    """Responsibility and a minimal sufficient set of pixels, with units switched off inside the network."""

    # Large sets, which keep their class on new backgrounds, and which losing a pixel at their border does not undo.
    own_baseline = "deactivate_most"


def _warnings(evaluator: Evaluator, result: Result, sets: list[PixelSet]) -> list[str]:
    warnings = []
    if evaluator.trivial:
        warnings.append("the class is kept even with everything masked, so hardly any pixel is needed for it")
    if evaluator.rank:
        warnings.append(f"{evaluator.rank} classes score above the target; a set keeps the target if no more do")
    if result.merged.agreement < STABLE:
        warnings.append(
            "the map is not stable: its expected correlation with another seed's is"
            f" {result.merged.agreement:.2f}; raise iterations"
        )
    if result.stopped:
        warnings.append(f"no further set was found: {result.stopped}; more alternatives have no effect")
    for one in sets:
        if not one.holds:
            why = ": the class is kept without it" if one.details.get("necessary") is False else ""
            warnings.append(f"the {one.role} set is not {one.role} in a separate forward pass{why}")
        if one.score is not None and one.score < LITTLE * evaluator.confidence:
            warnings.append(
                f"the {one.role} set keeps less than a tenth of the confidence ({one.claim}); raise confidence"
            )
        lost = [word for word in ("eroded", "dilated") if not one.details[f"kept_if_{word}"]]
        if lost and one.holds:
            warnings.append(f"the class changes if the {one.role} set is {' or '.join(lost)} by one pixel")
    return warnings


def _preview(values: Any) -> None:
    """Show a preliminary map, which only a budget of seconds asks for, and that explains one image at a time."""
    preview(lambda: Attribution(values=_map(values)))


def _map(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()[None, None]
