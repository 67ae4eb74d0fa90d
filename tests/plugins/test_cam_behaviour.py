"""What every activation map promises: batches, contrasts, layouts, refusals, passes."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from tests.plugins.cam_networks import ALL, build, images, randomise, small, values, wrap
from xaihub import (
    Explainer,
    ExplainerRefused,
    Hints,
    ModelError,
    ParameterError,
    Target,
)
from xaihub_cam.forward_only import EigenCAM, ScoreCAM
from xaihub_cam.gradient import GradCAMPlusPlus, HiResCAM, SmoothGradCAMPlusPlus
from xaihub_cam.through_torchcam import GradCAM, LayerCAM, XGradCAM


@pytest.mark.parametrize("kind", [k for k in ALL if k is not EigenCAM])
def test_a_contrast_explains_the_difference_of_the_scores(kind: type[Explainer]) -> None:
    # A network whose class 2 is by construction the difference of its classes 0 and 1.
    model = build("test_resnet", 96)
    head = model.module.fc
    saved = head.weight.detach().clone(), head.bias.detach().clone()
    with torch.no_grad():
        head.weight[2] = head.weight[0] - head.weight[1]
        head.bias[2] = head.bias[0] - head.bias[1]
    try:
        contrast = values(kind(layer="layer4"), model, images(model), "0 vs 1")
        difference = values(kind(layer="layer4"), model, images(model), 2)
    finally:
        with torch.no_grad():
            head.weight.copy_(saved[0])
            head.bias.copy_(saved[1])
    assert difference.max() > 0
    torch.testing.assert_close(contrast, difference, rtol=1e-3, atol=1e-5 * float(difference.max()))


@pytest.mark.parametrize("kind", ALL)
def test_each_row_of_a_batch_has_its_own_target_and_map(kind: type[Explainer]) -> None:
    model = build("test_resnet", 96)
    inputs = images(model, 3)
    inputs[0] *= 3  # other predicted classes
    together = values(kind(layer="layer4"), model, inputs, "top2")
    alone = torch.cat([values(kind(layer="layer4"), model, inputs[row : row + 1], "top2") for row in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5 * float(alone.max()))


@pytest.mark.parametrize("kind", [k for k in ALL if k is not HiResCAM])
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", "mixer_s32_224"]
)
def test_maps_are_finite_and_not_negative_on_tokens_and_channels_last(kind: type[Explainer], name: str) -> None:
    model = build(name, 128)
    options = {ScoreCAM: {"channels": 3}, SmoothGradCAMPlusPlus: {"samples": 2}}.get(kind, {})
    explanation = kind(**options).explain(model, images(model, 1), 5)[0]
    found = torch.as_tensor(explanation.values)
    assert found.shape == (1, 128, 128)
    assert bool(found.isfinite().all())
    assert float(found.min()) >= 0
    assert model.layer().name in explanation.metadata["layer"]
    assert model.layer().reason in explanation.metadata["layer"]


def test_hirescam_refuses_a_layer_whose_cells_are_normalised_next() -> None:
    model = build("vit_tiny_patch16_224", 128)
    with pytest.raises(ExplainerRefused, match="each cell is normalised next"):
        HiResCAM().explain(model, images(model, 1))
    model = build("convnext_atto", 128)  # it averages before it normalises
    assert values(HiResCAM(), model, images(model, 1)).max() > 0


def test_grad_cam_pp_refuses_a_denominator_that_is_not_positive() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        module[0].bias.fill_(-50.0)
        module[3].weight.fill_(1.0)
    model = wrap(module, (1, 8, 8))
    with pytest.raises(ExplainerRefused, match=r"Grad-CAM\+\+ is undefined on layer '0'"):
        GradCAMPlusPlus(layer="0").explain(model, torch.rand(1, 1, 8, 8), 0)


def test_maps_are_not_rescaled_so_a_doubled_score_doubles_grad_cam() -> None:
    model = small()
    before = values(GradCAM(), model, images(model), 2)
    with torch.no_grad():
        model.module.fc.weight[2] *= 2
    try:
        after = values(GradCAM(), model, images(model), 2)
    finally:
        with torch.no_grad():
            model.module.fc.weight[2] /= 2
    assert before.max() > 0
    torch.testing.assert_close(after, 2 * before)


def test_an_empty_map_is_reported() -> None:
    module = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[0].bias.fill_(1.0)
        module[4].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    model = wrap(module, (1, 8, 8))
    image = torch.rand(1, 1, 8, 8)
    assert GradCAM().explain(model, image, 0)[0].metadata["warnings"] == []
    silent = GradCAM().explain(model, image, 1)[0]
    assert silent.metadata["warnings"] == ["no cell supports the class: the map is zero everywhere"]
    assert float(torch.as_tensor(silent.values).abs().max()) == 0


@pytest.mark.parametrize("kind", ALL)
def test_a_model_without_a_grid_is_refused_with_the_reason(kind: type[Explainer]) -> None:
    model = wrap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)), (3, 8, 8))
    with pytest.raises(ModelError) as reason:
        model.layer()
    with pytest.raises(ExplainerRefused, match="maps back to the image") as refusal:
        kind().explain(model, torch.rand(1, 3, 8, 8), 0)
    assert refusal.value.message == reason.value.message
    assert refusal.value.hint


def test_an_unknown_layer_is_a_wrong_parameter_with_a_hint() -> None:
    with pytest.raises(ParameterError, match="layer 'layer5' does not return a grid") as error:
        GradCAM(layer="layer5").explain(small(), images(small()))
    assert "layer" in error.value.hint


def test_a_layer_that_shrinks_to_one_cell_on_these_inputs_is_refused() -> None:
    model = small()
    with pytest.raises(ExplainerRefused, match="1x1 cells"):
        GradCAM().explain(model, torch.randn(1, 3, 32, 32))


def test_tokens_of_another_image_size_are_refused() -> None:
    module = randomise(timm.create_model("test_vit", num_classes=4, dynamic_img_size=True))
    with torch.no_grad():
        module.head.weight.normal_(0, 0.3)
    model = wrap(module, (3, 160, 160), hints=Hints(prefix_tokens=1))
    with pytest.raises(ExplainerRefused, match="inputs of this size"):
        HiResCAM().explain(model, torch.randn(1, 3, 128, 160))


@pytest.mark.parametrize("kind", [GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM])
def test_one_pass_forward_and_one_back_no_deeper_than_the_layer(kind: type[Explainer]) -> None:
    model = small()
    seen: list[bool] = []
    early = model.module.layer3.register_forward_hook(lambda _m, _i, output: seen.append(output.requires_grad))
    late = model.module.global_pool.register_forward_hook(lambda _m, _i, output: seen.append(output.requires_grad))
    try:
        explanation = kind().explain(model, images(model), 2)[0]
    finally:
        early.remove()
        late.remove()
    assert seen[-2:] == [False, True]
    assert (explanation.metadata["forward_passes"], explanation.metadata["backward_passes"]) == (1, 1)


@pytest.mark.parametrize("kind", ALL)
def test_no_hook_stays_behind_even_when_the_pass_fails(kind: type[Explainer]) -> None:
    model = build("test_resnet", 96)
    layer = model.layer()

    def fail(*_: Any) -> None:
        raise RuntimeError("broken on purpose")

    handle = model.module.fc.register_forward_hook(fail)
    hooks = {name: len(module._forward_hooks) for name, module in model.module.named_modules()}
    try:
        with pytest.raises(RuntimeError, match="broken on purpose"):
            kind(layer="layer4").attribute(model, images(model, 1), Target(index=0).resolve(torch.zeros(1, 7)))
        assert {name: len(module._forward_hooks) for name, module in model.module.named_modules()} == hooks
    finally:
        handle.remove()
    assert layer.module is model.layer().module
