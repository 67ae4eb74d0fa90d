"""The layer search in 23 families, and its refusals."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from xaihub import Hints, Layer, Layout, ModelError, ParameterError
from xaihub.models.structure import Structure, trace

# name, side of the image, the layer chosen, layout, grid, prefix tokens
FAMILIES = [
    ("resnet18", 224, "layer4", "NCHW", (7, 7), 0),
    ("resnetv2_50", 224, "norm", "NCHW", (7, 7), 0),
    ("convnext_atto", 224, "stages", "NCHW", (7, 7), 0),
    ("tf_efficientnet_lite0", 224, "bn2", "NCHW", (7, 7), 0),
    ("mobilenetv3_small_050", 224, "blocks", "NCHW", (7, 7), 0),
    ("densenet121", 224, "features", "NCHW", (7, 7), 0),
    ("regnetx_002", 224, "s4", "NCHW", (7, 7), 0),
    ("vgg11", 224, "features.19", "NCHW", (14, 14), 0),
    ("inception_v3", 299, "Mixed_7c", "NCHW", (8, 8), 0),
    ("vit_tiny_patch16_224", 224, "blocks.10", "NTC", (14, 14), 1),
    ("deit_tiny_distilled_patch16_224", 224, "blocks.10", "NTC", (14, 14), 2),
    ("vit_tiny_r_s16_p8_224", 224, "blocks.10", "NTC", (7, 7), 1),
    ("swin_tiny_patch4_window7_224", 224, "layers", "NHWC", (7, 7), 0),
    ("swinv2_cr_tiny_ns_224", 224, "stages", "NCHW", (7, 7), 0),
    ("mixer_s32_224", 224, "blocks", "NTC", (7, 7), 0),
    ("poolformer_s12", 224, "stages", "NCHW", (7, 7), 0),
    ("maxvit_pico_rw_256", 256, "stages", "NCHW", (8, 8), 0),
    ("levit_128s", 224, "stages", "NTC", (4, 4), 0),
    ("xcit_nano_12_p16_224", 224, "cls_attn_blocks.0", "NTC", (14, 14), 1),
    ("mobilevit_xxs", 256, "final_conv", "NCHW", (8, 8), 0),
    ("eva02_tiny_patch14_224", 224, "blocks.11", "NTC", (16, 16), 1),
    ("torchvision:resnet18", 224, "layer4", "NCHW", (7, 7), 0),
    ("torchvision:vit_b_16", 224, "encoder.layers.encoder_layer_10", "NTC", (14, 14), 1),
]
SIDES = {name: side for name, side, *_ in FAMILIES}


def randomise(module: nn.Module, classes: int) -> nn.Module:
    """Move biases, running statistics and classifiers off their initial zeros and ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim <= 1 or (parameter.ndim == 2 and len(parameter) == classes):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in module.named_buffers():
            noise = torch.rand(buffer.shape, generator=generator)
            buffer.copy_({"running_mean": noise - 0.5, "running_var": noise + 0.5}.get(name.split(".")[-1], buffer))
    return module.eval()


@cache
def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    source, _, architecture = name.rpartition(":")
    make = {"": timm.create_model, "torchvision": torchvision.models.get_model}[source]
    return randomise(make(architecture, num_classes=11), 11)


@cache
def structure_of(name: str) -> Structure:
    # No hints: tracing alone must find prefix tokens and layouts.
    torch.manual_seed(0)
    return trace(build(name), torch.randn(1, 3, SIDES[name], SIDES[name]))


