"""The network that votes patch by patch: every layout, warm start, masks, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from xaihub import ModelError, ParameterError, Step
from xaihub_shapley.network import ShapleyVision
from xaihub_shapley.objective import ShapleyObjective

# A small one of each layout: its options, its input, its grid, and how its head starts.
BACKBONES: dict[str, tuple[dict[str, Any], int, tuple[int, int], str]] = {
    "test_resnet": ({}, 96, (3, 3), "exact"),
    "test_efficientnet": ({}, 96, (3, 3), "exact"),
    "test_convnext": ({}, 96, (3, 3), "approximate"),
    "test_vit": ({"img_size": 64}, 64, (4, 4), "fresh"),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 56, "window_size": 7, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}, 56, (7, 7), "exact",
    ),
    "mixer_s32_224": ({"img_size": 64}, 64, (2, 2), "exact"),
    "mobilenetv3_small_050": ({}, 64, (2, 2), "fresh"),
    "deit_tiny_distilled_patch16_224": ({"img_size": 48, "depth": 2}, 48, (3, 3), "fresh"),
}  # fmt: skip


def _backbone(name: str, classes: int = 5) -> tuple[nn.Module, int]:
    options, side, _, _ = BACKBONES[name]
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=classes, **options).eval()
    with torch.no_grad():
        for weight in module.parameters():
            # Large enough everywhere for every pixel to be felt in the class scores.
            weight.normal_(0.5, 0.3) if weight.ndim == 1 else weight.normal_(0, weight[0].numel() ** -0.5)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
    return module, side


def _inputs(side: int, rows: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))


def _network(name: str = "test_resnet", **options: Any) -> tuple[ShapleyVision, Tensor]:
    module, side = _backbone(name)
    return ShapleyVision(module, size=(3, side, side), **options).eval(), _inputs(side)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_layout_has_its_grid_and_votes_that_sum_to_the_class_scores(name: str) -> None:
    network, x = _network(name)
    with torch.no_grad():
        phi, scores = network.phi(x), network(x)
    assert network.grid == BACKBONES[name][2]
    assert network.warm_start == BACKBONES[name][3]
    assert phi.shape == (2, network.cells, 5)
    assert torch.equal(scores, phi.sum(1))


@pytest.mark.parametrize("name", [name for name, facts in BACKBONES.items() if facts[3] == "exact"])
def test_a_warm_start_called_exact_keeps_the_class_scores(name: str) -> None:
    module, side = _backbone(name)
    x = _inputs(side)
    with torch.no_grad():
        before = copy.deepcopy(module)(x)
        after = ShapleyVision(module, size=(3, side, side))(x)
    assert float(before.std()) > 1e-3
    assert torch.allclose(after, before, atol=1e-5, rtol=1e-5)


def test_a_warm_start_called_approximate_does_not() -> None:
    module, side = _backbone("test_convnext")
    x = _inputs(side)
    with torch.no_grad():
        before = copy.deepcopy(module)(x)
        after = ShapleyVision(module, size=(3, side, side))(x)
    assert not torch.allclose(after, before, atol=1e-3)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("value", ["visible", "full"])
def test_absent_patches_do_not_count(name: str, value: str) -> None:
    network, x = _network(name, value=value)
    shown = torch.zeros(2, network.cells)
    shown[0, 0] = shown[1, -1] = shown[1, 0] = 1
    kept = network.mask_pixels(torch.ones_like(x), shown) > 0
    other = torch.where(kept, x, _inputs(x.shape[-1], seed=2))
    with torch.no_grad():
        assert torch.equal(network(x, shown), network(other, shown))
        assert not torch.equal(network(x), network(other))


def test_pixels_are_hidden_cell_by_cell_also_where_the_side_is_no_multiple() -> None:
    network, _ = _network("test_resnet")
    odd = ShapleyVision(_backbone("test_resnet")[0], size=(3, 75, 75))
    shown = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0, 1.0]])
    expected = nn.functional.interpolate(shown.view(1, 1, 3, 3), size=(75, 75), mode="nearest")
    assert torch.equal(odd.mask_pixels(torch.ones(1, 3, 75, 75), shown), expected.expand(1, 3, -1, -1))
    with pytest.raises(ParameterError, match="another grid"):
        network.mask_pixels(torch.ones(1, 3, 75, 75), shown)
    assert odd.spread(torch.ones(9)).sum() == pytest.approx(9, rel=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224"])
def test_the_attention_mask_is_the_same_as_leaving_tokens_out(name: str) -> None:
    network, x = _network(name, mask="attention")
    shown = (torch.rand(2, network.cells, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    shown[:, 0] = 1
    backbone: Any = network.backbone
    prefix = backbone.num_prefix_tokens
    for row in range(2):
        keep = torch.cat([torch.arange(prefix), prefix + shown[row].nonzero().squeeze(1)])
        handle = backbone.patch_drop.register_forward_hook(lambda _m, _i, tokens, keep=keep: tokens[:, keep])
        with torch.no_grad():
            dropped = backbone.forward_features(x[row : row + 1])[:, prefix:]
        handle.remove()
        with torch.no_grad():
            votes = network.head.linear(network.norm(dropped)).sum(1) / network.cells
            assert torch.allclose(network(x, shown)[row], votes[0], atol=1e-5)


def test_the_attention_mask_hides_content_and_an_empty_coalition_is_worth_nothing() -> None:
    network, x = _network("test_vit", mask="attention")
    shown = torch.zeros(2, network.cells)
    shown[0, :3] = 1
    kept = network.mask_pixels(torch.ones_like(x), shown) > 0
    other = torch.where(kept, x, _inputs(x.shape[-1], seed=2))
    with torch.no_grad():
        values = network(x, shown)
        assert torch.allclose(values[0], network(other, shown)[0], atol=1e-6)
    assert torch.equal(values[1], torch.zeros(5))


@pytest.mark.parametrize("options", [{}, {"value": "full"}, {"mask": "attention"}])
def test_one_pass_over_images_and_coalitions_gives_what_single_passes_give(options: dict[str, str]) -> None:
    network, x = _network("test_vit", **options)
    shown = (torch.rand(2, 4, network.cells, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    passes = []
    network.backbone.register_forward_pre_hook(lambda *_: None)
    backbone: Any = network.backbone
    backbone.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        together = network(x, shown)
        assert len(passes) == 1
        assert torch.allclose(together.phi, network.phi(x), atol=1e-5)
        for number in range(4):
            assert torch.allclose(together.values[:, number], network(x, shown[:, number]), atol=1e-5)
        empty = network(x[:1], torch.zeros(1, network.cells))[0]
    assert torch.allclose(together.empty, empty, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_training_step_gives_finite_gradients_to_every_weight(name: str) -> None:
    network, x = _network(name)
    network.train().requires_grad_(True)
    step = Step(number=5, total=10, generator=torch.Generator().manual_seed(0))
    losses = ShapleyObjective().loss(network, x, torch.tensor([0, 3]), step)
    losses.total.backward()
    gradients = {key: weight.grad for key, weight in network.named_parameters()}
    assert [key for key, gradient in gradients.items() if gradient is None] == []
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert float(network.head.linear.weight.grad.abs().sum()) > 0


def test_dropout_is_switched_off() -> None:
    module = timm.create_model("test_vit", num_classes=3, img_size=64, drop_rate=0.5, drop_path_rate=0.5)
    network = ShapleyVision(module, size=(3, 64, 64)).train()
    x = _inputs(64)
    assert torch.equal(network(x), network(x))


def test_networks_without_a_grid_are_refused_with_the_reason() -> None:
    with pytest.raises(ModelError, match="forward_features"):
        ShapleyVision(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), size=(3, 2, 2))
    with pytest.raises(ModelError, match="returns a list"):
        ShapleyVision(timm.create_model("crossvit_tiny_240", num_classes=2), size=(3, 240, 240))
    with pytest.raises(ModelError, match="16 patch tokens of a Levit"):
        ShapleyVision(timm.create_model("levit_128s", num_classes=2), size=(3, 224, 224))
    with pytest.raises(ModelError, match="single cell"):
        ShapleyVision(_backbone("test_resnet")[0], size=(3, 32, 32))
    with pytest.raises(ModelError, match="no attention mask"):
        _network("test_resnet", mask="attention")
    with pytest.raises(ParameterError, match="still sees itself"):
        _network("test_vit", mask="attention", value="full")
