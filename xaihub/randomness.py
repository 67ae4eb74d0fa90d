"""Reproducible random numbers: seeding of all global generators, and generators derived from an image."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every global generator (Python, NumPy, torch), and restore their states on leaving."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - other libraries use the global generator
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        _seed_torch(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _seed_torch(seed: int) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        torch.manual_seed(seed)
    else:  # without the call stacks that torch records, slowly, for devices that may be used later
        torch.default_generator.manual_seed(seed)


def generator_for(purpose: str, image: Tensor) -> torch.Generator:
    """Return a generator seeded by a purpose (text that includes a seed) and an image.

    A seed alone would give every image of a run the same random numbers.
    """
    digest = hashlib.sha256(purpose.encode() + image.float().cpu().contiguous().numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
