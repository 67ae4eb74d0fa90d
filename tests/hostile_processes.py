"""Explainers that end or block their process, as a single-file plugin."""

from __future__ import annotations

import ctypes
import os
import signal
import time

import torch
from torch import Tensor

from xaihub import Explainer, Model
from xaihub import ResolvedTarget as Target


class _Hostile(Explainer):
    def attribute(self, model: Model, inputs: Tensor, target: Target) -> Tensor:
        self.harm()
        return inputs

    def harm(self) -> None:
        raise NotImplementedError


class EndsNatively(_Hostile):
    """Ends the process in native code, as if all were well."""

    def harm(self) -> None:
        ctypes.CDLL(None)._exit(0)


class Crashes(_Hostile):
    """Reads address 0."""

    def harm(self) -> None:
        ctypes.string_at(0)


class KillsItself(_Hostile):
    """Kills the process."""

    def harm(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs(_Hostile):
    """Does not return, and does not let itself be interrupted."""

    def harm(self) -> None:
        while True:
            try:
                time.sleep(1)
            except BaseException:  # noqa: S112
                continue


class NeverEnds(Explainer):
    """Returns rows without end."""

    def attribute(self, model: Model, inputs: Tensor, target: Target) -> Tensor:
        return torch.stack([row for row in iter(lambda: inputs[0], None) if not time.sleep(0.01) and row is None])


class ClosesFiles(_Hostile):
    """Closes every file of the process."""

    def harm(self) -> None:
        os.closerange(3, 256)


class Forks(_Hostile):
    """Returns twice."""

    def harm(self) -> None:
        os.fork()
