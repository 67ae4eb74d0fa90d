"""Explainers of one function with a model for them, and built-in explainers with few samples, for the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import xaihub
from xaihub import (
    Explainer,
    Model,
    Preprocessing,
    ResolvedTarget,
)

CLASSES = 5
Attribute = Callable[[Explainer, Model, Tensor, ResolvedTarget], Any]
PARAMETERS: dict[str, dict[str, Any]] = {
    "rise": {"masks": 20},
    "lime": {"samples": 40, "features": "grid:3"},
    "kernel_shap": {"samples": 40, "features": "grid:3"},
    "shap": {"evaluations": 40, "features": "grid:4"},
    "smoothgrad": {"samples": 4},
    "shapley_values": {"budget": 40, "features": "grid:3"},
    "first_principles": {"budget": 40, "features": "grid:3"},
}


def make_model(seed: int = 0, **changes: Any) -> Model:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, CLASSES)
    )
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    preprocessing = Preprocessing(spatial=[], size=(3, 8, 8), mean=(0, 0, 0), std=(1, 1, 1), description={"size": 8})
    return Model(module, name="toy", preprocessing=preprocessing, **changes)


def explainer(attribute: Attribute, **attributes: Any) -> Explainer:
    """Make an explainer of one function."""
    made: Explainer = type("Made", (Explainer,), {"attribute": attribute, **attributes})()
    return made


def gradient(_self: Explainer, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
    inputs.requires_grad_()
    return torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0]


def make(name: str, **values: Any) -> Explainer:
    return xaihub.get_explainer(name, **PARAMETERS.get(name, {}), **values)
