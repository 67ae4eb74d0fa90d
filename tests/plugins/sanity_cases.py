"""Networks and maps for the tests of randomised models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xaihub import (
    Case,
    Explainer,
    Model,
    Preprocessing,
    ResolvedTarget,
    Scene,
    Target,
)

SIDE = 16


class Gradient(Explainer):
    """Explain with the gradient, summed over channels."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        inputs.requires_grad_()
        return torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0].sum(1, keepdim=True)


def model_of(module: nn.Module, *, channels: int = 1, side: int = SIDE, name: str = "toy") -> Model:
    size = (channels, side, side)
    preprocessing = Preprocessing(spatial=[], size=size, mean=(0.0,) * channels, std=(1.0,) * channels)
    return Model(module, name=name, preprocessing=preprocessing)


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """Stand in for training: every weight and running statistic is moved away from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        for buffer in (buffer for name, buffer in module.named_buffers() if name.endswith(("mean", "var"))):
            buffer.add_(torch.rand(buffer.shape, generator=generator))
    return module


def perceptron(kind: type[nn.Linear] = nn.Linear, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # a network must not depend on which tests ran before
        torch.manual_seed(seed)
        layers = [kind(SIDE * SIDE, 20), nn.Softplus(), kind(20, 12), nn.Softplus(), kind(12, 5)]
    return trained(nn.Sequential(nn.Flatten(), *layers), seed)


def case_of(
    explainer: Explainer, model: Model, *, image: Tensor | None = None, target: str | int = 0, seed: int = 0
) -> Case:
    image = torch.rand(model.input_size, generator=torch.Generator().manual_seed(0)) if image is None else image
    logits = model.predict(image[None])
    wanted = Target.parse(target)
    scene = Scene(model=model, image=image, logits=logits[0], target=wanted.resolve(logits))
    (explanation,) = explainer.explain(model, image[None], wanted, seed=seed)
    return Case(scene=scene, explanation=explanation, explainer=explainer, seed=seed)


KINDS = ["ssim", "spearman", "cosine"]
