"""Checkpoints: all state that resuming needs, in one file that is never half-written and executes no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from xaihub.errors import ModelError
from xaihub.files import check_file, decoding
from xaihub.models.saving import write_tensors

_FORM = "xaihub training checkpoint 1"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run after a step.

    Attributes:
        tensors: By kind ("model", "optimizer", "ema", "best"), then by name.
        state: Everything else, in JSON types.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write the checkpoint; see `write_tensors`."""
        flat = {f"{kind}/{name}": tensor for kind, table in self.tensors.items() for name, tensor in table.items()}
        write_tensors(path, flat, {"form": _FORM, "state": json.dumps(self.state)})

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint without executing anything in it.

        Raises:
            ModelError: It is missing, damaged, or not a checkpoint.
        """
        check_file(path, what="checkpoint", error=ModelError)
        with decoding(ModelError(f"checkpoint {str(path)!r} is damaged")), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            state = json.loads(metadata.get("state", "null"))
        if metadata.get("form") != _FORM or not isinstance(state, dict):
            raise ModelError(f"{str(path)!r} is not a checkpoint of a training run", hint="use -m for model weights")
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, tensor in flat.items():
            kind, _, rest = name.partition("/")
            tensors.setdefault(kind, {})[rest] = tensor
        return cls(tensors=tensors, state=state)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state per weight, by "index/name"."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entries in state.items()
        for name, value in entries.items()
        if value is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Restore the optimizer's state per weight; learning rates and groups stay as they are.

    Raises:
        ModelError: The state belongs to other weights, or is damaged.
    """
    with decoding(ModelError("the optimizer's state in the checkpoint is damaged")):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in flat.items():
            index, _, name = key.partition("/")
            state.setdefault(int(index), {})[name] = value
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        for position, entries in state.items():
            for name, value in entries.items():
                if position >= len(weights) or (value.ndim and value.shape != weights[position].shape):
                    shape = tuple(value.shape)
                    raise ModelError(
                        f"the optimizer's weight {position} in the checkpoint has shape {shape}, which does not fit the"
                        " model"
                    )
                if value.ndim:
                    # In the weight's memory layout, as in an uninterrupted run.
                    entries[name] = torch.empty_like(weights[position]).copy_(value)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
