"""Networks whose curves are known, and cases made of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xaihub import (
    Case,
    ClassScore,
    Explanation,
    Metric,
    Model,
    Preprocessing,
    ResolvedTarget,
    Runtime,
    Scene,
)


def model_of(module: nn.Module, size: tuple[int, int, int], **runtime: int) -> Model:
    preprocessing = Preprocessing(spatial=[], size=size, mean=(0.0,) * size[0], std=(1.0,) * size[0])
    return Model(module, name="tiny", preprocessing=preprocessing, runtime=Runtime(**runtime))


def scene_of(model: Model, image: Tensor, target: int = 0, against: int | None = None) -> Scene:
    return Scene(
        model=model,
        image=image,
        logits=model.predict(image[None])[0],
        target=ResolvedTarget(
            index=torch.tensor([target]), against=None if against is None else torch.tensor([against])
        ),
    )


def case_of(scene: Scene, heat: Tensor, seed: int = 0) -> Case:
    score = ClassScore(index=0, name="0", logit=0.0, probability=0.0)
    return Case(scene=scene, explanation=Explanation(values=heat[None], target=score, predicted=score), seed=seed)


def value(metric: Metric, case: Case) -> float:
    return metric.measure(case)[0].value


def network(channels: int = 3) -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(channels, 8, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5)
    )
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.4)
    return net


def photo(channels: int = 3, side: int = 48, seed: int = 0) -> Tensor:
    coarse = torch.rand(1, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")[0] - 0.2


def distinct_heat(side: int = 48, seed: int = 1) -> Tensor:
    """A map without ties, in float32 exactly."""
    order = torch.randperm(side * side, generator=torch.Generator().manual_seed(seed))
    return (order.float() / (side * side - 1)).view(side, side)
