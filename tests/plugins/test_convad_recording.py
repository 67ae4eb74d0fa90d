"""Deactivation from a recording: the same scores as operation by operation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.plugins.convad_networks import close_to, five_masks, small_model, small_network
from xaihub_convad.deactivation import Deactivation

SIDE = 64
# Padding beforehand; gated channels; layer norm and GELU; the number of rows as a constant; norms first; global norms.
NETWORKS: dict[str, dict[str, Any]] = {
    "tf_efficientnet_lite0": {},
    "mobilenetv3_small_100": {},
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "ecaresnet26t": {"layers": (1, 1, 1, 1)},
    "resnetv2_50": {"layers": (1, 2, 1, 1)},
    "poolformer_s12": {},
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_the_recording_is_deactivation_taken_literally(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks = small_model(small_network(name, **NETWORKS[name]), SIDE), five_masks(SIDE)
    model.runtime.backend = "eager"
    image = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    for deactivation in (Deactivation(threshold=7 / 8), Deactivation(rule="layerwise", threshold=0.4, pooling="live")):
        literal = deactivation(model, image, masks)
        with model.executing(), monkeypatch.context() as context:
            deactivation(model, image, masks[:1])
            context.setattr("xaihub_convad.deactivation.removal.Tracker", None)  # from here on, recorded
            found = deactivation(model, image, masks)
            void = torch.where(masks > 0, image, torch.nan)
            assert torch.equal(deactivation.evaluate(model, void, masks), found)  # masked pixels have no effect
        assert close_to(found, literal)


@torch.inference_mode()
def test_a_transformer_drops_its_tokens_as_before() -> None:
    network = small_network("vit_tiny_patch16_224", img_size=SIDE, depth=2, embed_dim=24, num_heads=2)
    model, masks, image = small_model(network, SIDE), five_masks(SIDE), torch.randn(3, SIDE, SIDE)
    literal = Deactivation()(model, image, masks)
    with model.executing():
        for _ in range(2):
            assert close_to(Deactivation()(model, image, masks), literal)
