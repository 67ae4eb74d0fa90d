"""The local linear model behind a map: which explainers provide one, and how it is read and evaluated.

An explainer of images provides a local linear model if it has the parameters `features`, `baseline` and `output`, fills
all pixels of a feature with its coefficient, and records the intercept in its details as "intercept". Then
g(z) = intercept + sum_k coefficient_k z_k predicts the output if z marks the visible features. LIME and KernelSHAP do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xaihub import Case, Explanation, MetricRefused
from xaihub.masking import Segments, coalition_scores, make_features, make_removal


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """An affine function of which of K features are visible."""

    coefficients: Tensor  # (K,) float64
    intercept: float  # the value if no feature is visible
    features: Segments  # the pixels of each feature

    def __call__(self, coalitions: Tensor) -> Tensor:
        """Return (n,) values for (n, K) coalitions."""
        return coalitions.double() @ self.coefficients + self.intercept

    @property
    def vector(self) -> Tensor:
        """(K + 1,) coefficients, the intercept last."""
        return torch.cat([self.coefficients, torch.tensor([self.intercept], dtype=torch.float64)])


def surrogate_parameters(explanation: Explanation) -> Mapping[str, Any]:
    """Return the parameters of the explainer that fitted a local linear model.

    Raises:
        MetricRefused: It fitted none.
    """
    values: Mapping[str, Any] = explanation.metadata.get("parameters", {})
    details: Mapping[str, Any] = explanation.metadata.get("details", {})
    if "intercept" not in details or not {"features", "baseline", "output"} <= set(values):
        who = explanation.explainer or "this explainer"
        raise MetricRefused(f"{who} gives no local linear model", hint="use lime or kernel_shap")
    return values


def read_surrogate(case: Case, explanation: Explanation, image: Tensor) -> Surrogate:
    """Read the local linear model of one map of a (C, H, W) image.

    Raises:
        MetricRefused: There is none, or the map does not have one value per feature.
    """
    values = surrogate_parameters(explanation)
    features = make_features(values["features"], case.model, image)
    heat = explanation.heatmap().double()
    labels = features.labels.flatten()
    first = torch.zeros(features.count, dtype=torch.long).scatter_(0, labels.flip(0), torch.arange(len(labels)).flip(0))
    coefficients = heat.flatten()[first]
    if not torch.equal(features.spread(coefficients), heat):
        raise MetricRefused(f"the map of {explanation.explainer} does not have one value per feature")
    intercept = float(explanation.metadata["details"]["intercept"])
    return Surrogate(coefficients=coefficients, intercept=intercept, features=features)


def outputs(case: Case, surrogate: Surrogate, coalitions: Tensor, key: tuple[Any, ...]) -> Tensor:
    """Return the (n,) outputs that the surrogate predicts under (n, K) coalitions; `key` identifies the coalitions.

    Explainers with the same features and baseline share the forward passes.
    """
    values, scene = surrogate_parameters(case.explanation), case.scene
    seed = int(case.explanation.metadata.get("seed", 0))

    def evaluate() -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the noise of the baseline "noise" is the explainer's
            removal = make_removal(values["baseline"], scene.model, scene.image)
        return coalition_scores(
            scene.model, scene.image, surrogate.features, coalitions, removal=removal, score=lambda logits: logits
        )

    noise = seed if values["baseline"] == "noise" else 0
    found: Tensor = scene.memory.once(
        ("logits of masks", values["features"], values["baseline"], noise, *key), evaluate
    )
    score: Callable[..., Tensor] = scene.score
    return score(found, output=values["output"]).double()
