"""Causal explanations: how responsible each pixel is for the answer, and a small set of pixels that keeps it.

The engine follows ReX (Chockler, Kelly, Kroening 2021, arXiv 2103.03622); `convad` hides pixels as Chanchal, Kelly,
Chockler 2025 (arXiv 2510.01038) do.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from xaihub import Attribution, Explainer, Meta, Model, ParameterError, ResolvedTarget
from xaihub.masking import Removal, batch_rows, make_removal
from xaihub_convad.deactivation import make_whole
from xaihub_convad.extraction import Strategy
from xaihub_convad.extremes import make_max, make_min
from xaihub_convad.partition import Distribution
from xaihub_convad.procedure import FEWEST_ITERATIONS, LEAST_BUDGET, MUTANTS, Procedure, Result, Set
from xaihub_convad.question import Question
from xaihub_convad.responsibility import Combine, Credit, Order, Search
from xaihub_convad.workqueue import run_together

__all__ = ["ConvAD", "Rex"]

SETTLED = 0.8  # two seeds' maps that agree less are worth a warning

CausalBaseline = Annotated[
    str,
    Meta(
        description="What hidden pixels become: auto (zero for rex, deactivate_whole for convad), min or max (the"
        " smallest or largest number of the model's input), mean, zero, blur, noise, inpaint, black, white, grey,"
        " constant:V, image:PATH, or one of 'xaihub list baselines'."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A set of pixels, asked about once more in a forward pass of its own; all of it goes into the record."""

    name: str
    sufficient: bool
    necessary: bool | None
    confidence: float
    area: float
    minimal_to_a_cell: bool


