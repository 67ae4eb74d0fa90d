"""Partition SHAP and expected gradients, computed by the shap library (Lundberg and Lee 2017, arXiv 1705.07874).

Partition SHAP estimates Owen values: Shapley values of a game whose players join along a tree. Expected gradients
are defined in Erion et al. 2021, arXiv 1906.10670, Eq. 2.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from xaihub import Attribution, Explainer, Meta, Model, ParameterError, ResolvedTarget
from xaihub.masking import (
    BaselineName,
    Features,
    Removal,
    baseline_image,
    coalition_scores,
    make_features,
    make_removal,
)

with warnings.catch_warnings():
    # shap sets up its colours with functions that matplotlib is about to retire; nothing is plotted here.
    warnings.filterwarnings("ignore", message=r"The set_\w+ function will be deprecated")
    import shap

# How many coalitions shap asks for before it looks at the answers and chooses the next ones. Fixed, because the
# choice, and so the result, depends on it; forward passes are cut to the model's own batch size below it.
COALITIONS_A_CALL = 32
# Samples that shap holds at one time, as five arrays of the input's size each: 32 of 224 pixels are 150 MB.
SAMPLES_A_CALL = 32


class PartitionSHAP(Explainer):
    """Share the score among regions by Owen values; regions with more to share are split first."""

    stochastic = True  # shap breaks ties between regions at random
    completeness = True

    evaluations: Annotated[int, Meta(ge=4, description="At most so many forward passes (max_evals in shap).")] = 300
    features: Annotated[
        str, Meta(description="The smallest regions: grid:14, patches:16, superpixels:50 or pixels.")
    ] = "grid:14"
    baseline: BaselineName = "blur"
    output: Annotated[Literal["logit", "probability"], Meta(description="The score that is shared out.")] = "logit"

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (1, 1, H, W): each region's value, shared evenly by its pixels."""
        image = inputs[0]
        features = make_features(self.features, model, image)
        removal = make_removal(self.baseline, model, image)
        game = _Game(model, image, features, removal, target, output=self.output, total=self.evaluations)
        labels = features.spread(torch.arange(features.count))  # (H, W)
        explainer = shap.PartitionExplainer(game, _Coalitions(_halvings(labels)))
        explanation = explainer(
            np.ones((1, features.count)),
            # shap asks in pairs after the two ends, so that an odd budget would be passed by one.
            max_evals=self.evaluations - self.evaluations % 2,
            batch_size=COALITIONS_A_CALL,
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


class _Game:
    """The score of each coalition of features, as shap asks for it.

    `nothing` and `everything` are the scores of the empty and of the full coalition, `done` counts rows.
    """

    def __init__(
        self,
        model: Model,
        image: Tensor,
        features: Features,
        removal: Removal,
        target: ResolvedTarget,
        *,
        output: str,
        total: int,
    ) -> None:
        self.model, self.image, self.features, self.removal, self.target = model, image, features, removal, target
        self.output, self.total = output, total
        self.done = 0
        self.nothing = self.everything = float("nan")

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
    """What shap calls a masker; here a masked input is the coalition itself, and `_Game` does the masking."""

    fixed_background = True
    immutable_outputs = True

    def __init__(self, clustering: Any) -> None:
        self.clustering = clustering
        self.shape = (1, len(clustering) + 1)

    def __call__(self, mask: Any, _row: Any) -> tuple[Any]:
        return (mask[None],)


def _halvings(labels: Tensor) -> Any:
    """Return the (d - 1, 4) tree over the segments of (H, W) labels, in scipy's linkage format.

    A group is halved across the longer side of its centres, at the middle one of their distinct positions. On a grid
    these are the halvings of shap's image masker; on superpixels the tree is balanced too, so that a budget reaches
    all regions alike, which agglomerative clustering does not promise.
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
    if len(positions) == 1:  # regions around one common centre, such as a ring and what it surrounds
        return group[: len(group) // 2], group[len(group) // 2 :]
    before = along < positions[len(positions) // 2]
    return group[before], group[~before]


class GradientSHAP(Explainer):
    """Average the gradient at random points between baselines and the image, times their difference."""

    stochastic = True
    completeness = True

    samples: Annotated[int, Meta(ge=1, description="Random points, each on the way from a random baseline.")] = 128
    baselines: Annotated[
        str,
        Meta(description="One baseline or several, by commas: blur, mean, zero, black, white, grey, noise, ..."),
    ] = "black,white,blur"
    smoothing: Annotated[
        float, Meta(ge=0, description="Standard deviation of noise on the image, in the model's units.")
    ] = 0.0
    batch: Annotated[
        int, Meta(ge=1, le=SAMPLES_A_CALL, description="Points a pass; bounds the memory, not the result.")
    ] = 16

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (1, C, H, W): the mean over samples of gradient times (input - baseline)."""
        names = [name.strip() for name in self.baselines.split(",")]
        if not all(names):
            raise ParameterError(f"baselines cannot be {self.baselines!r}", hint="write them as black,white,blur")
        background = torch.stack([baseline_image(name, model, inputs[0]) for name in names])  # (K, C, H, W)
        score = _Score(model, target)
        rows = min(self.batch, model.runtime.batch_size or self.batch)
        explainer = shap.GradientExplainer(score, background, batch_size=rows, local_smoothing=self.smoothing)
        parts = [min(SAMPLES_A_CALL, self.samples - start) for start in range(0, self.samples, SAMPLES_A_CALL)]
        # shap seeds NumPy anew at each call, so the seeds of all calls are drawn first, elsewhere.
        seeds = torch.randint(0, 2**31, (len(parts),)).tolist()
        values = torch.zeros(inputs.shape, dtype=torch.float64)
        for count, seed in zip(parts, seeds, strict=True):
            means = explainer.shap_values(inputs, nsamples=count, rseed=seed)  # (1, C, H, W, 1)
            values += torch.from_numpy(means).squeeze(-1) * (count / self.samples)
        with torch.no_grad():
            difference = score(inputs) - torch.stack([score(row[None]) for row in background]).mean(0)
        return Attribution(
            values=values,
            completeness_gap=(values.sum((1, 2, 3)) - difference.squeeze(1).cpu().double()).abs(),
            details={"baselines": names, "samples": self.samples, "variant": "shap's GradientExplainer"},
        )


class _Score(nn.Module):
    """The target's score as a network with one output, (n, 1), because shap picks outputs by index."""

    def __init__(self, model: Model, target: ResolvedTarget) -> None:
        super().__init__()
        self.model = model
        self.target = target

    def forward(self, inputs: Tensor) -> Tensor:
        return self.target.score(self.model(inputs)).float().unsqueeze(1)
