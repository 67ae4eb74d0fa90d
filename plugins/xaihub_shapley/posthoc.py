"""Shapley values of regions for any model, through the masking engine."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor

from xaihub import (
    Attribution,
    Explainer,
    Meta,
    Model,
    ParameterError,
    Passes,
    ResolvedTarget,
    When,
    current_generator,
    preview,
)
from xaihub.masking import BaselineName, Segments, coalition_scores, make_features, make_removal
from xaihub_shapley.estimators import LARGEST_BUDGET, Estimate, Estimator, estimate
from xaihub_shapley.gaussian_process import shapes

FEW = 2  # coalitions per player below which interactions are guesswork, and every estimate is close to an additive fit


class ShapleyValues(Explainer):
    """Distribute the score of the image over its regions by their Shapley values."""

    stochastic = True
    parallel = True
    completeness = True

    features: Annotated[str, Meta(description="The players: grid:4 (4 x 4 cells), patches:32 or superpixels:30.")] = (
        "grid:7"
    )
    groups: Annotated[
        str, Meta(description="Players to merge, numbered in reading order: 0+1+2,7+8 makes two groups.")
    ] = ""
    baseline: BaselineName = "blur"
    budget: Annotated[int, Meta(ge=8, description="Maximum number of forward passes."), Passes(tolerance=0.0)] = 1000
    estimator: Annotated[
        Estimator,
        Meta(
            description="interactions (smallest error we measured at every budget) fits a smooth game; kernel (Kernel"
            " SHAP, adjusted) is nearly unbiased, permutation is unbiased; exact evaluates all coalitions; auto = exact"
            f" if the budget allows, else interactions up to a budget of {LARGEST_BUDGET}, else kernel."
        ),
    ] = "auto"
    tolerance: Annotated[
        float,
        Meta(
            ge=0,
            description="Stop when the standard error is below this fraction of the values' spread; 0 spends the"
            " budget.",
        ),
        When(estimator=("auto", "interactions")),
    ] = 0.25
    output: Annotated[
        Literal["logit", "probability"], Meta(description="The score that is distributed over the players.")
    ] = "logit"

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (1, 1, H, W): each player's value, spread evenly over its pixels."""
        image = inputs[0]
        players = grouped(make_features(self.features, model, image), self.groups)
        removal = make_removal(self.baseline, model, image)
        score = partial(target.score, output=self.output)

        def game(coalitions: Tensor) -> Tensor:
            return coalition_scores(model, image, players, coalitions, removal=removal, score=score)

        generator = torch.Generator().manual_seed(int(torch.randint(0, 2**31, (), generator=current_generator())))
        attribution = partial(_attribution, players)

        def enough(found: Estimate) -> bool:
            preview(partial(attribution, found))
            return found.evaluated >= FEW * players.count and found.noise < self.tolerance

        found = estimate(
            game, players.count, self.budget, generator, kind=self.estimator, shapes=shapes(players), enough=enough
        )
        return attribution(found)


def _attribution(players: Segments, found: Estimate) -> Attribution:
    return Attribution(
        values=players.spread((found.values / players.sizes).float())[None, None],
        completeness_gap=torch.tensor([abs(float(found.values.sum()) - found.whole)]),
        extras={
            "players": players.labels[None].int(),
            "shapley_values": found.values[None],
            "standard_errors": found.stderr[None],
        },
        details={
            "players": players.count,
            "estimator": found.kind,
            "coalitions": found.evaluated,
            "whole": found.whole,
            "stderr_to_spread": round(found.noise, 4),
        },
        warnings=_warnings(players.count, found),
    )


def _warnings(players: int, found: Estimate) -> list[str]:
    warnings = []
    if found.noise > 0.5:
        warnings.append(f"the standard error is {found.noise:.0%} of the values' spread: raise the budget")
    if found.kind == "interactions" and found.evaluated < FEW * players:
        warnings.append(
            f"{found.evaluated} coalitions are too few to separate {players} players: use fewer players or a larger"
            " budget"
        )
    return warnings


def grouped(features: Segments, groups: str) -> Segments:
    """Return the features with the players of each group merged into its first player; the rest is unchanged.

    Raises:
        ParameterError: The text is not a list of groups, or names a player twice or one that does not exist.
    """
    if not groups:
        return features
    owner = torch.arange(features.count)
    seen: set[int] = set()
    for group in groups.split(","):
        members = [part.strip() for part in group.split("+")]
        if not all(member.isdecimal() for member in members):
            raise ParameterError(f"groups cannot be {groups!r}", hint="join players by +, as in 0+1+2,7+8")
        numbers = sorted(map(int, members))
        if numbers[-1] >= features.count:
            raise ParameterError(
                f"group {group.strip()!r} names player {numbers[-1]}", hint=f"use 0 to {features.count - 1}"
            )
        if len(set(numbers)) < len(numbers) or seen & set(numbers):
            raise ParameterError(f"groups {groups!r} name a player twice")
        seen |= set(numbers)
        owner[numbers] = numbers[0]
    return Segments(owner.unique(return_inverse=True)[1][features.labels.cpu()])
