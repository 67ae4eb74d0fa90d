"""Small networks, batches and steps for the tests of ExpO."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from xaihub import Model, Objective, Preprocessing, Step

SIDE = 32


def wrapped(module: nn.Module, *, channels: int = 3, side: int = SIDE) -> Model:
    plain = Preprocessing(spatial=(), size=(channels, side, side), mean=(0.4,) * channels, std=(0.25,) * channels)
    return Model(module, name="small", preprocessing=plain)


def resnet(**options: Any) -> nn.Module:
    """An untrained ResNet-18 whose batch norms are not those of a fresh one."""
    torch.manual_seed(0)
    network = timm.create_model("resnet18", num_classes=4, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    return network


def vit(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=SIDE, patch_size=8, depth=2, num_classes=4, **options)


def batch(rows: int = 4, channels: int = 3, side: int = SIDE, classes: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(rows, channels, side, side, generator=g), torch.randint(classes, (rows,), generator=g)


def step(number: int = 0, seed: int = 0) -> Step:
    return Step(number=number, total=100, generator=torch.Generator().manual_seed(seed))


def begun(objective: Objective, model: Model) -> nn.Module:
    """A fresh run: network in training mode."""
    objective.state.clear()
    network = objective.wrap(model)
    objective.begin(network.eval(), [batch()], torch.Generator().manual_seed(0), 3)
    return network.train().requires_grad_(True)


class Counted:
    """Counts the rows of each forward pass of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.rows: list[int] = []
        network.register_forward_hook(lambda _m, _i, output: self.rows.append(len(output)))
