"""Hashes of weights and descriptions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def sha256_of(text: str) -> str:
    """Return the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_state(state: Mapping[str, Any]) -> str:
    """Return the sha256 of the entries of a state dict with their names, whatever their order."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        _add(digest, name, value)
    return digest.hexdigest()


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
