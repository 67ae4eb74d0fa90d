"""Similarity maps of DINOv2 with registers and DINOv3: timm's architectures with random weights, shallow and small."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import xaihub
from tests.plugins.photos import photo
from xaihub import Hub, Model

# The architecture, and a side of four patches.
DINO = {"vit_small_patch14_reg4_dinov2": 56, "vit_small_patch16_dinov3": 64}
EXPLAINERS: dict[str, dict[str, Any]] = {
    "gradcam": {}, "attention_rollout": {}, "attention_gradient": {}, "rise": {"masks": 30, "cell": 4},
}  # fmt: skip


@pytest.fixture(scope="module", params=DINO)
def model(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(0)
    options = {"depth": 2, "img_size": DINO[request.param]}
    found = Hub().load_model(request.param, scratch=True, size=DINO[request.param], options=options)
    # The scales of layers begin at 1e-5, with which two blocks hardly change anything.
    with torch.no_grad():
        for name, weight in found.module.named_parameters():
            if name.endswith(("gamma", "gamma_1", "gamma_2")):
                weight.fill_(1)
    return found


@pytest.mark.parametrize("name", EXPLAINERS)
def test_similarity_to_an_image_has_a_map(name: str, model: Model) -> None:
    found = xaihub.explain(photo(), model=model, like=photo(seed=1), explainer=name, **EXPLAINERS[name])

    assert model.outputs.kind == "embedding"
    assert (model.layer().grid, model.layer().prefix) == ((4, 4), 5)  # a class token and four registers
    assert -1 <= found.target.value < 1
    assert float(found.values.std()) > 0
    if name.startswith("attention"):
        assert found.metadata["layer"].startswith("2 attention blocks over 5 + 4x4 tokens")


def test_the_same_image_is_alike(model: Model) -> None:
    found = xaihub.explain(photo(), model=model, like=[photo(), photo(seed=1)], explainer="gradcam")

    assert found.target.value > 0  # more like itself than like the other
