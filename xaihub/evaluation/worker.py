"""A worker process for code of third parties: an exit, a crash or an endless loop there costs one result.

Parent and worker exchange JSON and safetensors over a pipe; neither runs anything that the other sends.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from xaihub import errors
from xaihub.errors import PluginError, XaihubError

SERVER = "xaihub.plugin_tools.serving"
STARTING = 300.0  # seconds for starting a worker and for loading a model there
SUPPORTED = os.name == "posix" and bool(sys.executable)


class Broken(PluginError):
    """The worker ended, or had to be ended, before it answered."""


def packed(message: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Return a message with tensors as bytes."""
    # Random numbers are drawn in the order of the memory, so that it has to be the same on the other side.
    strides = {name: one.stride() for name, one in tensors.items() if not one.is_contiguous() and all(one.stride())}
    text = json.dumps([message, strides], default=str).encode()
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return len(text).to_bytes(8, "little") + text + save(whole)


def unpacked(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `packed` packed."""
    size = 8 + int.from_bytes(data[:8], "little")
    (message, strides), tensors = json.loads(data[8:size]), load(data[size:])
    for name, stride in strides.items():
        whole = tensors[name]
        tensors[name] = torch.empty_strided(whole.shape, stride, dtype=whole.dtype).copy_(whole)
    return message, tensors


def error_of(error: XaihubError) -> dict[str, Any]:
    """Return an error as JSON types."""
    return {"error": type(error).__name__, "message": error.message, "hint": error.hint}


def raise_error(answer: Mapping[str, Any]) -> None:
    """Raise the error that an answer holds, if there is one.

    Raises:
        XaihubError: As `error_of` packed it; a `PluginError` if its type is not known here.
    """
    if "error" in answer:
        named = [getattr(errors, name) for name in errors.__all__ if name == answer["error"]]
        raise (named or [PluginError])[0](answer["message"], hint=answer["hint"])


class Worker:
    """One worker process, started when it is first needed and again after it broke."""

    def __init__(self, settings: Mapping[str, Any] | bytes, *, server: str = SERVER) -> None:
        """Start nothing yet; `settings` are sent to each process when it starts, which runs the module `server`."""
        self._settings = settings if isinstance(settings, bytes) else packed(settings, {})
        self._server = server
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    @property
    def stopped(self) -> bool:
        """Whether the next request starts a process."""
        return self._process is None

    def ask(
        self, message: Mapping[str, Any], tensors: Mapping[str, Tensor], *, timeout: float
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Send a request and return the answer.

        Raises:
            Broken: There is no answer after `timeout` seconds, or the process ended.
            XaihubError: As the worker raised it.
        """
        if self.stopped:
            self.start()
        return self._answer(self.exchange(packed(message, tensors), timeout=timeout))

    def start(self) -> None:
        """Start the process.

        Raises:
            Broken: It ended at once, or does not answer.
            XaihubError: As the worker raised it.
        """
        self._pipe, far = Pipe()
        # Not by `multiprocessing`, which would import the user's script again.
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-P", "-m", self._server, str(far.fileno()), str(os.getpid())]
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command, pass_fds=[far.fileno()], env=environ, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True
        )
        far.close()
        self._answer(self.exchange(self._settings, timeout=STARTING))

    def exchange(self, data: bytes, *, timeout: float | None = None) -> bytes:
        """Send bytes to a process that was started, and return its answer.

        Raises:
            Broken: There is no answer after `timeout` seconds, or the process ended.
        """
        pipe, process = self._pipe, self._process  # another thread may close them
        assert pipe is not None and process is not None  # noqa: S101, PT018 - started before
        try:
            pipe.send_bytes(data)
            end = math.inf if timeout is None else time.monotonic() + timeout
            while not pipe.poll(min(0.25, max(0.0, end - time.monotonic()))):
                if process.poll() is not None and not pipe.poll(0):
                    raise EOFError  # a child of the worker may keep the pipe open
                if time.monotonic() > end:
                    self.close()
                    raise Broken(f"did not finish within {timeout:g} s", hint="--timeout sets the limit")
            return pipe.recv_bytes()
        except (EOFError, OSError, ValueError) as error:
            raise Broken(f"ended the worker process{self._how_it_ended()}") from error

    def _answer(self, data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
        try:
            answer, found = unpacked(data)
        except (KeyError, TypeError, ValueError) as error:
            raise Broken(f"ended the worker process{self._how_it_ended()}") from error
        if answer.get("last"):
            self.close()
        raise_error(answer)
        return answer, found

    def _how_it_ended(self) -> str:
        process = self._process
        with suppress(subprocess.TimeoutExpired):
            if process is not None:
                process.wait(1)
        code = None if process is None else process.returncode
        self.close()
        if code is None:
            return ""
        return f" (exit status {code})" if code >= 0 else f" ({signal.Signals(-code).name})"

    def close(self) -> None:
        """End the process, and all that it started."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def settings_of_torch() -> dict[str, Any]:
    """Return what the results of a network depend on in this process, as JSON types."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "benchmark": torch.backends.cudnn.benchmark,
    }


def apply_settings(settings: Mapping[str, Any]) -> None:
    """Apply what `settings_of_torch` returned in another process."""
    torch.set_num_threads(settings["threads"])
    torch.use_deterministic_algorithms(settings["deterministic"])
    torch.set_float32_matmul_precision(settings["precision"])
    torch.backends.cudnn.benchmark = settings["benchmark"]
