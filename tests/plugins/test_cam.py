"""The CAM family against torchcam, pytorch-grad-cam, captum's toy values and literal second implementations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchcam.methods
from pytorch_grad_cam import EigenCAM as PeerEigenCAM
from pytorch_grad_cam import GradCAM as PeerGradCAM
from pytorch_grad_cam import GradCAMPlusPlus as PeerGradCAMPlusPlus
from pytorch_grad_cam import HiResCAM as PeerHiResCAM
from pytorch_grad_cam import LayerCAM as PeerLayerCAM
from pytorch_grad_cam import XGradCAM as PeerXGradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor
from torch.nn.functional import interpolate

from tests.plugins.cam_networks import ALL, build, images, small, values, wrap
from tests.plugins.captum_networks import ToyConv
from xaihub import (
    Explainer,
    Model,
    Runtime,
)
from xaihub_cam import xaihub_register_explainers
from xaihub_cam.forward_only import EigenCAM, ScoreCAM
from xaihub_cam.gradient import GradCAMPlusPlus, HiResCAM, SmoothGradCAMPlusPlus
from xaihub_cam.through_torchcam import GradCAM, LayerCAM, XGradCAM

NAMES = [
    "eigencam",
    "gradcam",
    "gradcam_pp",
    "hirescam",
    "layercam",
    "scorecam",
    "smoothgradcam_pp",
    "xgradcam",
]


def raw(model: Model, name: str, inputs: Tensor, classes: list[int]) -> tuple[Tensor, Tensor]:
    """Return a layer's activations and the gradients of the class scores, by plain hooks."""
    kept: list[Tensor] = []
    handle = model.module.get_submodule(name).register_forward_hook(lambda _m, _i, output: kept.append(output))
    logits = model.module(inputs)
    handle.remove()
    score = torch.stack([logits[row, c] for row, c in enumerate(classes)]).sum()
    return kept[0].detach(), torch.autograd.grad(score, kept[0])[0]


def enlarged(maps: Tensor, size: int) -> Tensor:
    return interpolate(maps.unsqueeze(1), size=(size, size), mode="bilinear", align_corners=False)


def test_the_plugin_registers_the_family_by_name() -> None:
    specs = {spec.name: spec for spec in xaihub_register_explainers()}
    assert sorted(specs) == NAMES
    assert {spec.load() for spec in specs.values()} == set(ALL)
    assert all(spec.paper and spec.variant and spec.limits and spec.cost for spec in specs.values())


@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "XGradCAM"])
def test_maps_equal_torchcam_used_directly(name: str) -> None:
    model, ours = small(), {"GradCAM": GradCAM, "LayerCAM": LayerCAM, "XGradCAM": XGradCAM}[name]
    inputs, classes = images(model), [2, 5]
    with getattr(torchcam.methods, name)(model.module, "layer4") as extract:
        expected = extract(classes, model.module(inputs), normalized=False)[0]
    found = torch.cat([values(ours(), model, inputs[row : row + 1], c) for row, c in enumerate(classes)])
    assert expected.amax((1, 2)).min() > 0
    torch.testing.assert_close(found, enlarged(expected, 128), rtol=1e-5, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize(
    ("ours", "peer"),
    [(GradCAM, PeerGradCAM), (LayerCAM, PeerLayerCAM), (XGradCAM, PeerXGradCAM), (HiResCAM, PeerHiResCAM)],
)
def test_maps_equal_grad_cam_after_its_scaling(ours: type[Explainer], peer: Callable[..., Any]) -> None:
    model = small()
    inputs = images(model)
    with peer(model=model.module, target_layers=[model.module.layer4]) as cam:
        expected = cam(inputs, [ClassifierOutputTarget(4)] * len(inputs))
    # Its order: scale to [0, 1] on the grid, enlarge, scale again; a linear enlargement commutes with the first.
    found = scale_cam_image(values(ours(), model, inputs, 4)[:, 0].numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_grad_cam_pp_equals_grad_cam_where_its_epsilon_does_not_matter() -> None:
    model = small()
    inputs = images(model)
    with torch.no_grad():  # large gradients, against which 1e-6 is nothing
        model.module.fc.weight.mul_(1000)
    try:
        with PeerGradCAMPlusPlus(model=model.module, target_layers=[model.module.layer4]) as cam:
            expected = cam(inputs, [ClassifierOutputTarget(4)] * len(inputs))
        found = scale_cam_image(values(GradCAMPlusPlus(), model, inputs, 4)[:, 0].numpy())
    finally:
        with torch.no_grad():
            model.module.fc.weight.div_(1000)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "expected"), [("conv1", [[11.25, 13.5], [20.25, 22.5]]), ("relu1", [[0.0, 4.0], [28.0, 32.5]])]
)
def test_grad_cam_equals_captums_toy_values(layer: str, expected: list[list[float]]) -> None:
    model = wrap(ToyConv(), (1, 4, 4))
    inputs = torch.arange(16.0).view(1, 1, 4, 4)
    explanation = GradCAM(layer=layer).explain(model, inputs, 0)[0]
    found = torch.as_tensor(explanation.values)
    torch.testing.assert_close(found, enlarged(torch.tensor([expected]), 4)[0])
    assert "named by the parameter layer" in explanation.metadata["layer"]


