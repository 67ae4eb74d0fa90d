"""Partition SHAP, computed by the shap library (Lundberg and Lee 2017, arXiv 1705.07874).

It estimates Owen values: Shapley values of a game whose players join along a tree.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from xaihub import Attribution, Explainer, Meta, Model, Passes, ResolvedTarget
from xaihub.masking import (
    BaselineName,
    Features,
    Removal,
    coalition_scores,
    make_features,
    make_removal,
)

with warnings.catch_warnings():
    # shap sets up its colours with functions that matplotlib has deprecated; nothing is plotted here.
    warnings.filterwarnings("ignore", message=r"The set_\w+ function will be deprecated")
    import shap

# Coalitions that shap evaluates before it chooses the next ones. Fixed, because the result depends on it; forward
# passes use the model's own batch size.
COALITIONS_PER_CALL = 32


class PartitionSHAP(Explainer):
    """Distribute the score among regions by Owen values; regions with larger values are split first."""

    stochastic = True  # shap breaks ties between regions at random
    completeness = True

    evaluations: Annotated[
        int, Meta(ge=4, description="Maximum number of forward passes (max_evals in shap)."), Passes()
    ] = 300
    features: Annotated[
        str, Meta(description="The smallest regions: grid:14, patches:16, superpixels:50 or pixels.")
    ] = "grid:14"
    baseline: BaselineName = "blur"
    output: Annotated[Literal["logit", "probability"], Meta(description="The class score that is distributed.")] = (
        "logit"
    )

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (1, 1, H, W): each region's value, spread evenly over its pixels."""
        image = inputs[0]
        features = make_features(self.features, model, image)
        removal = make_removal(self.baseline, model, image)
        game = _Game(model, image, features, removal, target, self.output, self.evaluations)
        labels = features.spread(torch.arange(features.count))  # (H, W)
        explainer = shap.PartitionExplainer(game, _Coalitions(_halvings(labels)))
        explanation = explainer(
            np.ones((1, features.count)),
            # shap evaluates pairs after the two ends, so it would exceed an odd budget by one.
            max_evals=self.evaluations - self.evaluations % 2,
            batch_size=COALITIONS_PER_CALL,
            silent=True,
        )
        values = torch.from_numpy(explanation.values[0])  # (d,)
        sizes = torch.bincount(labels.flatten(), minlength=features.count)
        gap = abs(float(values.sum()) - (game.everything - game.nothing))
        return Attribution(
            values=features.spread(values / sizes)[None, None],
            completeness_gap=torch.tensor([gap]),
            details={
                "baseline": self.baseline,
                "features": self.features,
                "regions": features.count,
                "evaluations": game.done,
                "score": game.everything,
                "baseline_score": game.nothing,
                "variant": "Owen values of shap's PartitionExplainer",
            },
        )


@dataclass
class _Game:
    """The score of each coalition of features, called by shap.

    `nothing` and `everything` are the scores of the empty and of the full coalition; `done` counts rows.
    """

    model: Model
    image: Tensor
    features: Features
    removal: Removal
    target: ResolvedTarget
    output: str
    total: int
    done: int = 0
    nothing: float = math.nan
    everything: float = math.nan

    def __call__(self, coalitions: Any) -> Any:
        """Return (n,) float64 scores of (n, d) coalitions."""
        shown = torch.from_numpy(np.asarray(coalitions, dtype=np.float32))
        scores = coalition_scores(
            self.model,
            self.image,
            self.features,
            shown,
            removal=self.removal,
            score=self._score,
            done=self.done,
            total=max(self.total, self.done + len(shown)),
        ).double()
        self.done += len(shown)
        for present, score in zip(shown.mean(1).tolist(), scores.tolist(), strict=True):
            if present == 0:
                self.nothing = score
            elif present == 1:
                self.everything = score
        return scores.numpy()

    def _score(self, logits: Tensor) -> Tensor:
        return self.target.score(logits, output=self.output)


class _Coalitions:
    """A masker in shap's sense whose masked input is the coalition itself; `_Game` masks the image."""

    fixed_background = True
    immutable_outputs = True

    def __init__(self, clustering: Any) -> None:
        self.clustering = clustering
        self.shape = (1, len(clustering) + 1)

    def __call__(self, mask: Any, _row: Any) -> tuple[Any]:
        return (mask[None],)


def _halvings(labels: Tensor) -> Any:
    """Return the (d - 1, 4) tree over the segments of (H, W) labels, in scipy's linkage format.

    A group is halved across the longer side of its centres, at the middle of their distinct positions. On a grid these
    are the halvings of shap's image masker; on superpixels the tree is balanced too, so that a budget reaches all
    regions equally, unlike with agglomerative clustering.
    """
    flat = labels.flatten()
    sizes = torch.bincount(flat).double()
    rows, columns = torch.meshgrid(*(torch.arange(side).double() for side in labels.shape), indexing="ij")
    centres = np.stack([(torch.bincount(flat, axis.flatten()) / sizes).numpy() for axis in (rows, columns)], axis=1)
    players = len(sizes)
    tree: list[list[float]] = []

    def join(group: Any) -> int:
        if len(group) == 1:
            return int(group[0])
        first, second = _halve(group, centres[group])
        children = join(first), join(second)
        tree.append([*children, 0.0, len(group)])
        return players + len(tree) - 1

    join(np.arange(players))
    return np.array(tree, dtype=np.float64).reshape(-1, 4)


def _halve(group: Any, centres: Any) -> tuple[Any, Any]:
    height, width = np.ptp(centres, axis=0)
    along = centres[:, 0] if height >= width else centres[:, 1]
    positions = np.unique(along)
    if len(positions) == 1:  # concentric regions, such as a ring and its interior
        return group[: len(group) // 2], group[len(group) // 2 :]
    before = along < positions[len(positions) // 2]
    return group[before], group[~before]
