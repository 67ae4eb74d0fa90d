"""Layers are fused where that changes nothing but the time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from xaihub.models import fusing
from xaihub.models.folding import folded
from xaihub.models.fusing import _OneCall, fused

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")


def images(side: int = 32, rows: int = 2) -> Tensor:
    drawn = torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(1))
    return drawn.contiguous(memory_format=torch.channels_last)


def kinds(network: nn.Module) -> list[str]:
    return [part.activation[0] for part in network.modules() if isinstance(part, _OneCall)]


def same(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-4 * max(1.0, float(expected.abs().max())))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "tf_efficientnet_lite0": (lambda: timm.create_model("tf_efficientnet_lite0", num_classes=5), "hardtanh"),
    "tf_efficientnet_b0": (lambda: timm.create_model("tf_efficientnet_b0", num_classes=5), "swish"),
    "resnet10t": (lambda: timm.create_model("resnet10t", num_classes=5), "relu"),
    "mobilenetv3_small_050": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), "hardswish"),
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, depth=2, dynamic_img_size=True),
        "gelu",
    ),
    "beit": (lambda: timm.create_model("beit_base_patch16_224", img_size=32, embed_dim=48, depth=1, num_heads=2,
                                       num_classes=5, init_values=None), ""),
    "squeezenet": (lambda: torchvision.models.squeezenet1_1(num_classes=5), "relu"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_stay_for_any_size_and_number_of_rows(name: str) -> None:
    make, activation = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval().to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    start = folded(network, images()) or network
    result = fused(start, images())
    assert result is not None
    assert len(kinds(result)) > 1
    assert not activation or activation in kinds(result)
    # Odd sizes, so that "same" padding is even in one place and uneven in another.
    for other in (
        images(rows=3),
        *([] if name == "beit" else [images(48), images(65) if name != "vit" else images(64)]),
    ):
        with torch.inference_mode():
            assert same(result(other), network(other))
            assert same(result(other.contiguous()), network(other))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not kinds(network)


class Net(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 8, 3, padding=1), act, nn.Linear(8, 4)

    def features(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class ReadTwice(Net):
    def features(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.act(y) + y


class Changed(Net):
    def features(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x).add_(1.0))


class ActTwice(Net):
    def features(self, x: Tensor) -> Tensor:
        return self.act(self.act(self.conv(x)) - 0.5)


class ReadsWeight(Net):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.features(x).mean((2, 3)), self.head.weight, self.head.bias)


@pytest.mark.parametrize(
    ("kind", "act", "found"),
    [
        (Net, nn.ReLU(), ["relu", "none"]),
        (Net, nn.ReLU(inplace=True), ["relu", "none"]),
        (Net, nn.Hardtanh(-0.1, 0.2), ["hardtanh", "none"]),
        (Net, nn.GELU(approximate="tanh"), ["gelu", "none"]),
        (Net, nn.ELU(), ["none", "none"]),
        (ReadTwice, nn.ReLU(), ["none", "none"]),
        (ReadTwice, nn.ReLU(inplace=True), ["relu", "none"]),  # both read what was activated
        (Changed, nn.ReLU(), ["none", "none"]),
        (ActTwice, nn.ReLU(), ["none", "none"]),
        (ReadsWeight, nn.ReLU(), ["relu"]),
    ],
)
def test_an_activation_is_fused_where_nothing_else_reads_its_input(
    kind: type[Net], act: nn.Module, found: list[str]
) -> None:
    torch.manual_seed(0)
    network = kind(act).eval()
    result = fused(network, images(8))
    assert result is not None
    assert kinds(result) == found
    with torch.inference_mode():
        assert same(result(images(8)), network(images(8)))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 8, 3, padding="same"),
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        type("Own", (nn.Conv2d,), {"forward": lambda self, x: 2 * nn.Conv2d.forward(self, x)})(3, 8, 3),
    ],
)
def test_layers_of_another_kind_stay(conv: nn.Module) -> None:
    network = Net(nn.ReLU())
    network.conv = conv
    result = fused(network.eval(), images(8))
    assert result is not None
    assert kinds(result) == ["none"]  # the linear layer
    with torch.inference_mode():
        assert same(result(images(8)), network(images(8)))


def test_nothing_is_fused_where_that_is_not_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused(nn.Sequential(nn.Flatten(), nn.Softmax(1)).eval(), images(8)) is None
    assert fused(Net(nn.ReLU()).double().eval(), images(8).double()) is None
    network = Net(nn.ReLU()).eval()
    with monkeypatch.context() as changed:
        changed.setattr(fusing, "LARGEST", 100)
        assert fused(network, images(8)) is None

    def other(*_given: object) -> Tensor:
        raise RuntimeError("another release has other arguments")

    assert fused(network, images(8)) is not None
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", other)
    assert fused(network, images(8)) is None


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="the CPU has no bf16")
def test_mixed_precision_is_that_of_the_network() -> None:
    torch.manual_seed(0)
    network = Net(nn.ReLU()).eval()
    result = fused(network, images(8))
    assert result is not None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found, expected = result(images(8)), network(images(8))
    assert found.dtype == expected.dtype == torch.bfloat16
    assert torch.allclose(found, expected, atol=0.02)
    assert not torch.equal(found.float(), result(images(8)).float())
