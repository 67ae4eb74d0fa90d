"""Batch norms are folded where that changes nothing but the time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xaihub.models.folding import folded

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "tf_efficientnet_lite0": (lambda: timm.create_model("tf_efficientnet_lite0", num_classes=10), 0),
    "resnet10t": (lambda: timm.create_model("resnet10t", num_classes=10), 0),
    "mobilenetv3_small_050": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=10), 0),
    "regnetx_002": (lambda: timm.create_model("regnetx_002", num_classes=10), 0),
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 0),
    "torchvision mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), 0),
    # Norms before convolutions, and on the identity, stay.
    "densenet121": (lambda: timm.create_model("densenet121", num_classes=10), 62),
    "repvgg_a0": (lambda: timm.create_model("repvgg_a0", num_classes=10), 17),
}


def norms(network: nn.Module) -> int:
    return sum(isinstance(part, _BatchNorm) for part in network.modules())


def randomised(network: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(0)
    for part in network.modules():
        if isinstance(part, _BatchNorm):
            for tensor, low, high in ((part.running_mean, -0.2, 0.2), (part.running_var, 0.5, 1.5),
                                      (part.weight, 0.5, 1.5), (part.bias, -0.2, 0.2)):  # fmt: skip
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=draw)
    return network.eval().to(memory_format=torch.channels_last)


def noise(side: int = 64, rows: int = 2) -> Tensor:
    draw = torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(1))
    return draw.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_stay_and_norms_go(name: str) -> None:
    make, left = NETWORKS[name]
    network, inputs = randomised(make()), noise()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    result = folded(network, inputs)
    assert result is not None
    assert norms(result) == left
    with torch.inference_mode():
        other = noise(96)
        expected = network(other)
        assert torch.allclose(result(other), expected, rtol=0, atol=1e-4 * max(1.0, float(expected.abs().max())))
    assert norms(network) > left
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


class Block(nn.Module):
    """A convolution and a batch norm, joined in a way that a subclass chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)

    def features(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Skip(Block):
    def features(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class Twice(Block):
    def features(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.bn(self.conv(x))))


class Between(Block):
    def features(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x).relu())


class Functional(Block):
    def features(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) * torch.sigmoid(y.mean((2, 3), keepdim=True))


class Standardised(Block):
    def __init__(self) -> None:
        super().__init__()
        self.conv = timm.layers.StdConv2d(3, 3, 3, padding=1)


class OwnStatistics(Block):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3, track_running_stats=False)


@pytest.mark.parametrize("kind", [Skip, Twice, Between, Functional, Standardised, OwnStatistics])
def test_a_norm_whose_input_is_not_only_its_own_convolution_stays(kind: type[Block]) -> None:
    torch.manual_seed(0)
    assert folded(randomised(kind()), noise()) is None


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_constants_are_folded_exactly(affine: bool, bias: bool) -> None:
    torch.manual_seed(0)
    block = Block()
    block.conv, block.bn = nn.Conv2d(3, 3, 3, padding=1, bias=bias), nn.BatchNorm2d(3, affine=affine)
    network = randomised(block).double()
    result = folded(network, noise().double())
    assert result is not None
    with torch.inference_mode():
        assert torch.allclose(result(noise().double()), network(noise().double()), rtol=1e-12, atol=1e-12)


def test_hooks_of_the_network_do_not_run_in_the_copy() -> None:
    network, calls = randomised(Block()), []
    network.conv.register_forward_hook(lambda *_: calls.append(1))
    result = folded(network, noise())
    assert result is not None
    calls.clear()
    result(noise())
    assert calls == []


def test_a_network_that_reads_a_weight_elsewhere_is_not_folded() -> None:
    class Reads(Block):
        def features(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)) + self.conv.weight.sum()

    torch.manual_seed(0)
    assert folded(randomised(Reads()), noise()) is None