class _Causal(Explainer):
    """The engine; a subclass says how pixels are hidden unless one is asked for another way."""

    stochastic = True
    together = True
    own_baseline: ClassVar[str]

    baseline: CausalBaseline = "auto"
    strategy: Annotated[
        Strategy,
        Meta(
            description="Which pixels: global (enough for the answer), spatial (the same in a disc), contrastive"
            " (enough, and the answer is lost without them), complete (with the whole image's confidence),"
            " multiple (several that share no pixel)."
        ),
    ] = "global"
    confidence: Annotated[
        float, Meta(ge=0, le=1, description="Share of the whole image's confidence that the pixels must keep.")
    ] = 0.0
    iterations: Annotated[int, Meta(ge=1, description="Most random searches.")] = 100
    agreement: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Stop when the expected correlation with another seed's map reaches this; 1 never stops.",
        ),
    ] = 0.85
    budget: Annotated[
        int | None,
        Meta(
            description="Most forward passes for one image: three quarters for the search, the rest for sets of"
            " pixels, which may be larger then; none leaves it to the others."
        ),
    ] = None
    refinements: Annotated[int, Meta(ge=1, description="Most boxes that one search splits.")] = 2
    depth: Annotated[int, Meta(ge=1, description="Most splits on the way to a box.")] = 10
    smallest: Annotated[int, Meta(ge=4, description="Boxes of fewer pixels are not split.")] = 10
    distribution: Annotated[
        Distribution,
        Meta(description="Where a box is split: at any point alike, or rather near its middle (beta)."),
    ] = "uniform"
    keep: Annotated[int, Meta(ge=1, description="Passing mutants that a search follows at a time.")] = 1
    order: Annotated[
        Order, Meta(description="Which ones: of the least area, of the highest confidence, or random ones.")
    ] = "area"
    carry: Annotated[
        bool, Meta(description="Parts shown beside a split box stay shown; without it only the box's own do.")
    ] = True
    confidence_filter: Annotated[
        float, Meta(ge=0, le=1, description="Share of the confidence that a mutant of the search must keep.")
    ] = 0.5
    credit: Annotated[
        Credit, Meta(description="1/(1+k) as defined (definition), or 1 over the number of parts shown (share).")
    ] = "definition"
    weighted: Annotated[bool, Meta(description="Credit is multiplied by the mutant's confidence.")] = False
    combine: Annotated[Combine, Meta(description="How searches are put together: by mean or by product.")] = "mean"
    step: Annotated[int, Meta(ge=1, description="Pixels to which the size of a set is found.")] = 10
    shrink: Annotated[bool, Meta(description="Remove cells from the set until none can be spared.")] = True
    cell: Annotated[int, Meta(ge=1, description="Side of such a cell, in pixels.")] = 16
    radius: Annotated[float, Meta(gt=0, description="First radius of the spatial strategy, in pixels.")] = 25.0
    alternatives: Annotated[int, Meta(ge=1, description="Most sets of the strategy multiple.")] = 4

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> list[Attribution]:
        """Return for each row its (1, 1, H, W) responsibility, and its sets of pixels as masks among the extras.

        Raises:
            ParameterError: The budget is too small for one split and a set.
            ExplainerRefused: The model does not decide a contrast for its first class.
        """
        if self.budget is not None and self.budget < self._least:
            raise ParameterError(
                f"a budget of {self.budget} does not pay for a split and a set", hint=f"{self._least} passes or more"
            )
        name = self.own_baseline if self.baseline == "auto" else self.baseline
        seed = int(torch.randint(2**62, ()))
        state = torch.get_rng_state()
        questions = []
        for row, image in enumerate(inputs):
            torch.set_rng_state(state)  # a random baseline is that of the image alone
            questions.append(Question(model, image, target[row : row + 1], _removal(name, model, image)))
        how = self._procedure(model)
        results = run_together([(question, how.task(question, seed)) for question in questions])
        return [self._reported(name, *pair) for pair in zip(questions, results, strict=True)]

    @property
    def _least(self) -> int:
        return LEAST_BUDGET * (self.alternatives if self.strategy == "multiple" else 1)

    def _procedure(self, model: Model) -> Procedure:
        rules = Search(
            depth=self.depth,
            smallest=self.smallest,
            refinements=self.refinements,
            keep=self.keep,
            order=self.order,
            carry=self.carry,
            credit=self.credit,
            weighted=self.weighted,
            distribution=self.distribution,
            confidence=self.confidence_filter,
        )
        return Procedure(
            rules=rules,
            strategy=self.strategy,
            confidence=self.confidence,
            iterations=self.iterations,
            agreement=self.agreement,
            budget=self.budget,
            combine=self.combine,
            step=self.step,
            shrink=self.shrink,
            cell=self.cell,
            radius=self.radius,
            alternatives=self.alternatives,
            wave=max(FEWEST_ITERATIONS, -(-batch_rows(model) // MUTANTS)),
        )

    def _reported(self, baseline: str, question: Question, result: Result) -> Attribution:
        """Check every set once more and put the result together."""
        found = [self._checked(question, one) for one in result.sets]
        merged, error = result.merged, result.merged.standard_error
        masks = {one.name: torch.from_numpy(one.mask)[None, None] for one in result.sets}
        return Attribution(
            values=_map(merged.values),
            extras={**masks, "standard_error": _map(error)},
            details={
                "baseline": baseline,
                "variant": f"{self.credit} credit, {self.combine} over iterations, {self.strategy}",
                "confidence": question.confidence,
                "rank": question.rank,
                "explanations": [asdict(one) for one in found],
                "iterations": merged.count,
                "refinements": result.splits,
                "expected_agreement": merged.agreement,
                "mean_standard_error": float(error.mean()),
                "forward_passes_search": result.searched,
                "forward_passes_extraction": question.asked - result.searched,
                **({"stopped": result.stopped} if result.stopped else {}),
            },
            warnings=_warnings(question, result, found),
            forward_passes=question.asked,
        )

    def _checked(self, question: Question, one: Set) -> Found:
        """Ask about a set, and where it matters its complement, in passes of their own."""
        verdict = question.alone(one.mask)
        return Found(
            name=one.name,
            sufficient=bool(verdict.pass_at(self.confidence * question.confidence)[0]),
            necessary=not bool(question.alone(~one.mask).keeps[0]) if one.necessary else None,
            confidence=float(verdict.confidence[0]),
            area=float(one.mask.mean()),
            minimal_to_a_cell=one.minimal,
        )


class Rex(_Causal):
    """Responsibility and minimal sufficient pixels, with hidden pixels replaced."""

    own_baseline = "zero"


class ConvAD(_Causal):
    """Responsibility and minimal sufficient pixels, with hidden pixels switched off inside the network."""

    # Of the forms of deactivation the one whose sets survive new backgrounds most often: docs/explanation.
    own_baseline = "deactivate_whole"


def _removal(name: str, model: Model, image: Tensor) -> Removal:
    """Return the removal called `name`; those of this plugin are known without a hub as well."""
    own = {"min": make_min, "max": make_max, "deactivate_whole": make_whole}
    return own[name](model, image) if name in own else make_removal(name, model, image)


def _warnings(question: Question, result: Result, found: list[Found]) -> list[str]:
    """Say what the reader of the image must know."""
    warnings = []
    if question.trivial:
        warnings.append("the answer is the same with everything hidden, so hardly any pixel is needed for it")
    if question.rank:
        warnings.append(f"{question.rank} classes score above the target; kept means here that no more than these do")
    if result.merged.agreement < SETTLED:
        warnings.append(
            "the map has not settled: another seed's is expected to correlate by"
            f" {result.merged.agreement:.2f}; raise iterations"
        )
    if result.stopped:
        warnings.append(f"no more sets than {len(found)}: {result.stopped}")
    warnings += [f"{one.name} does not keep the answer in a pass of its own" for one in found if not one.sufficient]
    return warnings + [f"without {one.name} the answer stays" for one in found if one.necessary is False]


def _map(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()[None, None]
