"""The classifier of a network: find it, and replace it for another number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from xaihub.errors import ModelError
from xaihub.models.model import Model
from xaihub.training.seeds import seed_everything


def find_head(model: Model) -> nn.Module:
    """Return the module that computes logits from features.

    Raises:
        ModelError: There is no single such module.
    """
    name = _name(model.module)
    if not name:
        raise ModelError(f"model {model.name!r} has no single classifier module", hint="train it without --freeze")
    head: nn.Module = model.module.get_submodule(name)
    return head


def with_classes(model: Model, classes: Sequence[str], *, seed: int) -> Model:
    """Return a model for the given classes, with a new random classifier if their number differs.

    Raises:
        ModelError: The network's classifier cannot be replaced.
    """
    zeros = torch.zeros(1, *model.input_size, device=model.device)
    outputs = model.predict(zeros).shape[1]
    if outputs != len(classes):
        seed_everything("head", seed)
        _replace(model, len(classes))
        model.module.to(model.device)
        model = model.around(model.module)
        model.classes = ()  # the old names belong to the old scores
        if model.predict(zeros).shape[1] != len(classes):
            raise ModelError(f"the classifier of {model.name!r} cannot be replaced for {len(classes)} classes")
    model.classes = tuple(classes)
    return model


def _replace(model: Model, count: int) -> None:
    module: Any = model.module
    if hasattr(module, "reset_classifier"):
        try:
            module.reset_classifier(count)
        except Exception as error:  # each timm model implements its own
            raise ModelError(f"the classifier of {model.name!r} cannot be replaced: {error}") from error
        return
    name = _name(module)
    old = module.get_submodule(name) if name else None
    if not isinstance(old, nn.Linear):
        raise ModelError(f"model {model.name!r} has no linear classifier that could be replaced")
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, nn.Linear(old.in_features, count, bias=old.bias is not None))


def _name(module: Any) -> str:
    """Return the name of the classifier: as timm reports it, else the last linear layer."""
    if hasattr(module, "get_classifier"):
        head = module.get_classifier()
        single = isinstance(head, nn.Module) and not isinstance(head, nn.Identity)
        return next((name for name, part in module.named_modules() if part is head), "") if single else ""
    names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    return names[-1] if names else ""
