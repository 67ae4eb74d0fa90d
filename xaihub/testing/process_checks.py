"""Checks of everything that runs code: the process is left as it was found, and nothing is printed."""

from __future__ import annotations

import random
from typing import Protocol

import numpy as np
import torch

from xaihub.testing.catalogue import Kind, check, require
from xaihub.testing.process import Observation, observed

_KINDS: tuple[Kind, ...] = ("explainer", "metric", "objective", "baseline", "head", "adapter")


class Exercised(Protocol):
    """A subject whose code can be run as in use, from its first call on."""

    seen: Observation

    def exercise(self) -> None:
        """Create it and run it; `seen` holds what its own code did, now and when it ran for the first time."""


@check(*_KINDS, advice="undo every change of the process in a `with` block or in `finally`, and join your threads")
def process_is_left_as_found(subject: Exercised) -> None:
    """Threads, torch's settings and functions, working directory, environment and recursion limit are unchanged."""
    if not subject.seen.runs:
        subject.exercise()
    changes = dict.fromkeys(subject.seen.changes)
    require(not changes, f"it changed {'; '.join(changes)}")


@check(*_KINDS[:-1], advice="draw only while you explain, measure or compute a loss, and never seed a global generator")
def random_state_is_left_as_found(subject: Exercised) -> None:
    """The global random states of Python, NumPy and torch are the same after its use as before."""
    if not subject.seen.runs:
        subject.exercise()  # what a library draws when it is imported does not count
    _ = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002, S311 - else seeding anew would change nothing
    seen = Observation()
    with observed(seen, draws=False):
        subject.exercise()
    found = [change for change in seen.changes if "random state" in change]
    require(not found, f"it changed {'; '.join(found)}")


@check(*_KINDS, advice="use the module `logging` or `warnings`, which do not write to stdout")
def nothing_is_printed(subject: Exercised) -> None:
    """Nothing is written to stdout, which belongs to the results of commands."""
    if not subject.seen.runs:
        subject.exercise()
    require(not subject.seen.printed, f"it printed {subject.seen.printed[:60]!r}")
