"""Random numbers by counters: what is drawn depends on where training stands, never on what was drawn before."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch

__all__ = ["generator", "number", "seed_everything"]


def number(*parts: int | str) -> int:
    """Return the seed that a purpose and its counters fix together, in [0, 2^56)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def generator(*parts: int | str) -> torch.Generator:
    """Return a generator on the CPU that a purpose and its counters fix together."""
    return torch.Generator().manual_seed(number(*parts))


def seed_everything(*parts: int | str) -> None:
    """Seed the global generators of torch (on every device), NumPy and Python."""
    seed = number(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the libraries behind use it
    random.seed(seed)
