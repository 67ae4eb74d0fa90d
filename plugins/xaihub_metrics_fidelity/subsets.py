"""Random subsets of features, and what the model says when they are removed: shared by every explainer of a scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from xaihub import Case, MetricRefused, ParameterError
from xaihub.masking import Removal, Segments, coalition_scores, make_features, make_removal
from xaihub.ranking import correlation

__all__ = ["Removed", "random_subsets", "remove_subsets", "seeded_removal"]

# Relative differences below these are rounding errors: of sums of the map in float64, of scores in float32.
SUMS, SCORES = 1e-9, 1e-6


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What the map says about g groups of n removed subsets, and what happens to the score.

    Attributes:
        sizes: Features in each subset of a group.
        count: Features in all.
        attributed: (g, n) float64 sums of the map over the removed subsets.
        drops: (g, n) float64 score of the image minus score without the subset; all 0 in a group without effect.
    """

    sizes: list[int]
    count: int
    attributed: Tensor
    drops: Tensor

    def correlations(self, *, ranks: bool = False) -> Tensor:
        """Return the correlation of each group: (g,); 0 where the sums or the drops do not vary."""
        return correlation(self.attributed, self.drops, ranks=ranks, rounding=SUMS).nan_to_num(0)


def remove_subsets(
    case: Case, *, features: str, baseline: str, sizes: Callable[[int], list[float]], samples: int, output: str
) -> Removed:
    """Remove random subsets of the given sizes, and sum the map over them.

    The subsets and their logits depend on the image, the model, the seed and these parameters only, so they are
    computed for the first explainer of a scene and kept.

    Args:
        case: The map to judge.
        features: What is removed together.
        baseline: What it becomes.
        sizes: The numbers of features to remove, given how many there are; rounded to at least one and not all.
        samples: Subsets of each size.
        output: The score.

    Raises:
        ParameterError: The features or the baseline cannot be made, or there is only one feature.
        MetricRefused: The score does not depend on what is removed.
    """
    scene = case.scene
    players = scene.memory.once(("make_features", features), lambda: make_features(features, case.model, scene.image))
    if players.count < 2:
        raise ParameterError(f"features {features!r} are one single feature", hint="take a finer grid")
    # Never all of them: there is only one subset of that size.
    groups = sorted({min(max(1, round(size)), players.count - 1) for size in sizes(players.count)})

    def ask() -> tuple[Tensor, Tensor]:
        chosen = random_subsets(players.count, groups, samples, case.seed)
        removal = seeded_removal(case, baseline)
        logits = coalition_scores(case.model, scene.image, players, ~chosen, removal=removal, score=lambda rows: rows)
        return chosen, logits

    key = ("logits without random subsets", features, baseline, tuple(groups), samples, case.seed)
    chosen, logits = scene.memory.once(key, ask)
    full = scene.score(scene.logits.cpu()[None], output=output).double()
    left = scene.score(logits, output=output).double().view(len(groups), samples)
    # A group without effect must not be judged by the noise of the arithmetic.
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
    # Numbers of their own: a random control map drawn from the same seed must not be made of the subsets' numbers.
    generator = torch.Generator().manual_seed(crc32(f"random subsets {seed}".encode()))
    chosen = torch.zeros(len(sizes) * samples, count, dtype=torch.bool)
    for group, size in enumerate(sizes):
        rows = chosen[group * samples : (group + 1) * samples]
        rows.scatter_(1, torch.rand(samples, count, generator=generator).topk(size, dim=1).indices, value=True)
    return chosen


def seeded_removal(case: Case, baseline: str) -> Removal:
    """Make the removal; a baseline of noise then depends on the seed only, not on which metric ran first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        return make_removal(baseline, case.model, case.scene.image)


def _sums(features: Segments, heat: Tensor) -> Tensor:
    """Sum the (H, W) map over each feature: (d,) float64."""
    sums = torch.zeros(features.count, dtype=torch.float64)
    return sums.index_add_(0, features.labels.cpu().flatten(), heat.double().flatten())
