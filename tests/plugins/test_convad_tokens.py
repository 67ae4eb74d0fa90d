"""Token dropping: against one image at a time, for every kind of plain vision transformer."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.plugins.convad_networks import close_to, five_masks
from xaihub import ExplainerRefused
from xaihub_convad.deactivation import Deactivation

TOKENS: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", {}),
    ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    ("vit_tiny_patch16_224", {"global_pool": "map", "class_token": False}),
    ("deit_tiny_distilled_patch16_224", {}),
    ("deit3_small_patch16_224", {}),
    ("vit_small_patch14_reg4_dinov2", {}),
]


def _transformer(name: str, options: dict[str, Any]) -> Any:
    side = {"vit_small_patch14_reg4_dinov2": 112}.get(name, 128)
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5, img_size=side, depth=3, **options)
    # Classifiers and class tokens start at zero.
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network.eval(), side


def _tokens_one_by_one(network: Any, image: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """Embed, pick the tokens of one image in a loop, and run the rest of the network's own steps."""
    image = image.clone()
    image[:, :, mask == 0] = 0
    patch = network.patch_embed.patch_size[0]
    columns = mask.shape[1] // patch
    tokens = network._pos_embed(network.patch_embed(image))
    kept = list(range(network.num_prefix_tokens))
    for cell in range((mask.shape[0] // patch) * columns):
        y, x = divmod(cell, columns)
        area = mask[y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
        kept += [cell + network.num_prefix_tokens] * (float(area.mean()) >= threshold)
    x = network.norm_pre(tokens[:, kept])
    for block in network.blocks:
        x = block(x)
    return network.forward_head(network.norm(x))


@pytest.mark.parametrize(("name", "options"), TOKENS)
@pytest.mark.parametrize("threshold", [0.5, 1.0])
@torch.inference_mode()
def test_dropping_tokens_in_batches_equals_one_image_at_a_time(
    name: str, options: dict[str, Any], threshold: float
) -> None:
    network, side = _transformer(name, options)
    masks = torch.cat([five_masks(side)[[0, 2, 3, 4]], torch.ones(1, 1, side, side), five_masks(side)[[3]].flip(-1)])
    masks[4, :, :7, :5] = 0
    inputs = torch.randn(len(masks), 3, side, side)
    outputs = Deactivation(threshold=threshold).forward(network, torch.where(masks > 0, inputs, torch.nan), masks)
    expected = [
        _tokens_one_by_one(network, image[None], mask[0], threshold) for image, mask in zip(inputs, masks, strict=True)
    ]
    assert torch.allclose(outputs, torch.cat(expected), atol=1e-4)
    assert outputs.std(0).min() > 1e-4
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(("name", "options"), TOKENS)
@torch.inference_mode()
def test_a_transformer_that_sees_nothing_answers_with_finite_scores(name: str, options: dict[str, Any]) -> None:
    network, side = _transformer(name, options)
    outputs = Deactivation().forward(network, torch.randn(2, 3, side, side), torch.zeros(2, 1, side, side))
    assert bool(outputs.isfinite().all())
    assert close_to(outputs[0], outputs[1])


@torch.inference_mode()
def test_the_full_mask_is_the_plain_transformer_and_hidden_tokens_are_not_computed() -> None:
    network, side = _transformer(*TOKENS[0])
    inputs, masks = torch.randn(5, 3, side, side), five_masks(side)
    full = Deactivation().forward(network, inputs, torch.ones(5, 1, side, side))
    assert torch.equal(full, network(inputs))
    seen: list[int] = []
    handle = network.blocks[1].register_forward_hook(lambda _m, _a, out: seen.append(out.shape[0] * out.shape[1]))
    Deactivation().forward(network, inputs, masks)
    handle.remove()
    live = functional.avg_pool2d(masks, 16) >= 0.5
    assert sum(seen) == int(live.sum()) + len(masks) * network.num_prefix_tokens


@pytest.mark.parametrize("options", [{"rule": "layerwise"}, {"padding": "neighbours"}])
def test_options_without_a_meaning_for_tokens_are_refused(options: dict[str, Any]) -> None:
    network, side = _transformer(*TOKENS[0])
    with pytest.raises(ExplainerRefused, match=next(iter(options.values()))):
        Deactivation(**options).forward(network, torch.randn(1, 3, side, side), torch.ones(1, 1, side, side))


@torch.inference_mode()
def test_torchvision_transformers_drop_tokens_as_well() -> None:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=5)
    nn.init.normal_(network.heads[0].weight)
    network.eval()
    inputs, masks = torch.randn(5, 3, 64, 64), five_masks(64)
    outputs = Deactivation().forward(network, inputs, masks)
    assert close_to(outputs[0], network(inputs)[0])
    for row, image, mask in zip(outputs, inputs, masks, strict=True):
        tokens = network._process_input((image * mask)[None])
        tokens = torch.cat([network.class_token, tokens], dim=1) + network.encoder.pos_embedding
        live = (functional.avg_pool2d(mask[None], 16).flatten() >= 0.5).nonzero().flatten() + 1
        kept = tokens[:, [0, *live.tolist()]]
        assert close_to(row, network.heads(network.encoder.ln(network.encoder.layers(kept))[:, 0])[0])