def outputs(module: nn.Module, layer: Layer, inputs: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handle = layer.module.register_forward_hook(lambda _m, _i, output: kept.append(output.clone()))
    with torch.no_grad():
        module(inputs)
    handle.remove()
    return layer.to_grid(kept[0])


@pytest.mark.parametrize(("name", "side", "chosen", "layout", "grid", "prefix"), FAMILIES)
def test_the_layer_of_each_family_is_found(
    name: str, side: int, chosen: str, layout: str, grid: tuple[int, int], prefix: int
) -> None:
    layer = structure_of(name).layer()
    assert (layer.name, layer.layout, layer.grid, layer.prefix) == (chosen, layout, grid, prefix)
    assert layer.module is build(name).get_submodule(chosen)
    assert f"{grid[0]}x{grid[1]} cells" in layer.reason
    shape = outputs(build(name), layer, torch.randn(2, 3, side, side)).shape
    assert shape == (2, layer.channels, *grid)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mobilevit_xxs"])
def test_tracing_leaves_no_hook_and_no_gradient(name: str) -> None:
    structure_of(name)
    assert not any(module._forward_hooks for module in build(name).modules())
    assert all(parameter.grad is None for parameter in build(name).parameters())


# An early layer of each layout, before blocks mix distant cells.
EARLY = [
    ("resnet18", "layer1"),
    ("convnext_atto", "stages.0"),
    ("densenet121", "features.denseblock1"),
    ("inception_v3", "Conv2d_4a_3x3"),
    ("vit_tiny_patch16_224", "patch_embed"),
    ("vit_tiny_patch16_224", "pos_drop"),
    ("deit_tiny_distilled_patch16_224", "blocks.0"),
    ("swin_tiny_patch4_window7_224", "layers.0"),
    ("swinv2_cr_tiny_ns_224", "patch_embed"),
    ("mixer_s32_224", "stem"),
    ("levit_128s", "stem"),
    ("xcit_nano_12_p16_224", "patch_embed.proj"),
    ("eva02_tiny_patch14_224", "patch_embed"),
    ("torchvision:vit_b_16", "encoder.layers.encoder_layer_0"),
]


@pytest.mark.parametrize(("name", "layer"), EARLY)
def test_a_change_in_one_place_of_the_image_shows_in_the_cell_at_that_place(name: str, layer: str) -> None:
    found, side = structure_of(name).layer(layer), SIDES[name]
    generator = torch.Generator().manual_seed(5)
    before = torch.randn(1, 3, side, side, generator=generator)
    after = before.clone()
    # Row and column differ, so that a transposed grid would be noticed.
    top, left, step = side * 2 // 7, side * 5 // 7, side // 7
    after[:, :, top : top + step, left : left + step] += 5
    change = (outputs(build(name), found, after) - outputs(build(name), found, before)).abs().sum(1)[0]
    rows, columns = change.shape
    row, column = divmod(int(change.argmax()), columns)
    y, x = (row + 0.5) / rows * side, (column + 0.5) / columns * side
    assert abs(y - (top + step / 2)) <= step
    assert abs(x - (left + step / 2)) <= step


@pytest.mark.parametrize(
    ("layout", "shape", "where", "prefix"),
    [
        (Layout.NCHW, (2, 4, 3, 5), (1, slice(None), 2, 3), 0),
        (Layout.NHWC, (2, 3, 5, 4), (1, 2, 3, slice(None)), 0),
        (Layout.NTC, (2, 15, 4), (1, 2 * 5 + 3, slice(None)), 0),
        (Layout.NTC, (2, 17, 4), (1, 2 + 2 * 5 + 3, slice(None)), 2),
    ],
)
def test_a_planted_activation_lands_in_its_cell(
    layout: Layout, shape: tuple[int, ...], where: tuple[Any, ...], prefix: int
) -> None:
    layer = Layer(name="x", module=nn.Identity(), layout=layout, grid=(3, 5), channels=4, prefix=prefix)
    planted = torch.zeros(shape)
    planted[where] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = torch.zeros(2, 4, 3, 5)
    expected[1, :, 2, 3] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert torch.equal(layer.to_grid(planted), expected)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("vit_tiny_patch16_224", "blocks.11"),
        ("deit_tiny_distilled_patch16_224", "blocks.11"),
        ("torchvision:vit_b_16", "encoder.layers.encoder_layer_11"),
    ],
)
def test_the_last_block_before_a_class_token_is_not_chosen_as_its_patches_reach_nothing(name: str, last: str) -> None:
    structure = structure_of(name)
    assert last in structure.spatial
    assert structure.layer().name != last
    layer, kept = structure.layer(last), []
    handle = layer.module.register_forward_hook(lambda _m, _i, output: kept.append(output))
    logits = build(name)(torch.randn(1, 3, 224, 224))
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.square().sum(), kept[-1])
    assert float(layer.to_grid(gradient).abs().max()) == 0


def test_a_layer_is_overridden_by_name() -> None:
    layer = structure_of("resnet18").layer("layer2.0")
    assert (layer.name, layer.grid, layer.channels) == ("layer2.0", (28, 28), 128)


def test_an_unknown_layer_is_refused_with_near_names() -> None:
    with pytest.raises(ParameterError, match="layer 'layer22' does not return a grid") as error:
        structure_of("resnet18").layer("layer22")
    assert "layer2" in error.value.hint


def test_a_layer_without_a_grid_is_refused_by_name() -> None:
    with pytest.raises(ParameterError, match="layer 'fc' does not return a grid"):
        structure_of("resnet18").layer("fc")


def test_a_card_fixes_the_layer() -> None:
    fixed = trace(build("resnet18"), torch.randn(1, 3, 224, 224), Hints(layers=(("features", "layer3"),)))
    assert (fixed.layer().name, fixed.layer().reason) == ("layer3", "set by the model card")
    with pytest.raises(ParameterError, match="layer 'fc' does not return a grid"):
        trace(build("resnet18"), torch.randn(1, 3, 224, 224), Hints(layers=(("features", "fc"),)))


