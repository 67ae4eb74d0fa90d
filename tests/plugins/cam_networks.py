"""Networks, images and raw activations for the tests of activation maps."""

from __future__ import annotations

from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

from xaihub import (
    Explainer,
    Hints,
    Model,
    Preprocessing,
)
from xaihub_cam.forward_only import EigenCAM, ScoreCAM
from xaihub_cam.gradient import GradCAMPlusPlus, HiResCAM, SmoothGradCAMPlusPlus
from xaihub_cam.through_torchcam import GradCAM, LayerCAM, XGradCAM

ALL = [EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, ScoreCAM, SmoothGradCAMPlusPlus, XGradCAM]


# The same architectures with fewer blocks and pixels.
SHORTENED: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 128, "depth": 3},
    "swin_tiny_patch4_window7_224": {"img_size": 128, "window_size": 4, "depths": (1, 1, 2, 1), "embed_dim": 48},
    "convnext_atto": {"depths": (1, 1, 2, 1)},
    "mixer_s32_224": {"img_size": 128},
}


def randomise(module: nn.Module) -> nn.Module:
    """Move biases and running statistics off zero and one: in a fresh network many rules agree by chance."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise * (parameter.ndim <= 1))
        for name, buffer in module.named_buffers():
            noise = torch.rand(buffer.shape, generator=generator)
            buffer.copy_({"running_mean": noise - 0.5, "running_var": noise + 0.5}.get(name.split(".")[-1], buffer))
    return module.eval()


def wrap(module: nn.Module, size: tuple[int, int, int], **options: Any) -> Model:
    name = type(module).__name__
    return Model(
        module,
        name=name,
        preprocessing=Preprocessing(spatial=[], size=size, mean=(0.5,) * size[0], std=(0.2,) * size[0], description={}),
        **options,
    )


@cache
def build(name: str, side: int = 64) -> Model:
    torch.manual_seed(0)
    module = randomise(timm.create_model(name, num_classes=7, **SHORTENED.get(name, {})))
    with torch.no_grad():
        module.get_classifier().weight.normal_(0, 0.3)
    hints = Hints(prefix_tokens=getattr(module, "num_prefix_tokens", 0) or 0)
    return wrap(module, (3, side, side), hints=hints)


@cache
def small() -> Model:
    """ResNet-18 on 128 pixels: 4 x 4 cells at its last layer."""
    return build("resnet18", 128)


def images(model: Model, rows: int = 2) -> Tensor:
    return torch.randn(rows, *model.input_size, generator=torch.Generator().manual_seed(3))


def values(explainer: Explainer, model: Model, inputs: Tensor, target: Any = None) -> Tensor:
    return torch.stack([torch.as_tensor(e.values) for e in explainer.explain(model, inputs, target)])
