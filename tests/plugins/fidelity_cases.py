"""Networks whose scores are known, and cases made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xaihub import (
    Case,
    ClassScore,
    Explainer,
    Explanation,
    Metric,
    Model,
    Preprocessing,
    Runtime,
    Scene,
    Target,
)

SIZE = (3, 12, 12)


STD = (0.2, 0.25, 0.5)


class LinearScores(nn.Module):
    """Two classes: a weighted sum of the input plus a bias, and its negative half."""

    def __init__(self, weights: Tensor, bias: float = 0.3) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.bias = bias

    def forward(self, inputs: Tensor) -> Tensor:
        score = (inputs * self.weights).flatten(1).sum(1) + self.bias
        return torch.stack([score, -0.5 * score], dim=1)


class Network(nn.Module):
    """A small network with curvature and random biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Softplus())
        self.head = nn.Linear(8, 4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs).mean((2, 3)))


def model_of(module: nn.Module, size: tuple[int, int, int] = SIZE, batch_size: int | None = None) -> Model:
    return Model(
        module,
        name="toy",
        preprocessing=Preprocessing(spatial=[], size=size, mean=(0.0,) * size[0], std=STD[: size[0]]),
        runtime=Runtime(batch_size=batch_size),
    )


def scene_of(module: nn.Module, image: Tensor, target: int | str = 0, batch_size: int | None = None) -> Scene:
    model = model_of(module, (image.shape[0], image.shape[1], image.shape[2]), batch_size)
    logits = model.predict(image[None])
    return Scene(model=model, image=image, logits=logits[0], target=Target.parse(target).resolve(logits))


def case_of(scene: Scene, values: Tensor, seed: int = 0, explainer: Explainer | None = None, **record: Any) -> Case:
    best = ClassScore(index=0, name="class 0", logit=0.0, probability=0.5)
    explanation = Explanation(values=values, target=best, predicted=best, metadata=record)
    return Case(scene=scene, explanation=explanation, seed=seed, explainer=explainer)


def value(metric: Metric, case: Case) -> float:
    return metric.measure(case)[0].value


def image(seed: int = 0, size: tuple[int, int, int] = SIZE) -> Tensor:
    """Multiples of 1/32, so that sums are exact and true ties are ties."""
    return torch.randint(-32, 33, size, generator=torch.Generator().manual_seed(seed)) / 32


def shuffled(values: Tensor) -> Tensor:
    flat = values.flatten(1)
    order = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(3))
    return flat[:, order].view_as(values)