def test_a_small_image_takes_an_earlier_layer_instead_of_one_cell() -> None:
    layer = trace(build("resnet18"), torch.randn(1, 3, 32, 32)).layer()
    assert (layer.name, layer.grid) == ("layer2", (4, 4))


def test_an_image_too_small_for_any_grid_is_refused() -> None:
    module = randomise(nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)), 5)
    structure = trace(module, torch.randn(1, 3, 8, 8))
    with pytest.raises(ModelError, match="grids are too coarse"):
        structure.layer()


def test_a_zero_classifier_is_refused_with_the_reason() -> None:
    module = timm.create_model("test_resnet", num_classes=5).eval()
    nn.init.zeros_(module.fc.weight)
    with pytest.raises(ModelError, match="class scores do not depend on the image .is the classifier initialised"):
        trace(module, torch.randn(1, 3, 160, 160)).layer()


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


def test_an_output_that_is_overwritten_in_place_is_not_offered() -> None:
    overwritten = randomise(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(inplace=True), *head(4)), 5)
    kept = randomise(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), *head(4)), 5)
    assert list(trace(overwritten, torch.randn(1, 3, 16, 16)).spatial) == ["1"]
    assert list(trace(kept, torch.randn(1, 3, 16, 16)).spatial) == ["0", "1"]


class Branches(nn.Module):
    """A stem and two branches whose results meet in the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        stem = self.stem(pixels)
        return self.head(torch.cat([self.left(stem).mean((2, 3)), self.right(stem).mean((2, 3))], 1))


def test_a_layer_that_information_can_bypass_is_offered_but_not_chosen() -> None:
    structure = trace(randomise(Branches(), 5), torch.randn(1, 3, 16, 16))
    assert list(structure.spatial) == ["stem", "left", "right"]
    assert structure.layer().name == "stem"


def test_pooling_and_per_position_normalisation_are_not_chosen() -> None:
    pooled = randomise(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2), *head(4)), 5)
    assert trace(pooled, torch.randn(1, 3, 32, 32)).layer().name == "0"
    normed = randomise(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.GroupNorm(1, 4), *head(4)), 5)
    assert trace(normed, torch.randn(1, 3, 32, 32)).layer().name == "1"  # over the whole map, not a cell
    tokens = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.Flatten(2), Transposed(), nn.LayerNorm(6), Mean(), nn.Linear(6, 5))
    assert trace(randomise(tokens, 5), torch.randn(1, 3, 32, 32)).layer().name == "2"


class Transposed(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).clone()


class Mean(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)


class Plane(nn.Module):
    """A map whose three sides are alike, so that its layout cannot be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.body, self.head = nn.Conv2d(3, 8, 2, 2), nn.Identity(), nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.body(self.conv(pixels).permute(0, 2, 3, 1).contiguous()).mean((1, 2)))


def test_only_the_adapter_can_tell_the_layout_of_a_cube() -> None:
    module = randomise(Plane(), 5)
    image = torch.randn(1, 3, 16, 16)
    assert trace(module, image).layer("body").layout is Layout.NCHW
    assert trace(module, image, Hints(channels_last=True)).layer("body").layout is Layout.NHWC


def test_register_tokens_are_known_from_the_adapter() -> None:
    module = randomise(timm.create_model("vit_tiny_patch16_224", num_classes=11, depth=3, reg_tokens=3), 11)
    layer = trace(module, torch.randn(1, 3, 224, 224), Hints(prefix_tokens=4)).layer()
    assert (layer.name, layer.prefix, layer.grid) == ("blocks.1", 4, (14, 14))


def test_an_image_that_is_not_square_keeps_its_shape() -> None:
    module = randomise(timm.create_model("vit_tiny_patch16_224", num_classes=11, depth=3, img_size=(96, 160)), 11)
    layer = trace(module, torch.randn(1, 3, 96, 160)).layer()
    assert (layer.name, layer.prefix, layer.grid) == ("blocks.1", 1, (6, 10))


class Broken(nn.Module):
    def forward(self, _features: Tensor) -> Tensor:
        raise RuntimeError("broken on purpose")


def test_hooks_are_removed_when_the_forward_pass_fails() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Broken())
    with pytest.raises(RuntimeError, match="broken on purpose"):
        trace(module, torch.randn(1, 3, 16, 16))
    assert not any(part._forward_hooks for part in module.modules())


def test_a_network_that_returns_no_row_of_scores_is_refused() -> None:
    with pytest.raises(ModelError, match="one row of class scores"):
        trace(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("name", "norm", "head"),
    [
        ("vit_tiny_patch16_224", "norm", "head"),
        ("swin_tiny_patch4_window7_224", "norm", "head.fc"),
        ("resnet18", None, "fc"),
    ],
)
def test_norm_and_classifier_are_named(name: str, norm: str | None, head: str) -> None:
    assert (structure_of(name).norm, structure_of(name).head) == (norm, head)
