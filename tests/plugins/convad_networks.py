"""Networks and masks for the tests of deactivation."""

from __future__ import annotations

import itertools
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import xaihub
from xaihub import Model, Preprocessing, Runtime
from xaihub_convad.baselines import make_deactivation


def randomised(network: nn.Module) -> nn.Module:
    """Biases, gains and running statistics of a fresh network are all alike; a trained one's are not."""
    generator = torch.Generator().manual_seed(1)
    spreads = {"running_var": (0.5, 1.5), "running_mean": (-0.2, 0.2), "bias": (-0.2, 0.2)}
    with torch.no_grad():
        for name, tensor in itertools.chain(network.named_parameters(), network.named_buffers()):
            low, high = spreads.get(name.rpartition(".")[2], (0.8, 1.2))
            vector = tensor if tensor.ndim == 1 else torch.zeros(0)
            vector.uniform_(low, high, generator=generator)
    return network.eval()


def small_network(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return randomised(timm.create_model(name, num_classes=7, **options))


def small_model(network: nn.Module, side: int, rows: int = 4) -> Model:
    plain = Preprocessing(spatial=(), size=(3, side, side), mean=(0.5,) * 3, std=(0.25,) * 3)
    model = Model(network, name="small", preprocessing=plain, runtime=Runtime(batch_size=rows))
    model.baselines = {"deactivate": lambda: make_deactivation}
    return model


def five_masks(side: int) -> Tensor:
    """All, nothing, a half, a rectangle, scattered blocks."""
    masks = torch.zeros(5, 1, side, side)
    masks[0] = 1
    masks[2, :, :, side // 2 :] = 1
    masks[3, :, side // 8 : 5 * side // 8, side // 4 :] = 1
    blocks = (torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.6).float()
    masks[4] = functional.interpolate(blocks, size=(side, side))[0]
    return masks


def close_to(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    return float((one - other).abs().max()) <= tolerance * max(1.0, float(other.abs().max()))


def lite0() -> Model:
    return xaihub.load_model("efficientnet_lite0", device="cpu", runtime=Runtime(batch_size=4))
