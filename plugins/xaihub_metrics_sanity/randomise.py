"""Copies of a model with randomised weights, from the output down. The model itself is never modified."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from xaihub import Model

Order = Literal["cascading", "independent"]
Weights = Literal["initial", "shuffled"]


def randomised(model: Model, *, order: Order, layers: int, weights: Weights) -> Iterator[tuple[str, Model]]:
    """Yield (name of the lowest module of the stage, copy of the model) for each stage, from the output down.

    "cascading" randomises a stage and all stages above it, "independent" only that stage. The same copy is changed in
    place at each step. Random numbers come from torch's global generator.
    """
    changed = copy_of(model)
    for names in stages(model.module, layers):
        if order == "independent":
            changed.module.load_state_dict(model.module.state_dict())
        for name in names:
            _draw_anew(changed.module.get_submodule(name), weights)
        yield names[-1], changed


def stages(module: nn.Module, layers: int) -> list[list[str]]:
    """Group the modules with parameters of their own into `layers` stages, from the output to the input.

    Modules are taken in the reverse order of their definition, which usually is that of their execution.
    """
    names = [name for name, inner in module.named_modules() if next(inner.parameters(recurse=False), None) is not None]
    names.reverse()
    count = min(layers, len(names))
    edges = [round(index * len(names) / count) for index in range(count + 1)] if count else []
    return [names[start:stop] for start, stop in pairwise(edges)]


def copy_of(model: Model) -> Model:
    """Copy the network and its structure; preprocessing, classes and runtime are shared.

    Explainers use the layers found in the trained network, since a search in a randomised one might choose others.
    Hooks are copied as well, so that passes through the copy are counted.
    """
    _ = model.structure  # found before it is copied
    shared = (model.preprocessing, model.classes, model.card, model.runtime)
    return copy.deepcopy(model, {id(item): item for item in shared})


@torch.no_grad()
def _draw_anew(module: nn.Module, weights: Weights) -> None:
    """Randomise the module's own parameters: by its own initialisation, or by shuffling their values."""
    own = list(module.parameters(recurse=False))
    reset = getattr(module, "reset_parameters", None)
    if weights == "shuffled":
        for parameter in own:
            _fill(parameter, parameter.flatten()[torch.randperm(parameter.numel(), device=parameter.device)])
    elif callable(reset) and next(module.children(), None) is None:
        reset()
    else:  # tokens, embeddings, scales: without an initialisation of their own, or with one that resets the children
        for parameter in own:
            deviation, mean = torch.std_mean(parameter, correction=0)
            _fill(parameter, torch.randn_like(parameter) * deviation + mean)


def _fill(parameter: Tensor, values: Tensor) -> None:
    parameter.copy_(values.view_as(parameter))
