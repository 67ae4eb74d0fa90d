"""Random numbers that can be made again."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

__all__ = ["generator_for", "seeded"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every global generator (Python, NumPy, torch), and restore their states on leaving."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the libraries behind use it
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def generator_for(purpose: str, image: Tensor) -> torch.Generator:
    """Return a generator that a purpose (with its seed, as text) and an image fix together.

    From a seed alone every image of a run would get the same draw: one draw instead of many.
    """
    digest = hashlib.sha256(purpose.encode() + image.float().cpu().contiguous().numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