def test_hirescam_equals_its_definition() -> None:
    model = small()
    inputs, classes = images(model), [1, 1]
    activation, gradient = raw(model, "layer4", inputs, classes)
    rows, channels, height, width = activation.shape
    expected = torch.zeros(rows, height, width)
    for b in range(rows):
        for y in range(height):
            for x in range(width):
                total = sum(float(gradient[b, k, y, x]) * float(activation[b, k, y, x]) for k in range(channels))
                expected[b, y, x] = max(total, 0.0)
    torch.testing.assert_close(values(HiResCAM(), model, inputs, 1), enlarged(expected, 128), rtol=1e-4, atol=1e-5)


def literal_plus_plus(A: Tensor, gradients: list[Tensor]) -> Tensor:
    """Eq. 19 and 17 cell by cell for one image; derivatives are means over noisy samples."""
    channels, height, width = A.shape
    n = len(gradients)
    result = torch.zeros(height, width, dtype=torch.float64)
    for k in range(channels):
        w = 0.0
        total = float(A[k].double().sum())
        for i in range(height):
            for j in range(width):
                g = [float(gradient[k, i, j]) for gradient in gradients]
                d1, d2, d3 = (sum(x**p for x in g) / n for p in (1, 2, 3))
                alpha = d2 / (2 * d2 + total * d3) if d2 else 0.0
                w += alpha * max(d1, 0.0)
        result += w * A[k].double()
    return result.clamp(min=0).float()


def test_grad_cam_pp_equals_eq_19() -> None:
    model = build("test_resnet", 96)
    inputs = images(model)
    activation, gradient = raw(model, "layer4", inputs, [3, 3])
    expected = torch.stack([literal_plus_plus(activation[b], [gradient[b]]) for b in range(2)])
    found = values(GradCAMPlusPlus(layer="layer4"), model, inputs, 3)
    assert expected.max() > 0
    torch.testing.assert_close(found, enlarged(expected, 96), rtol=1e-4, atol=1e-5)


