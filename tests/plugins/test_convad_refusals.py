"""What deactivation cannot follow is refused, and named."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.plugins.convad_networks import small_network
from xaihub import ExplainerRefused, ParameterError
from xaihub_convad.deactivation import Deactivation


class _Sorts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(dim=-1).values


class _Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        copy = torch.zeros(x.shape)
        copy[:, :, 1:] = x[:, :, :-1]
        return copy


class _Opaque(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():  # as compiled code does
            return x.flip(-1)


class _Trains(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, training=True)


@pytest.mark.parametrize(
    "layer", [_Sorts, _Writes, _Trains, lambda: nn.InstanceNorm2d(4), lambda: nn.LayerNorm([8, 8])]
)
def test_a_layer_that_mixes_places_in_an_unknown_way_is_named(layer: Any) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer(), nn.Conv2d(4, 2, 3), nn.AdaptiveAvgPool2d(1))
    network.append(nn.Flatten()).eval()
    with torch.inference_mode(), pytest.raises(ExplainerRefused, match="layer '1'"):
        Deactivation().forward(network, torch.randn(2, 3, 8, 8), torch.ones(2, 1, 8, 8))


def test_code_that_cannot_be_followed_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), _Opaque(), nn.Conv2d(4, 2, 3), nn.Flatten()).eval()
    with torch.inference_mode(), pytest.raises(ExplainerRefused, match="cannot be tracked"):
        Deactivation().forward(network, torch.randn(2, 3, 8, 8), torch.ones(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("swin_tiny_patch4_window7_224", "layers.0"),
        ("pvt_v2_b0", "stages.0.blocks.0.attn"),
        ("mixer_s32_224", "blocks.0.mlp_tokens"),
        ("halonet26t", "self_attn"),
        ("eva02_tiny_patch14_224", "blocks.0.attn"),
        ("vit_relpos_small_patch16_224", "blocks.0.attn"),
        ("vit_tiny_r_s16_p8_224", "patch_embed"),
    ],
)
def test_attention_and_mixing_over_places_is_refused_by_layer(name: str, layer: str) -> None:
    network = timm.create_model(name).eval()
    side = network.default_cfg["input_size"][-1]
    with torch.inference_mode(), pytest.raises(ExplainerRefused, match=layer):
        Deactivation().forward(network, torch.randn(1, 3, side, side), torch.ones(1, 1, side, side))


def test_non_local_attention_is_refused_by_layer() -> None:
    network = small_network("resnet14t", block_args={"attn_layer": "nl"})
    with torch.inference_mode(), pytest.raises(ExplainerRefused, match=r"layer1\.0\.se.*NonLocalAttn"):
        Deactivation().forward(network, torch.randn(1, 3, 64, 64), torch.ones(1, 1, 64, 64))


@pytest.mark.parametrize(
    "options", [{"rule": "aligend"}, {"pooling": "mean"}, {"padding": "same"}, {"threshold": 0.0}, {"threshold": 1.1}]
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=next(iter(options))):
        Deactivation(**options)


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ParameterError, match="do not fit"):
        Deactivation().forward(small_network("resnet18"), torch.randn(2, 3, 64, 64), torch.ones(2, 3, 64, 64))
