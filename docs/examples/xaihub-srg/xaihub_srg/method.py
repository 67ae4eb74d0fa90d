"""Symmetric relevance gain, SRG = LIF - MIF (arXiv 2401.06654). Imported only when it is used."""

from typing import Annotated, Literal

import torch

from xaihub import Case, Meta, Metric, MetricRefused
from xaihub.masking import BaselineName, coalition_scores, make_features, make_removal

Segments = Annotated[str, Meta(description="Segments: superpixels:N, grid:N or patches:N.")]
Output = Annotated[Literal["probability", "logit"], Meta(description="Score of the target.")]


class SRG(Metric):
    """Mean score with the lowest segments masked first, minus that with the highest masked first."""

    features: Segments = "superpixels:25"
    baseline: BaselineName = "mean"
    output: Output = "probability"

    def score(self, case: Case) -> float:
        """Return the area between the two curves: 0 for a random map on average."""
        scene, heat = case.scene, case.heat.flatten()
        if heat.max() == heat.min():
            raise MetricRefused("the map is constant, so its segments have no order")
        features = make_features(self.features, scene.model, scene.image)
        count = features.count
        means = torch.zeros(count).scatter_add(0, features.labels.cpu().flatten(), heat) / features.sizes
        shuffle = torch.randperm(count)  # ties are broken at random; the seed is set before each call
        best = shuffle[means[shuffle].argsort(descending=True, stable=True)]
        rank = torch.empty(count, dtype=torch.long).scatter(0, best, torch.arange(count))
        step = torch.arange(count + 1).unsqueeze(1)
        shown = torch.cat([rank >= step, rank < count - step]).float()  # MIF, then LIF: (2 (n + 1), n)
        scores = coalition_scores(
            *(scene.model, scene.image, features, shown),
            removal=make_removal(self.baseline, scene.model, scene.image),
            score=lambda outputs: scene.score(outputs, output=self.output),
        )
        return float(scores[count + 1 :].mean() - scores[: count + 1].mean())
