"""Activation-Deactivation: against literal implementations, and the promises that it makes for every network."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import xaihub
from tests.plugins.convad_networks import close_to, five_masks, lite0, randomised, small_network
from xaihub_convad.deactivation import Deactivation, MaskedNetwork
from xaihub_convad.deactivation.live_map import Aligned, Layerwise
from xaihub_convad.deactivation.tracking import Tracker

# Every family of convolutional networks that is promised, at the smallest size that its strides allow.
FAMILIES = {
    "resnet18": 64,
    "resnet50": 64,
    "resnet26d": 64,
    "resnetv2_50": 64,
    "resnetv2_50x1_bit": 64,
    "convnext_atto": 64,
    "convnextv2_atto": 64,
    "efficientnet_b0": 64,
    "tf_efficientnet_lite0": 64,
    "mobilenetv3_small_100": 64,
    "densenet121": 64,
    "regnetx_004": 64,
    "regnety_004": 64,
    "vgg11_bn": 64,  # its classifier made narrow below
    "resnest14d": 64,
    "inception_v3": 139,
    "ecaresnet26t": 64,
    "skresnet18": 64,
    "gcresnext26ts": 64,
    "resnet14t": 64,  # with CBAM, below
    "hrnet_w18_small": 64,
    "poolformer_s12": 64,
}


# Each kind of block once is enough: with a shortcut that changes the shape, and with one that does not.
SHORT: dict[str, Any] = {"layers": (1, 2, 1, 1)}
BUILT: dict[str, dict[str, Any]] = {
    **dict.fromkeys(["resnet50", "resnet26d", "resnetv2_50", "ecaresnet26t", "skresnet18"], SHORT),
    "densenet121": {"block_config": (2, 3, 2, 2)},
    "vgg11_bn": {"mlp_ratio": 0.02},
    "resnet14t": {"block_args": {"attn_layer": "cbam"}},
}

OPTIONS: list[dict[str, Any]] = [
    {},
    {"threshold": 1.0},
    {"pooling": "live"},
    {"rule": "layerwise", "threshold": 0.4},
    {"padding": "neighbours"},
]


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_every_family_keeps_its_promises(name: str) -> None:
    side = FAMILIES[name]
    network, masks = small_network(name, **BUILT.get(name, {})), five_masks(side)
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(3))
    inputs = image.expand(len(masks), -1, -1, -1).clone()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    plain = network(inputs)
    for options in OPTIONS:
        deactivation = Deactivation(**options)
        outputs = deactivation.forward(network, inputs, masks)
        assert torch.equal(outputs[0], plain[0]), options  # theorem 1 of the paper, to the bit
        assert bool(outputs.isfinite().all()), options  # also where nothing is visible
        assert (outputs - plain)[1:].abs().amax(1).min() > 0, options
    noise = torch.where(masks > 0, inputs, 1e6 * torch.randn(inputs.shape))
    void = torch.where(masks > 0, inputs, torch.nan)
    aligned = Deactivation().forward(network, inputs, masks)
    assert torch.equal(Deactivation().forward(network, noise, masks), aligned)
    assert torch.equal(Deactivation().forward(network, void, masks), aligned)
    singles = [Deactivation().forward(network, inputs[:1], mask[None]) for mask in masks]
    assert close_to(torch.cat(singles), aligned)
    assert torch.equal(network(inputs), plain)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


class _Literal(nn.Module):
    """Convolutions with every feature: strides, padding, groups, dilation, a pooling, a shortcut, global statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3)
        self.mix = nn.Conv2d(6, 6, 1)
        self.gate = nn.Conv2d(6, 6, 1)
        self.down = nn.Conv2d(6, 8, 2, stride=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = functional.max_pool2d(x, 3, 1, 1)
        x = x + self.mix(functional.silu(self.deep(x)))
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        x = self.down(x)
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def _aligned(mask: Tensor, grid: int, threshold: float) -> Tensor:
    """The share of kept pixels in each cell, one cell at a time."""
    side = mask.shape[0] // grid
    live = torch.zeros(grid, grid)
    for y, x in itertools.product(range(grid), repeat=2):
        live[y, x] = float(mask[y * side : (y + 1) * side, x * side : (x + 1) * side].mean()) >= threshold
    return live


def _windows(live: Tensor, kernel: int, stride: int, padding: int, dilation: int, threshold: float) -> Tensor:
    """The share of live places among those of each window that exist, one window at a time."""
    side = live.shape[0]
    grid = (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    result = torch.zeros(grid, grid)
    for y, x in itertools.product(range(grid), repeat=2):
        rows, columns = ([at * stride - padding + number * dilation for number in range(kernel)] for at in (y, x))
        there = [float(live[a, b]) for a, b in itertools.product(rows, columns) if 0 <= a < side and 0 <= b < side]
        result[y, x] = sum(there) / len(there) >= threshold
    return result


def _literal(net: _Literal, image: Tensor, mask: Tensor, *, rule: str, threshold: float, live_pooling: bool) -> Tensor:
    """Set every unit of every layer to zero as the rule says, right after the layer."""

    def follow(live: Tensor, grid: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> Tensor:
        return {
            "aligned": lambda: _aligned(mask, grid, threshold),
            "layerwise": lambda: _windows(live, kernel, stride, padding, dilation, threshold),
        }[rule]()

    def mean(x: Tensor, live: Tensor) -> Tensor:
        count = {True: max(float(live.sum()), 1.0), False: float(live.numel())}[live_pooling]
        return (x * live).sum((2, 3), keepdim=True) / count

    zero = torch.zeros(())
    image = torch.where(mask > 0, image, zero)
    live = follow(mask, 8, 3, 2, 1)
    x = torch.where(live > 0, net.norm(net.stem(image)), zero)
    pooled = torch.zeros_like(x)
    after = follow(live, 8, 3, 1, 1)
    for y, z in itertools.product(range(8), repeat=2):  # the maximum of what is live, else zero
        area = slice(max(y - 1, 0), y + 2), slice(max(z - 1, 0), z + 2)
        seen = x[..., area[0], area[1]][..., live[area] > 0]
        pooled[..., y, z] = seen.amax(-1) if seen.numel() else zero
    x = torch.where(after > 0, pooled, zero)
    live = after
    deep = follow(live, 8, 3, 1, 2, 2)
    branch = torch.where(deep > 0, net.mix(torch.where(deep > 0, functional.silu(net.deep(x)), zero)), zero)
    live = live * deep
    x = torch.where(live > 0, x + branch, zero)
    x = x * net.gate(mean(x, live)).sigmoid()
    last = follow(live, 4, 2, 2, 0)
    x = torch.where(last > 0, net.down(x), zero)
    return net.head(mean(x, last).flatten(1))


@pytest.mark.parametrize("rule", ["aligned", "layerwise"])
@pytest.mark.parametrize("threshold", [0.05, 0.4, 0.5, 1.0])
@pytest.mark.parametrize("pooling", ["plain", "live"])
@torch.inference_mode()
def test_deactivation_equals_the_rule_taken_literally(rule: Any, threshold: float, pooling: Any) -> None:
    torch.manual_seed(0)
    net = randomised(_Literal())
    inputs = torch.randn(6, 2, 16, 16)
    masks = (torch.rand(6, 1, 16, 16) < torch.linspace(0.3, 1, 6).view(-1, 1, 1, 1)).float()
    masks[0, :, 3:9, 4:] = 1
    ours = Deactivation(rule=rule, threshold=threshold, pooling=pooling).forward(net, inputs, masks)
    expected = [
        _literal(net, image[None], mask[0], rule=rule, threshold=threshold, live_pooling=pooling == "live")
        for image, mask in zip(inputs, masks, strict=True)
    ]
    assert torch.allclose(ours, torch.cat(expected), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
@torch.inference_mode()
def test_an_aligned_rectangle_under_live_pooling_is_the_crop(name: str) -> None:
    networks = {"resnet18": lambda: small_network(name), "efficientnet_lite0": lambda: lite0().module}
    network = networks[name]()
    image = torch.randn(1, 3, 160, 160)
    mask = torch.zeros(1, 1, 160, 160)
    mask[..., 32:128, 64:160] = 1
    crop = network(image[..., 32:128, 64:160])
    assert close_to(Deactivation(pooling="live").forward(network, image, mask), crop, 1e-4)


@torch.inference_mode()
def test_a_trained_network_still_sees_the_cat_in_three_quarters_of_the_photo() -> None:
    model = lite0()
    image, _ = model.prepare(xaihub.load_image(xaihub.sample_photo()).rgb)
    side = image.shape[-1]
    mask = torch.zeros(2, 1, side, side)
    mask[0] = 1
    mask[1, :, 32:192, 32:192] = 1
    outputs = Deactivation(pooling="live")(model, image, mask)
    assert torch.equal(outputs[0], model(image.expand(2, -1, -1, -1))[0])
    cats = outputs.softmax(1)[:, 281:286].sum(1)  # the photo is of a cat
    assert cats.min() > 0.5


@pytest.mark.parametrize("rule", [Aligned, Layerwise])
def test_a_larger_mask_never_switches_a_place_off(rule: Any) -> None:
    small = (torch.rand(8, 1, 64, 64) < 0.4).float()
    large = torch.maximum(small, (torch.rand(8, 1, 64, 64) < 0.3).float())
    grids = {}
    for key, mask in (("small", small), ("large", large)):
        seen: list[Tensor] = grids.setdefault(key, [])
        propagation = rule(mask, 0.4)
        follow = propagation.window

        def noted(*args: Any, follow: Any = follow, seen: list[Tensor] = seen) -> Any:
            live = follow(*args)
            seen.append(live.mask)
            return live

        propagation.window = noted
        network = small_network("resnet18")
        with torch.inference_mode(), Tracker(network, propagation, _rules(), pooling="plain", neighbours=False) as t:
            network(t.start(torch.randn(8, 3, 64, 64)))
    assert len(grids["small"]) > 10
    assert all(bool((one <= other).all()) for one, other in zip(grids["small"], grids["large"], strict=True))


def _rules() -> Any:
    from xaihub_convad.deactivation.rules import RULES

    return RULES


def test_one_visible_cell_of_the_last_grid_stays_on_and_no_mask_breaks_the_network() -> None:
    mask = torch.zeros(1, 1, 224, 224)
    mask[..., 64:96, 128:160] = 1
    for grid in (112, 56, 28, 14, 7):
        live = Aligned(mask, 0.5).resized(Aligned(mask, 0.5).image, (grid, grid)).mask
        assert int(live.sum()) == (grid // 7) ** 2


@torch.inference_mode()
def test_a_soft_mask_counts_as_kept_from_one_half_on() -> None:
    network, inputs = small_network("resnet18"), torch.randn(3, 3, 64, 64)
    soft = torch.rand(3, 1, 64, 64)
    hard = (soft >= 0.5).float()
    deactivation = Deactivation()
    assert torch.equal(deactivation.forward(network, inputs, soft), deactivation.forward(network, inputs, hard))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.inference_mode()
def test_memory_order_and_mixed_precision_change_rounding_only(options: dict[str, Any]) -> None:
    network, inputs, masks = small_network("convnextv2_atto"), torch.randn(5, 3, 64, 64), five_masks(64)
    deactivation = Deactivation(**options)
    expected = deactivation.forward(network, inputs, masks)
    network = network.to(memory_format=torch.channels_last)
    ordered = deactivation.forward(network, inputs.contiguous(memory_format=torch.channels_last), masks)
    assert close_to(ordered, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = deactivation.forward(network, inputs, masks)
        assert torch.equal(half[0], network(inputs)[0])
    assert close_to(half.float(), expected, 0.1)


def test_gradients_pass_through_what_is_on_only() -> None:
    network, masks = small_network("resnet18"), five_masks(64)
    inputs = torch.randn(5, 3, 64, 64, requires_grad=True)
    Deactivation().forward(network, inputs, masks).square().sum().backward()
    assert inputs.grad is not None
    assert not (inputs.grad.abs().sum(1, keepdim=True) * (1 - masks)).any()
    assert inputs.grad[4].abs().sum() > 0


def test_nothing_is_left_behind_even_after_an_error() -> None:
    network = small_network("resnet18")
    classes = [type(module) for module in network.modules()]
    keys = [sorted(vars(module)) for module in network.modules()]
    handle = network.layer3.register_forward_hook(_fail)
    inputs, masks = torch.randn(5, 3, 64, 64), five_masks(64)
    with torch.inference_mode(), pytest.raises(ValueError, match="broken"):
        Deactivation().forward(network, inputs, masks)
    handle.remove()
    assert [type(module) for module in network.modules()] == classes
    assert [sorted(vars(module)) for module in network.modules()] == keys
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    with torch.inference_mode():
        hidden = torch.zeros(1, 1, 64, 64)
        assert not torch.equal(network(inputs[:1]), Deactivation().forward(network, inputs[:1], hidden))


def _fail(*_: Any) -> None:
    raise ValueError("broken")


@torch.inference_mode()
def test_a_masked_network_takes_a_mask_or_hidden_pixels_as_nan() -> None:
    network, inputs, masks = small_network("resnet18"), torch.randn(5, 3, 64, 64), five_masks(64)
    masked = MaskedNetwork(network)
    expected = Deactivation().forward(network, inputs, masks)
    assert torch.equal(masked(inputs, masks), expected)
    assert torch.equal(masked(torch.where(masks > 0, inputs, torch.nan)), expected)
