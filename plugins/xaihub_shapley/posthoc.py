"""Shapley values of regions for any model, by the masking engine."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from xaihub import Attribution, Explainer, Meta, Model, ParameterError, ResolvedTarget
from xaihub.masking import BaselineName, Segments, coalition_scores, make_features, make_removal
from xaihub_shapley.estimators import (
    MOST_ASKED,
    MOST_PLAYERS,
    Ask,
    Estimate,
    enumerated,
    interacting,
    ordered,
    regressed,
)

__all__ = ["ShapleyValues", "grouped", "shapes"]

# Fewer coalitions than this many a player leave interactions to guesswork, and all estimates close to an additive fit.
FEW = 2
RASTER = 32  # points a side, on which it is told which players are neighbours


class ShapleyValues(Explainer):
    """Share the score of the image among its regions by their Shapley values."""

    stochastic = True
    completeness = True

    features: Annotated[str, Meta(description="The players: grid:4 (4 x 4 cells), patches:32 or superpixels:30.")] = (
        "grid:7"
    )
    groups: Annotated[str, Meta(description="Players that join as one, by number in reading order: 0+1+2,7+8.")] = ""
    baseline: BaselineName = "blur"
    budget: Annotated[int, Meta(ge=8, description="Forward passes at most.")] = 1000
    estimator: Annotated[
        Literal["auto", "exact", "interactions", "kernel", "permutation"],
        Meta(
            description="exact asks every coalition; interactions fits a smooth game; kernel (Kernel SHAP,"
            " adjusted) has little bias, permutation none; auto is exact where the budget allows it, else"
            f" interactions up to a budget of {MOST_ASKED}, else kernel."
        ),
    ] = "auto"
    output: Annotated[Literal["logit", "probability"], Meta(description="The score that is shared out.")] = "logit"

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (1, 1, H, W): each player's value, shared evenly by its pixels."""
        image = inputs[0]
        found = make_features(self.features, model, image)
        players = grouped(found, self.groups)
        removal = make_removal(self.baseline, model, image)

        def score(logits: Tensor) -> Tensor:
            return target.score(logits, output=self.output)

        def ask(coalitions: Tensor) -> Tensor:
            return coalition_scores(model, image, players, coalitions, removal=removal, score=score)

        estimate = self._estimate(ask, players, torch.Generator().manual_seed(int(torch.randint(0, 2**31, ()))))
        values = estimate.values
        noise = float(estimate.stderr.square().mean().sqrt())
        spread = float(values.std(correction=0))
        return Attribution(
            values=players.spread((values / players.sizes).float())[None, None],
            completeness_gap=torch.tensor([abs(float(values.sum()) - estimate.whole)]),
            extras={
                "players": players.labels[None].int(),
                "shapley_values": values[None],
                "standard_errors": estimate.stderr[None],
            },
            details={
                "players": players.count,
                "estimator": estimate.kind,
                "coalitions": estimate.asked,
                "whole": estimate.whole,
                "stderr_to_spread": round(noise / max(spread, 1e-12), 4),
            },
            warnings=self._warnings(players.count, estimate, noise, spread),
        )

    def _estimate(self, ask: Ask, features: Segments, generator: torch.Generator) -> Estimate:
        players = features.count
        affordable = players < 40 and 2**players <= self.budget
        kind = self.estimator
        if kind == "exact" and not affordable:
            raise ParameterError(
                f"all coalitions of {players} players are 2^{players} forward passes, more than the budget"
                f" of {self.budget}",
                hint=f"budget={2**players}" if players <= 20 else "fewer players, or another estimator",
            )
        if kind == "exact" or (affordable and kind in ("auto", "interactions")):
            return enumerated(ask, players)
        if players < 2:
            raise ParameterError(f"{kind} needs two players", hint="estimator=auto")
        if kind == "auto":
            kind = "interactions" if self.budget <= MOST_ASKED else "kernel"
        if kind == "permutation":
            return ordered(ask, players, self.budget, generator)
        if kind == "kernel":
            if self.budget < 2 * players + 2:
                raise ParameterError(
                    f"a budget of {self.budget} is too small to fit {players} players",
                    hint=f"at least {2 * players + 2}",
                )
            return regressed(ask, players, self.budget, generator)
        if players > MOST_PLAYERS:
            raise ParameterError(
                f"interactions of {players} players cannot be fitted",
                hint=f"at most {MOST_PLAYERS}, or estimator=kernel",
            )
        if self.budget > MOST_ASKED:
            raise ParameterError(
                f"interactions cannot be fitted to {self.budget} coalitions",
                hint=f"budget={MOST_ASKED} at most, or estimator=kernel",
            )
        return interacting(ask, players, self.budget, generator, shapes(features))

    def _warnings(self, players: int, estimate: Estimate, noise: float, spread: float) -> list[str]:
        said = []
        if noise > 0.5 * spread:
            said.append(
                f"the standard error is {noise / max(spread, 1e-12):.0%} of the values' spread: raise the budget"
            )
        if estimate.kind == "interactions" and estimate.asked < FEW * players:
            said.append(
                f"{estimate.asked} coalitions do not tell {players} players apart: fewer players or a larger budget"
            )
        return said


def shapes(features: Segments) -> Tensor:
    """Return (d, 32, 32) counts of each player's pixels around each point of a raster."""
    rows, columns = (torch.arange(side) * RASTER // side for side in features.size)
    point = rows.unsqueeze(1) * RASTER + columns + features.labels.cpu() * RASTER**2
    return torch.bincount(point.flatten(), minlength=features.count * RASTER**2).view(-1, RASTER, RASTER)


def grouped(features: Segments, groups: str) -> Segments:
    """Return the features with the players of each group joined; the others stay as they are.

    A group takes the place of its first player.

    Raises:
        ParameterError: The text is no list of players, or names one twice or one that does not exist.
    """
    if not groups:
        return features
    owner = torch.arange(features.count)
    seen: set[int] = set()
    for group in groups.split(","):
        members = [part.strip() for part in group.split("+")]
        if not all(member.isdecimal() for member in members):
            raise ParameterError(f"groups cannot be {groups!r}", hint="write players joined by +: 0+1+2,7+8")
        numbers = sorted(map(int, members))
        if numbers[-1] >= features.count:
            raise ParameterError(
                f"group {group.strip()!r} names player {numbers[-1]}", hint=f"0 to {features.count - 1}"
            )
        if len(set(numbers)) < len(numbers) or seen & set(numbers):
            raise ParameterError(f"groups {groups!r} name a player twice")
        seen |= set(numbers)
        owner[numbers] = numbers[0]
    return Segments(owner.unique(return_inverse=True)[1][features.labels.cpu()])
