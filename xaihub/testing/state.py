"""What a plugin must leave as it was: a network's weights, flags, gradients, hooks and modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["State", "hooks_of"]

# Settings of modules that change what is computed, such as fused attention, are of these types.
_SETTINGS = (bool, int, float, str)


@dataclass(frozen=True)
class State:
    """A network's state at one moment.

    Attributes:
        parts: Facts by kind and place; equal states have equal facts.
        tensors: Copies of the weights and buffers by name.
    """

    parts: dict[tuple[str, str], Any]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, module: nn.Module) -> State:
        """Note the state of a network."""
        parts: dict[tuple[str, str], Any] = {}
        for name, child in module.named_modules():
            where = name or "the network"
            parts["mode", where] = child.training
            parts["module", where] = id(child)
            parts["number of hooks", where] = len(hooks_of(child))
            parts["forward method", where] = child.__dict__.get("forward") is None
            for key, value in vars(child).items():
                if key != "training" and not key.startswith("_") and isinstance(value, _SETTINGS):
                    parts[f"setting {key!r}", where] = value
        for name, weight in module.named_parameters():
            parts["requires_grad", name] = weight.requires_grad
            parts["gradient", name] = None if weight.grad is None else id(weight.grad)
        tensors = {key: value.detach().clone() for key, value in module.state_dict().items()}
        return cls(parts, tensors)

    def change(self, after: State) -> str:
        """Return what differs in a later state, in a few words, or an empty string."""
        for name, tensor in self.tensors.items():
            if name not in after.tensors or not tensor.equal(after.tensors[name]):
                return f"the weight {name!r} was changed"
        for key in self.parts.keys() | after.parts.keys():
            if self.parts.get(key) != after.parts.get(key):
                what, where = key
                return f"the {what} of {where!r} was changed"
        return ""


def hooks_of(module: nn.Module) -> list[int]:
    """Return the ids of every hook that is registered on one module."""
    tables = [table for key, table in vars(module).items() if key.endswith("_hooks") and isinstance(table, dict)]
    return [handle for table in tables for handle in table]
