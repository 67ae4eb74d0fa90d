"""Causal explanations: how responsible each pixel is for the answer, and a small set of pixels that keeps it.

The engine follows ReX (Chockler, Kelly, Kroening 2021, arXiv 2103.03622); `convad` hides pixels as Chanchal, Kelly,
Chockler 2025 (arXiv 2510.01038) do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from xaihub import Attribution, Explainer, Meta, Model, ParameterError, ResolvedTarget
from xaihub.masking import Removal, make_removal
from xaihub_convad.deactivation import make_deactivation
from xaihub_convad.extraction import Goal, Strategy, adjusted, grown, prefix, ranking, shrunk, spotlight
from xaihub_convad.extremes import make_max, make_min
from xaihub_convad.partition import SUBSETS, Distribution, Mask
from xaihub_convad.question import Question
from xaihub_convad.responsibility import Combine, Credit, Iteration, Order, Responsibility, Search, search
from xaihub_convad.workqueue import Task, run, run_together

__all__ = ["ConvAD", "Rex"]

MUTANTS = len(SUBSETS)
FEWEST_ITERATIONS = 4  # before the map may count as settled
SETTLED = 0.8  # two seeds' maps that agree less are worth a warning

CausalBaseline = Annotated[
    str,
    Meta(
        description="What hidden pixels become: auto (zero for rex, deactivate for convad), min or max (the smallest or"
        " largest number of the model's input), mean, zero, blur, noise, inpaint, black, white, grey, constant:V,"
        " image:PATH, or one of 'xaihub list baselines'."
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
    own_baseline: ClassVar[str]

    def __init__(
        self,
        *,
        baseline: CausalBaseline = "auto",
        strategy: Annotated[
            Strategy,
            Meta(
                description="Which pixels: global (enough for the answer), spatial (the same in a disc), contrastive"
                " (enough, and the answer is lost without them), complete (with the whole picture's confidence),"
                " multiple (several that share no pixel)."
            ),
        ] = "global",
        confidence: Annotated[
            float, Meta(ge=0, le=1, description="Share of the whole picture's confidence that the pixels must keep.")
        ] = 0.0,
        iterations: Annotated[int, Meta(ge=1, description="Most random searches.")] = 30,
        agreement: Annotated[
            float,
            Meta(
                ge=0,
                le=1,
                description="Stop when the expected correlation with another seed's map reaches this; 1 never stops.",
            ),
        ] = 0.9,
        budget: Annotated[
            int | None, Meta(description="Most forward passes for one map, 14 a split; none leaves it to the others.")
        ] = None,
        refinements: Annotated[int, Meta(ge=1, description="Most boxes that one search splits.")] = 4,
        depth: Annotated[int, Meta(ge=1, description="Most splits on the way to a box.")] = 10,
        smallest: Annotated[int, Meta(ge=4, description="Boxes of fewer pixels are not split.")] = 10,
        distribution: Annotated[
            Distribution,
            Meta(description="Where a box is split: at any point alike, or rather near its middle (beta)."),
        ] = "uniform",
        keep: Annotated[int, Meta(ge=1, description="Passing mutants that a search follows at a time.")] = 1,
        order: Annotated[
            Order, Meta(description="Which ones: of the least area, of the highest confidence, or random ones.")
        ] = "area",
        carry: Annotated[
            bool, Meta(description="Parts shown beside a split box stay shown; without it only the box's own do.")
        ] = True,
        confidence_filter: Annotated[
            float, Meta(ge=0, le=1, description="Share of the confidence that a mutant of the search must keep.")
        ] = 0.0,
        credit: Annotated[
            Credit, Meta(description="1 over the number of parts shown (share), or 1/(1+k) as defined (definition).")
        ] = "share",
        weighted: Annotated[bool, Meta(description="Credit is multiplied by the mutant's confidence.")] = False,
        combine: Annotated[Combine, Meta(description="How searches are put together: by mean or by product.")] = "mean",
        step: Annotated[int, Meta(ge=1, description="Pixels to which the size of a set is found.")] = 10,
        shrink: Annotated[bool, Meta(description="Remove cells from the set until none can be spared.")] = True,
        cell: Annotated[int, Meta(ge=1, description="Side of such a cell, in pixels.")] = 16,
        radius: Annotated[float, Meta(gt=0, description="First radius of the spatial strategy, in pixels.")] = 25.0,
        alternatives: Annotated[int, Meta(ge=1, description="Most sets of the strategy multiple.")] = 4,
    ) -> None:
        self.baseline = baseline
        self.strategy = strategy
        self.confidence = confidence
        self.iterations = iterations
        self.agreement = agreement
        self.budget = budget
        self.refinements = refinements
        self.depth = depth
        self.smallest = smallest
        self.distribution = distribution
        self.keep = keep
        self.order = order
        self.carry = carry
        self.confidence_filter = confidence_filter
        self.credit = credit
        self.weighted = weighted
        self.combine = combine
        self.step = step
        self.shrink = shrink
        self.cell = cell
        self.radius = radius
        self.alternatives = alternatives

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return the (1, 1, H, W) responsibility, and the sets of pixels as masks among the extras.

        Raises:
            ParameterError: The budget does not pay for a single split.
            ExplainerRefused: The model does not decide a contrast for its first class.
        """
        name = self.own_baseline if self.baseline == "auto" else self.baseline
        question = Question(model, inputs[0], target, _removal(name, model, inputs[0]))
        seed = int(torch.randint(2**62, ()))
        warnings = []
        if question.trivial:
            warnings.append("the answer is the same with everything hidden, so hardly any pixel is needed for it")
        if question.rank:
            warnings.append(
                f"{question.rank} classes score above the target; kept means here that no more than these do"
            )
        merged, refinements = self._responsibility(question, seed, None)
        searched = question.asked
        if merged.agreement < SETTLED:
            warnings.append(
                f"the map has not settled: another seed's is expected to correlate by {merged.agreement:.2f}; raise"
                " iterations"
            )
        sets, reason = self._sets(question, merged, seed)
        found = [self._checked(question, name, mask, necessary) for name, mask, necessary in sets]
        warnings += [f"{one.name} does not keep the answer in a pass of its own" for one in found if not one.sufficient]
        warnings += [f"without {one.name} the answer stays" for one in found if one.necessary is False]
        masks, error = {key: torch.from_numpy(mask)[None, None] for key, mask, _ in sets}, merged.standard_error
        return Attribution(
            values=_map(merged.values),
            extras={**masks, "standard_error": _map(error)},
            details={
                "baseline": name,
                "variant": f"{self.credit} credit, {self.combine} over iterations, {self.strategy}",
                "confidence": question.confidence,
                "rank": question.rank,
                "explanations": [asdict(one) for one in found],
                "iterations": merged.count,
                "refinements": refinements,
                "expected_agreement": merged.agreement,
                "mean_standard_error": float(error.mean()),
                "forwards_search": searched,
                "forwards_extraction": question.asked - searched,
                **({"stopped": reason} if reason else {}),
            },
            warnings=warnings,
        )

    def _responsibility(self, question: Question, seed: int, allowed: Mask | None) -> tuple[Responsibility, int]:
        """Merge iterations in their order until they are done or the map has settled; count their splits too."""
        iterations, refinements = self.iterations, self.refinements
        if self.budget is not None:
            if (affordable := self.budget // MUTANTS) < 1:
                raise ParameterError(f"a budget of {self.budget} does not pay for one split", hint="14 passes or more")
            iterations = min(iterations, affordable)
            refinements = min(refinements, affordable // iterations)
        how = Search(
            depth=self.depth,
            smallest=self.smallest,
            refinements=refinements,
            keep=self.keep,
            order=self.order,
            carry=self.carry,
            credit=self.credit,
            weighted=self.weighted,
            distribution=self.distribution,
            confidence=self.confidence_filter * question.confidence,
        )

        def tasks() -> Iterator[Task[Iteration]]:
            for number in range(iterations):
                rng = np.random.default_rng([seed, number])
                yield search(question.size, how, rng, allowed=allowed, trivial=question.trivial)

        merged, splits = Responsibility(question.size, self.combine), 0
        results = run_together(question, tasks())
        for done in results:
            merged.add(done.values)
            splits += done.refinements
            if merged.count >= FEWEST_ITERATIONS and self.agreement < 1 and merged.agreement >= self.agreement:
                results.close()
                break
        return merged, splits

    def _sets(
        self, question: Question, merged: Responsibility, seed: int
    ) -> tuple[list[tuple[str, Mask, bool]], str | None]:
        """Return the masks by name with whether each must be necessary, and why there are no more."""
        goal = Goal(self.confidence * question.confidence)
        if self.strategy == "multiple":
            return self._disjoint(question, merged, goal, seed)
        enough = run(question, self._extract(merged.values, goal))
        if self.strategy in ("global", "spatial"):
            return [("mask", enough, False)], None
        both = run(question, self._extract(merged.values, Goal(goal.confidence, necessary=True)))
        if self.strategy == "contrastive":
            return [("mask", both, True), ("mask_sufficient", enough, False)], None
        order = ranking(merged.values)
        whole = run(question, adjusted(both, order, question.confidence, step=self.step))
        return [("mask", whole, False), ("mask_contrastive", both, True), ("mask_sufficient", enough, False)], None

    def _extract(self, values: Any, goal: Goal, allowed: Mask | None = None) -> Task[Mask]:
        """Grow a set along the ranking, and shrink it if that is asked for."""
        within = allowed
        if self.strategy == "spatial":
            within = yield from spotlight(values, self.radius, goal)
        order = ranking(values, within)
        count = yield from grown(lambda size: prefix(order, size, values.shape), len(order), goal, step=self.step)
        mask = prefix(order, count, values.shape)
        if self.shrink:
            mask = yield from shrunk(mask, values, goal, side=self.cell)
        return mask

    def _disjoint(
        self, question: Question, merged: Responsibility, goal: Goal, seed: int
    ) -> tuple[list[tuple[str, Mask, bool]], str | None]:
        """Find sets one after the other, each searched for with those before it hidden."""
        allowed = np.ones(question.size, dtype=np.bool_)
        sets: list[tuple[str, Mask, bool]] = []
        while True:
            mask = run(question, self._extract(merged.values, goal, allowed))
            sets.append(("mask" if not sets else f"mask_{len(sets) + 1}", mask, False))
            allowed = allowed & ~mask
            if len(sets) == self.alternatives:
                return sets, None
            if not mask.any() or not question.alone(allowed).pass_at(goal.confidence)[0]:
                return sets, "the pixels that are left are not enough" if mask.any() else "no pixel is needed"
            merged, _ = self._responsibility(question, seed + len(sets), allowed)

    def _checked(self, question: Question, name: str, mask: Mask, necessary: bool) -> Found:
        """Ask about a set, and where it matters its complement, in passes of their own."""
        verdict = question.alone(mask)
        return Found(
            name=name,
            sufficient=bool(verdict.pass_at(self.confidence * question.confidence)[0]),
            necessary=not bool(question.alone(~mask).keeps[0]) if necessary else None,
            confidence=float(verdict.confidence[0]),
            area=float(mask.mean()),
            minimal_to_a_cell=self.shrink and not (self.strategy == "complete" and name == "mask"),
        )


class Rex(_Causal):
    """Responsibility and minimal sufficient pixels, with hidden pixels replaced."""

    own_baseline = "zero"


class ConvAD(_Causal):
    """Responsibility and minimal sufficient pixels, with hidden pixels switched off inside the network."""

    own_baseline = "deactivate"


def _removal(name: str, model: Model, image: Tensor) -> Removal:
    """Return the removal called `name`; those of this plugin are known without a hub as well."""
    own = {"min": make_min, "max": make_max, "deactivate": make_deactivation}
    return own[name](model, image) if name in own else make_removal(name, model, image)


def _map(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()[None, None]
