"""Hashes of weights and descriptions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xaihub.records import canonical
from xaihub.specs import ModelCard


def sha256_of(text: str) -> str:
    """Return the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_state(state: Mapping[str, Any]) -> str:
    """Return the sha256 of the entries of a state dict with their names, whatever their order."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        _add(digest, name, value)
    return digest.hexdigest()


def tensors_of(network: nn.Module) -> list[Tensor]:
    """Return all parameters and buffers; much faster than building a state dict."""
    return [
        tensor
        for module in network.modules()
        for table in (module._parameters, module._buffers)
        for tensor in table.values()
        if tensor is not None
    ]


def versions_of(network: nn.Module) -> list[tuple[int, int]]:
    """Return what changes when a weight is replaced, or changed in place (not through `.data`)."""
    tensors = tensors_of(network)
    return [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]


def hash_structure(network: nn.Module, card: ModelCard, meaning: Sequence[str]) -> str:
    """Return the sha256 of architecture, options, layers for maps, and the meaning of the outputs."""
    drawn = re.sub(r" at 0x[0-9a-f]+", "", str(network))  # functions are printed with their addresses
    options = [dict(part) for part in (card.options, card.objective_options, card.layers)]
    return sha256_of(canonical([drawn, card.architecture, card.objective, *options, *meaning]))


def _add(digest: Any, name: str, value: Any) -> None:
    if isinstance(value, (tuple, list)):  # the packed weights of a quantised layer
        for index, part in enumerate(value):
            _add(digest, f"{name}.{index}", part)
    elif not isinstance(value, Tensor):
        digest.update(f"{name}:{value!r}".encode())
    else:
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        plain = value.dequantize() if value.is_quantized else value
        flat = plain.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
