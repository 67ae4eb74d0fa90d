"""Random logit test (Sixt, Granz, Landgraf 2020, arXiv 1912.09818, Sec. 4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch

from xaihub import Case, Measurement, Meta, Metric, MetricRefused, Scene, generator_for
from xaihub_metrics_sanity.similarity import Similarity, similarity


class RandomLogit(Metric):
    """Similarity of the map to that for a random other class; lower is better, a class-agnostic map scores 1."""

    similarity: Annotated[Similarity, Meta(description="Similarity of two maps.")] = "spearman"
    absolute: Annotated[bool, Meta(description="Compare absolute values.")] = False

    def score(self, case: Case) -> Measurement:
        """Return the similarity, in [-1, 1], and the other class.

        Raises:
            MetricRefused: The model has no other class, or the map is empty.
        """
        key = ("random_logit: class", case.seed)
        other = case.scene.memory.once(key, lambda: other_class(case.scene, case.seed))
        heat = case.explain(target=replace(case.scene.target.fixed(), index=other, also=())).heatmap()
        return Measurement(
            value=similarity(case.heat, heat, self.similarity, absolute=self.absolute), details={"class": other}
        )


def other_class(scene: Scene, seed: int) -> int:
    """Draw a class that is not part of the target, from the seed and the image.

    Raises:
        MetricRefused: There is none, or its score is that of the target with the opposite sign.
    """
    if scene.model.outputs.kind == "binary":
        raise MetricRefused("the other class of binary outputs has the same logit with the opposite sign")
    taken = {int(part) for part in scene.target.parts}
    free = [index for index in range(scene.logits.numel()) if index not in taken]
    if not free:
        raise MetricRefused(f"model {scene.model.name!r} has no other class to explain")
    generator = generator_for(f"class {seed}", scene.image)
    return free[int(torch.randint(len(free), (), generator=generator))]
