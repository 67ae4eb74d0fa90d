"""Snapshots of a network, to detect changes of its weights, flags, gradients, hooks, modes and settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# Types of module settings that affect the computation, such as fused attention.
_SETTINGS = (bool, int, float, str)


@dataclass(frozen=True)
class State:
    """A snapshot of a network.

    Attributes:
        parts: Facts by kind and place; equal states have equal facts.
        tensors: Copies of the weights and buffers by name.
    """

    parts: dict[tuple[str, str], Any]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, module: nn.Module) -> State:
        """Record the state of a network."""
        parts: dict[tuple[str, str], Any] = {}
        for name, child in module.named_modules():
            where = name or "the network"
            parts["mode", where] = child.training
            parts["module", where] = id(child)
            parts["class", where] = type(child)
            parts["method forward of the class", where] = getattr(type(child), "forward", None)
            parts["set of hooks", where] = hooks_of(child)
            parts["forward method", where] = child.__dict__.get("forward") is None
            for key, value in vars(child).items():
                if key != "training" and not key.startswith("_") and isinstance(value, _SETTINGS):
                    parts[f"setting {key!r}", where] = value
        for name, weight in module.named_parameters():
            parts["requires_grad", name] = weight.requires_grad
            parts["gradient", name] = None if weight.grad is None else id(weight.grad)
        # A state dict would leave out buffers that are not persistent.
        tensors = {key: value.detach().clone() for key, value in (*module.named_parameters(), *module.named_buffers())}
        return cls(parts, tensors)

    def change(self, after: State) -> str:
        """Return a description of the first difference to a later state, or an empty string."""
        for name, tensor in self.tensors.items():
            if name not in after.tensors or not tensor.equal(after.tensors[name]):
                return f"the weight {name!r} was changed"
        for key in self.parts.keys() | after.parts.keys():
            if self.parts.get(key) != after.parts.get(key):
                what, where = key
                return f"the {what} of {where!r} was changed"
        return ""


def hooks_of(module: nn.Module) -> list[int]:
    """Return the ids of all hooks of one module."""
    tables = [table for key, table in vars(module).items() if key.endswith("_hooks") and isinstance(table, dict)]
    return [handle for table in tables for handle in table]
