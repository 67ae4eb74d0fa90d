"""The local linear model behind a map: which explainers give one, and how it is read and asked.

An explainer of images gives a local linear model if it has the parameters `features`, `baseline` and `output`, paints
one coefficient on all pixels of a feature, and notes the intercept in its details as "intercept": then
g(z) = intercept + sum_k coefficient_k z_k predicts the output where z says which features are shown. LIME and
KernelSHAP do so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xaihub import Case, Explanation, MetricRefused, Model
from xaihub.masking import Removal, Segments, coalition_scores, make_features, make_removal

__all__ = ["Surrogate", "asked", "outputs", "read_surrogate", "removal_of"]


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """An affine function of which of K features are shown.

    Attributes:
        coefficients: (K,) float64.
        intercept: The value where nothing is shown.
        features: Which pixels belong together.
    """

    coefficients: Tensor
    intercept: float
    features: Segments

    def __call__(self, coalitions: Tensor) -> Tensor:
        """Return (n,) values for (n, K) coalitions."""
        return coalitions.double() @ self.coefficients + self.intercept

    @property
    def vector(self) -> Tensor:
        """(K + 1,) coefficients, the intercept last."""
        return torch.cat([self.coefficients, torch.tensor([self.intercept], dtype=torch.float64)])


def asked(explanation: Explanation) -> Mapping[str, Any]:
    """Return the parameters of the explainer that made a local linear model.

    Raises:
        MetricRefused: It made none.
    """
    values: Mapping[str, Any] = explanation.metadata.get("parameters", {})
    details: Mapping[str, Any] = explanation.metadata.get("details", {})
    if "intercept" not in details or not {"features", "baseline", "output"} <= set(values):
        who = explanation.explainer or "this explainer"
        raise MetricRefused(f"{who} gives no local linear model", hint="lime and kernel_shap do")
    return values


def read_surrogate(case: Case, explanation: Explanation, image: Tensor) -> Surrogate:
    """Read the local linear model of one map of a (C, H, W) image.

    Raises:
        MetricRefused: There is none, or the map does not have one value a feature.
    """
    values = asked(explanation)
    features = make_features(values["features"], case.model, image)
    heat = explanation.heatmap().double()
    labels = features.labels.flatten()
    first = torch.zeros(features.count, dtype=torch.long).scatter_(0, labels.flip(0), torch.arange(len(labels)).flip(0))
    coefficients = heat.flatten()[first]
    if not torch.equal(features.spread(coefficients), heat):
        raise MetricRefused(f"the map of {explanation.explainer} does not have one value a feature")
    intercept = float(explanation.metadata["details"]["intercept"])
    return Surrogate(coefficients=coefficients, intercept=intercept, features=features)


def removal_of(model: Model, explanation: Explanation, image: Tensor) -> Removal:
    """Return what hides features as it did for the explainer, with the noise that its seed drew."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(explanation.metadata.get("seed", 0)))
        return make_removal(asked(explanation)["baseline"], model, image)


def outputs(case: Case, surrogate: Surrogate, coalitions: Tensor, key: tuple[Any, ...]) -> Tensor:
    """Return the (n,) outputs under (n, K) coalitions that the surrogate is about; `key` names the coalitions.

    All explainers with the same features and baseline share the forward passes.
    """
    values, scene = asked(case.explanation), case.scene
    whole = ("logits of masks", values["features"], values["baseline"], _noise(case.explanation), *key)
    logits: Tensor = scene.memory.once(whole, lambda: _logits(case, surrogate, coalitions))
    score: Callable[..., Tensor] = scene.score
    return score(logits, output=values["output"]).double()


def _noise(explanation: Explanation) -> int:
    return int(explanation.metadata.get("seed", 0)) if asked(explanation)["baseline"] == "noise" else 0


def _logits(case: Case, surrogate: Surrogate, coalitions: Tensor) -> Tensor:
    scene = case.scene
    removal = removal_of(scene.model, case.explanation, scene.image)
    return coalition_scores(
        scene.model, scene.image, surrogate.features, coalitions, removal=removal, score=lambda logits: logits
    )
