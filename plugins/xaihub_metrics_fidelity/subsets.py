"""Random subsets of features and the logits without them, shared by all explanations of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal
from zlib import crc32

import torch
from torch import Tensor

from xaihub import Case, Meta, Metric, MetricRefused, ParameterError
from xaihub.masking import BaselineName, Segments, coalition_scores, make_features
from xaihub.ranking import correlation

# Relative differences below these are rounding errors: of sums of the map in float64, of scores in float32.
SUMS, SCORES = 1e-9, 1e-6


class SubsetMetric(Metric):
    """A metric that removes random subsets of features."""

    features: Annotated[
        str, Meta(description="What is removed as one piece: grid:N, patches:PIXELS, superpixels:N or pixels.")
    ] = "grid:14"
    samples: Annotated[int, Meta(ge=3, description="Random subsets per size; each costs one forward pass.")] = 50
    baseline: BaselineName = "zero"
    output: Annotated[Literal["logit", "probability", "log_probability"], Meta(description="The score f.")] = "logit"


@dataclass(frozen=True, kw_only=True)
class Removed:
    """The sums of the map and the drops in the score for g groups of n removed subsets."""

    sizes: list[int]  # number of features in each subset of a group
    count: int  # number of all features
    attributed: Tensor  # (g, n) float64 sums of the map over the removed subsets
    drops: Tensor  # (g, n) float64 score of the image minus score without the subset; all 0 in a group without effect

    def correlations(self, *, ranks: bool = False) -> Tensor:
        """Return the correlation of each group: (g,); 0 where the sums or the drops do not vary."""
        return correlation(self.attributed, self.drops, ranks=ranks, rounding=SUMS).nan_to_num(0)


def remove_subsets(case: Case, settings: SubsetMetric, sizes: Callable[[int], list[float]]) -> Removed:
    """Remove random subsets of features, and sum the map over them.

    The subsets and their logits depend only on the image, the model, the seed and these parameters, so they are
    computed once per image. `sizes` returns the numbers of features to remove, given how many there are; they are
    rounded to at least one and not all.

    Raises:
        ParameterError: The features or the baseline cannot be made, or there is only one feature.
        MetricRefused: The score does not depend on what is removed.
    """
    scene, features, samples = case.scene, settings.features, settings.samples
    players = scene.memory.once(("make_features", features), lambda: make_features(features, case.model, scene.image))
    if players.count < 2:
        raise ParameterError(f"features {features!r} gives only 1 region", hint="use a finer grid")
    # Never all of them: there is only one subset of that size.
    groups = sorted({min(max(1, round(size)), players.count - 1) for size in sizes(players.count)})

    def evaluate() -> tuple[Tensor, Tensor]:
        chosen = random_subsets(players.count, groups, samples, case.seed)
        removal = case.removal(settings.baseline)
        logits = coalition_scores(case.model, scene.image, players, ~chosen, removal=removal, score=lambda rows: rows)
        return chosen, logits

    key = ("logits without random subsets", features, settings.baseline, tuple(groups), samples, case.seed)
    chosen, logits = scene.memory.once(key, evaluate)
    full = scene.score(scene.logits.cpu()[None], output=settings.output).double()
    left = scene.score(logits, output=settings.output).double().view(len(groups), samples)
    # Rounding errors of the score must not count as an effect.
    effect = left.amax(1) - left.amin(1) > SCORES * torch.maximum(left.abs().amax(1), full.abs())
    if not bool(effect.any()):
        raise MetricRefused("the score is the same whichever features are removed", hint="use another baseline")
    attributed = chosen.double() @ _sums(players, case.heat)
    return Removed(
        sizes=groups,
        count=players.count,
        attributed=attributed.view(len(groups), samples),
        drops=(full - left) * effect.unsqueeze(1),
    )


def random_subsets(count: int, sizes: Sequence[int], samples: int, seed: int) -> Tensor:
    """Draw `samples` subsets of each size, each uniformly among all of that size: (sizes * samples, count) bool."""
    # A stream of its own: a random control map drawn from the same seed must not correlate with the subsets.
    generator = torch.Generator().manual_seed(crc32(f"random subsets {seed}".encode()))
    chosen = torch.zeros(len(sizes) * samples, count, dtype=torch.bool)
    for group, size in enumerate(sizes):
        rows = chosen[group * samples : (group + 1) * samples]
        rows.scatter_(1, torch.rand(samples, count, generator=generator).topk(size, dim=1).indices, value=True)
    return chosen


def _sums(features: Segments, heat: Tensor) -> Tensor:
    """Sum the (H, W) map over each feature: (d,) float64."""
    sums = torch.zeros(features.count, dtype=torch.float64)
    return sums.index_add_(0, features.labels.cpu().flatten(), heat.double().flatten())
