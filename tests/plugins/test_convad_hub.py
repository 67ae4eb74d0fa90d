"""Deactivation as a way to hide pixels of the hub: baselines, methods that mask, curves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import xaihub
from tests.plugins.convad_networks import five_masks, lite0, small_model, small_network
from xaihub import Case, ClassScore, Explanation, ResolvedTarget, Scene
from xaihub.masking import Removal, make_removal, masked_forward_passes
from xaihub_convad.deactivation import Deactivation
from xaihub_metrics_curves.areas import Deletion, Insertion

WAYS = [
    "deactivate",
    "deactivate_most",
    "deactivate_whole",
    "deactivate_live",
    "deactivate_layerwise",
    "deactivate_neighbours",
]


@pytest.mark.parametrize("name", WAYS)
def test_the_hub_offers_it_as_a_baseline(name: str) -> None:
    model = lite0()
    image = torch.randn(model.input_size)
    removal = make_removal(name, model, image)
    assert isinstance(removal, Removal)
    (batch,) = masked_forward_passes(model, image, five_masks(image.shape[-1])[:4], removal=removal)
    assert torch.allclose(batch.outputs[0], model.predict(image[None])[0], atol=1e-4)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("rise", {"masks": 5, "cell": 4}),
        ("kernel_shap", {"samples": 12, "features": "grid:3"}),
        ("occlusion", {"window": 32, "stride": 16}),
        ("first_principles", {"budget": 16, "features": "grid:3"}),
        ("shapley_values", {"budget": 16, "features": "grid:3"}),
    ],
)
def test_methods_that_mask_give_the_same_map_for_any_batch_size(method: str, parameters: dict[str, Any]) -> None:
    explainer = xaihub.get_explainer(method, baseline="deactivate", **parameters)
    network = small_network("resnet18")
    image = torch.randn(1, 3, 64, 64)
    batched, single = (
        explainer.explain(small_model(network, 64), image, 1, seed=1)[0].values,
        explainer.explain(small_model(network, 64, rows=1), image, 1, seed=1)[0].values,
    )
    assert torch.allclose(batched, single, atol=1e-4 * float(batched.abs().max()))


@pytest.mark.parametrize("kind", [Insertion, Deletion])
def test_curves_that_hide_by_it_ask_the_deactivated_network(kind: type[Insertion | Deletion]) -> None:
    network = small_network("resnet18")
    model, image = small_model(network, 64), torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    logits = model.predict(image[None])
    scene = Scene(model=model, image=image, logits=logits[0], target=ResolvedTarget(index=torch.tensor([1])))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    heat = _patches(16.0 - order.argsort())  # the highest value where the order begins
    label = ClassScore(index=1, name="", logit=0.0, probability=0.0)
    case = Case(scene=scene, explanation=Explanation(values=heat[None], target=label, predicted=label))

    area = kind(baseline="deactivate", unit="patches", patch=16, steps=16).measure(case)[0].value

    probabilities = []
    for count in range(17):
        shown = torch.full((16,), float(kind is Deletion))
        shown[order[:count]] = float(kind is Insertion)
        mask = _patches(shown)[None, None]
        with torch.inference_mode():
            probabilities.append(float(Deactivation().forward(network, image[None], mask).softmax(1)[0, 1]))
    assert area == pytest.approx(float(np.trapezoid(probabilities)) / 16, abs=1e-5)


def _patches(values: Tensor) -> Tensor:
    return values.view(4, 4).repeat_interleave(16, 0).repeat_interleave(16, 1)
