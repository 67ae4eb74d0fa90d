"""Checkpoints: everything that a run needs to go on, in one file that is never half-written and runs no code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xaihub.errors import ModelError, OutputError
from xaihub.files import write_file

__all__ = ["Checkpoint", "load_optimizer", "optimizer_state", "write_tensors"]

_FORM = "xaihub training checkpoint 1"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run at one step.

    Attributes:
        tensors: By kind ("model", "optimizer", "ema", "best"), then by name.
        state: Everything else, in JSON types.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write the file beside its place, then rename it; the former one stays whole if that fails.

        Raises:
            OutputError: The disk is full, or the file cannot be written.
        """
        flat = {f"{kind}/{name}": tensor for kind, table in self.tensors.items() for name, tensor in table.items()}
        write_tensors(path, flat, {"form": _FORM, "state": json.dumps(self.state)})

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint; nothing in it is executed.

        Raises:
            ModelError: It is missing, damaged, or no checkpoint of a run.
        """
        if not path.is_file():
            raise ModelError(f"there is no checkpoint {str(path)!r}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            state = json.loads(metadata.get("state", "null"))
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"checkpoint {str(path)!r} is damaged: {error}") from error
        if metadata.get("form") != _FORM or not isinstance(state, dict):
            raise ModelError(f"{str(path)!r} is no checkpoint of a training run", hint="-m takes model weights")
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, tensor in flat.items():
            kind, _, rest = name.partition("/")
            tensors.setdefault(kind, {})[rest] = tensor
        return cls(tensors=tensors, state=state)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write safetensors beside their place, then rename them; a former file stays whole if that fails.

    Raises:
        OutputError: The disk is full, or the file cannot be written.
    """
    # One copy each: the file's form knows neither shared memory nor strides.
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        save_file(flat, temporary, metadata=metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())

    try:
        write_file(path, write)
    except SafetensorError as error:  # it wraps the system's error
        why = "No space left on device" if "os error 28" in str(error) else str(error)
        raise OutputError(f"cannot write {str(path)!r}: {why}") from error


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimiser remembers of each weight, by "index/name"."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entries in state.items()
        for name, value in entries.items()
        if value is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Give an optimiser its memory back; rates and groups are those that it was made with.

    Raises:
        ModelError: The memory is of other weights.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        place, _, name = key.partition("/")
        state.setdefault(int(place), {})[name] = value
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, entries in state.items():
        for name, value in entries.items():
            if index >= len(weights) or (value.ndim and value.shape != weights[index].shape):
                raise ModelError(
                    f"the checkpoint's optimiser has another weight {index}, of shape {tuple(value.shape)}"
                )
            if value.ndim:
                # In the weight's own memory order, in which an undisturbed run would have it.
                entries[name] = torch.empty_like(weights[index]).copy_(value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
