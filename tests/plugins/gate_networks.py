"""Models with a gate, for the tests of scores-activation."""

from __future__ import annotations

from typing import Any

import timm
import torch

from xaihub import Model, Preprocessing
from xaihub_scores_activation.gate import gates
from xaihub_scores_activation.objective import GatedClassifier


def made(name: str, classes: int = 4, **options: Any) -> Model:
    """A timm model with random weights, its biases and running statistics included."""
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=classes, **options)
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if key.endswith(("bias", "running_mean")):
                value.normal_(0, 0.1)
    size = module.default_cfg["input_size"]
    preprocessing = Preprocessing(spatial=[], size=size, mean=(0,) * 3, std=(1,) * 3)
    return Model(module, name=name, preprocessing=preprocessing, classes=tuple("abcd"))


def gated(name: str, **options: Any) -> Model:
    """The same with a gate whose scores are random."""
    model = made(name)
    network = GatedClassifier(**options).wrap(model)
    with torch.no_grad():
        gates(network)[0][1].scores.normal_(generator=torch.Generator().manual_seed(1))
    return model.around(network)
