"""Reproducible random numbers: an explanation's own generator, seeded global generators, and generators of an image."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor

from xaihub.errors import PluginError
from xaihub.notices.process import DRAWING

_OWN: ContextVar[torch.Generator | None] = ContextVar("generator", default=None)


def current_generator() -> torch.Generator:
    """Return the generator of the explanation that runs in this thread, or torch's global CPU generator.

    An explainer that declares `parallel` has a generator of its own, which is seeded like the global one would be.
    """
    return _OWN.get() or torch.default_generator


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Give this thread a generator of its own as `current_generator()`."""
    token = _OWN.set(torch.Generator().manual_seed(seed))
    try:
        yield
    finally:
        _OWN.reset(token)


@contextmanager
def forked_generator() -> Iterator[None]:
    """Restore the state of `current_generator()` on leaving: each image of a batch draws what it would draw alone."""
    generator = current_generator()
    state = generator.get_state()
    try:
        yield
    finally:
        generator.set_state(state)


@contextmanager
def exclusive() -> Iterator[None]:
    """Let one thread at a time use the state of the whole process, such as the global generators.

    It is always entered before a model's lock; the opposite order could block two threads forever.

    Raises:
        PluginError: An explainer that declares `parallel` is running in this thread, and holds its model's lock.
    """
    if _OWN.get() is not None:
        raise PluginError(
            "an explainer that declares parallel used the global random state, or a method that does",
            hint="remove parallel = True from its class",
        )
    with DRAWING:
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every global generator (Python, NumPy, torch), and restore their states on leaving.

    The generators belong to the whole process, so other threads that need them wait (see `exclusive`).
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with exclusive(), torch.random.fork_rng(devices=devices):
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - other libraries use this generator
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
