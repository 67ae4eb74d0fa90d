"""Copies of a model with weights drawn anew, from the output down. The model itself is never written to."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from xaihub import Model

__all__ = ["Order", "Weights", "copy_of", "randomised", "stages"]

Order = Literal["cascading", "independent"]
Weights = Literal["initial", "shuffled"]


def randomised(model: Model, *, order: Order, layers: int, weights: Weights) -> Iterator[tuple[str, Model]]:
    """Yield (name of the lowest module of the stage, copy of the model) for each stage, from the output down.

    "cascading" randomises a stage and every one above it, "independent" that stage alone. It is one copy, changed in
    place between two steps. Numbers come from torch's global generator.
    """
    changed = copy_of(model)
    for names in stages(model.module, layers):
        if order == "independent":
            changed.module.load_state_dict(model.module.state_dict())
        for name in names:
            _draw_anew(changed.module.get_submodule(name), weights)
        yield names[-1], changed


def stages(module: nn.Module, layers: int) -> list[list[str]]:
    """Group the modules that hold parameters of their own into `layers` stages, from the output to the input.

    The order is the reverse of that of definition, which is the order of execution in a network that reads from top to
    bottom.
    """
    names = [name for name, inner in module.named_modules() if next(inner.parameters(recurse=False), None) is not None]
    names.reverse()
    count = min(layers, len(names))
    edges = [round(index * len(names) / count) for index in range(count + 1)] if count else []
    return [names[start:stop] for start, stop in pairwise(edges)]


def copy_of(model: Model) -> Model:
    """Copy the network with what is known of its layers; preprocessing, classes and runtime are shared.

    Layers found in the trained network stay the ones that are read: a search in a randomised one might choose others.
    Hooks are copied as well, so passes through the copy count among the measurement's.
    """
    _ = model.structure  # found before copying; copied below together with the modules it names
    shared = (model.preprocessing, model.classes, model.card, model.runtime)
    return copy.deepcopy(model, {id(item): item for item in shared})


@torch.no_grad()
def _draw_anew(module: nn.Module, weights: Weights) -> None:
    """Replace the module's own parameters: by its own initialisation, or by a random order of their values."""
    own = list(module.parameters(recurse=False))
    reset = getattr(module, "reset_parameters", None)
    if weights == "shuffled":
        for parameter in own:
            _fill(parameter, parameter.flatten()[torch.randperm(parameter.numel(), device=parameter.device)])
    elif callable(reset) and next(module.children(), None) is None:
        reset()
    else:  # tokens, embeddings, scales: modules that do not say how they begin, or would begin with all their children
        for parameter in own:
            deviation, mean = torch.std_mean(parameter, correction=0)
            _fill(parameter, torch.randn_like(parameter) * deviation + mean)


def _fill(parameter: Tensor, values: Tensor) -> None:
    parameter.copy_(values.view_as(parameter))