def test_smooth_grad_cam_pp_averages_powers_of_noisy_gradients() -> None:
    model = build("test_resnet", 96)
    inputs = images(model, 1)
    explanation = SmoothGradCAMPlusPlus(layer="layer4", samples=3, noise=0.2).explain(model, inputs, 3, seed=11)[0]
    with torch.random.fork_rng():
        torch.manual_seed(11)
        noisy = [inputs + 0.2 * torch.randn(inputs.shape) for _ in range(3)]
    activation, _ = raw(model, "layer4", inputs, [3])
    gradients = [raw(model, "layer4", image, [3])[1][0] for image in noisy]
    expected = enlarged(literal_plus_plus(activation[0], gradients)[None], 96)[0]
    torch.testing.assert_close(torch.as_tensor(explanation.values), expected, rtol=1e-4, atol=1e-5)
    assert (explanation.metadata["forward_passes"], explanation.metadata["backward_passes"]) == (4, 3)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_smooth_grad_cam_pp_does_not_depend_on_the_batch_size(rows: int) -> None:
    model = build("test_resnet", 96)
    explainer = SmoothGradCAMPlusPlus(layer="layer4", samples=5)
    expected = values(explainer, model, images(model), 3)
    model.runtime = Runtime(batch_size=rows)
    try:
        found = values(explainer, model, images(model), 3)
    finally:
        model.runtime = Runtime()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def literal_score_cam(model: Model, image: Tensor, A: Tensor, index: int) -> Tensor:
    """Algorithm 1, one channel at a time, for one (3, H, W) image."""
    scores = []
    for channel in A:
        mask = interpolate(channel[None, None], size=image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
        span = float(mask.max() - mask.min())
        mask = (mask - mask.min()) / span if span else torch.zeros_like(mask)
        with torch.no_grad():
            scores.append(float(model.module((image * mask)[None])[0, index]))
    shifted = [math.exp(score - max(scores)) for score in scores]
    total = torch.zeros(A.shape[1:])
    for weight, channel in zip(shifted, A, strict=True):
        total += weight / sum(shifted) * channel
    return total.clamp(min=0)


def test_score_cam_equals_algorithm_1() -> None:
    model = build("test_resnet", 96)
    inputs = images(model)
    activation, _ = raw(model, "layer4", inputs, [3, 3])
    expected = torch.stack([literal_score_cam(model, inputs[b], activation[b], 3) for b in range(2)])
    explanations = ScoreCAM(layer="layer4").explain(model, inputs, 3)
    found = torch.stack([torch.as_tensor(e.values) for e in explanations])
    torch.testing.assert_close(found, enlarged(expected, 96), rtol=1e-4, atol=1e-5)
    assert explanations[0].metadata["forward_passes"] == 1 + activation.shape[1]


def test_score_cam_with_a_bound_uses_the_channels_that_vary_most() -> None:
    model = build("test_resnet", 96)
    inputs = images(model, 1)
    activation, _ = raw(model, "layer4", inputs, [3])
    kept = sorted(range(len(activation[0])), key=lambda k: -float(activation[0, k].std()))[:5]
    expected = literal_score_cam(model, inputs[0], activation[0, sorted(kept)], 3)
    explanation = ScoreCAM(layer="layer4", channels=5).explain(model, inputs, 3)[0]
    torch.testing.assert_close(
        torch.as_tensor(explanation.values), enlarged(expected[None], 96)[0], rtol=1e-4, atol=1e-5
    )
    assert explanation.metadata["forward_passes"] == 6


def test_eigencam_without_centring_is_the_first_right_singular_vector() -> None:
    model = small()
    inputs = images(model)
    activation, _ = raw(model, "layer4", inputs, [0, 0])
    for row, found in enumerate(values(EigenCAM(), model, inputs)):
        table = activation[row].flatten(1).T.double().numpy()  # (h w, C)
        component = np.linalg.eigh(table.T @ table)[1][:, -1]
        projection = np.abs(table @ component)  # activations after a ReLU: one sign throughout
        expected = torch.from_numpy(projection).float().view(1, *activation.shape[2:])
        torch.testing.assert_close(found, enlarged(expected, 128)[0], rtol=1e-4, atol=1e-4)


def test_eigencam_with_centring_equals_grad_cam_up_to_sign() -> None:
    model = small()
    inputs = images(model, 1)
    found = scale_cam_image(values(EigenCAM(centre=True), model, inputs)[:, 0].numpy())
    candidates = []
    for sign in (1, -1):
        with PeerEigenCAM(model=model.module, target_layers=[model.module.layer4]) as cam:
            original = cam.get_cam_image
            cam.get_cam_image = lambda *args, sign=sign, original=original: sign * original(*args)
            candidates.append(cam(inputs, [ClassifierOutputTarget(0)]))
    assert min(np.abs(found - candidate).max() for candidate in candidates) < 1e-5


def test_eigencam_is_the_same_for_every_class() -> None:
    model = small()
    torch.testing.assert_close(values(EigenCAM(), model, images(model), 1), values(EigenCAM(), model, images(model), 2))
