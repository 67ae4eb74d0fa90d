"""Seeds from counters: a draw depends on where training stands, never on what was drawn before."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*parts: int | str) -> int:
    """Return the seed of a purpose and its counters, in [0, 2^56)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded by a purpose and its counters."""
    return torch.Generator().manual_seed(seed_of(*parts))


def seed_everything(*parts: int | str) -> None:
    """Seed the global generators of torch (on every device), NumPy and Python."""
    seed = seed_of(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - used by the libraries below
    random.seed(seed)


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Seed the global CPU generators of torch, NumPy and Python within, and restore them afterwards."""
    seed = seed_of(*parts)
    before = np.random.get_state(), random.getstate()  # noqa: NPY002 - as above
    with torch.random.fork_rng(devices=[]):
        # Only the CPU generator: `torch.manual_seed` would seed every device.
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before[0])  # noqa: NPY002
            random.setstate(before[1])
