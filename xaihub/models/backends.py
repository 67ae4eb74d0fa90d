"""Backends: other libraries that run a network where no graph and no hook is needed."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xaihub.models import cache
from xaihub.models.folding import without_hooks
from xaihub.models.hashing import hash_state
from xaihub.models.headed import Headed, Shell
from xaihub.models.recording import READS
from xaihub.models.tuning import machine
from xaihub.params import Precision

EAGER, AUTO = "eager", "auto"
KIND = "compiled"  # in the user's cache
# Of the largest score or 1: the most by which a backend may differ from eager execution in float32. With 8 or 11 bits
# of precision, eager execution itself differs by about as much.
TOLERANCES: dict[Precision, float] = {"f32": 1e-3, "bf16": 0.1, "f16": 0.02}
# Passes from which preparing a backend pays: if the compiled network has to be made (seconds), and if it is stored.
PAYS, PAYS_STORED = 300, 32


class Backend(ABC):
    """One way to run a network on the CPU without a graph; `xaihub_register_backends` registers it.

    What it computes is compared with eager execution on the first masked images. Where a score differs by more than
    1e-3 (of the largest score, or 1), or another class wins, eager execution is used and a note says so.

    Attributes:
        precisions: The precisions in which it can compute.
    """

    precisions: tuple[Precision, ...] = ("f32",)

    @property
    @abstractmethod
    def version(self) -> str:
        """What compiled bytes depend on, such as the version of the library."""

    @abstractmethod
    def compile(self, network: nn.Module, inputs: Tensor, precision: Precision) -> bytes:
        """Return the network in the backend's own form, for inputs of this shape and any number of rows.

        Args:
            network: In evaluation mode; it returns (B, K) scores.
            inputs: (B, C, H, W) example inputs.
            precision: One of `precisions`.
        """

    @abstractmethod
    def load(self, compiled: bytes, precision: Precision, threads: int) -> Callable[[Tensor], Tensor]:
        """Return a function from (B, C, H, W) inputs to (B, K) scores, which runs on that many threads."""


class Compiled(nn.Module):
    """A network that a backend runs on `threads` threads."""

    def __init__(self, load: Callable[[int], Callable[[Tensor], Tensor]], threads: int) -> None:
        super().__init__()
        self.threads = threads
        self._load, self._loaded = load, (threads, load(threads))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, K) scores of (B, C, H, W) inputs."""
        if self._loaded[0] != self.threads:
            self._loaded = self.threads, self._load(self.threads)
        return self._loaded[1](inputs)


def within(network: nn.Module, compiled: Compiled) -> nn.Module:
    """Return the compiled network with the head that the network has."""
    return network.around(compiled) if isinstance(network, Headed) else compiled


class Candidate:
    """The backend that a model's settings ask for, and whether it can take over."""

    def __init__(self, model: Any, variant: str = "") -> None:
        """Read the settings; `variant` is the name of what else is computed from the model's weights, if it is that."""
        self._variant = variant
        self.model, self._wanted = model, (model.runtime.backend, model.runtime.precision)
        self.name: str = model.runtime.backend
        self._backend: Backend
        if self.name == AUTO:
            self.name = model.automatic_backend if model.device.type == "cpu" else EAGER
        self.reset()

    def suits(self, model: Any) -> bool:
        """Whether a model's settings are still those."""
        return model is self.model and self._wanted == (model.runtime.backend, model.runtime.precision)

    def reset(self) -> None:
        """Begin again, because the network has changed."""
        self._tried, self._key = self.name == EAGER, ""

    def pays(self, inputs: Tensor, passes: int) -> bool:
        """Whether it should be prepared now: at once if it was named, else as soon as the passes pay for that."""
        if self._tried or (self._wanted[0] == AUTO and passes < PAYS_STORED):
            return False
        with self._warning():
            if not self._key:
                self._backend = self.model.backends[self.name]()()
                weights = hash_state(self.model.module.state_dict())  # as they are, also after writes through `.data`
                facts = (weights, self.model.structure_hash, tuple(inputs.shape[1:]), self._variant)
                self._key = f"{machine()} {self.name} {self._backend.version} {facts} {self._wanted[1]}"
            return self._wanted[0] != AUTO or passes >= PAYS or cache.has(KIND, self._key)
        return False

    def compiled(self, network: nn.Module, inputs: Tensor) -> Compiled | None:
        """Return the network as the backend runs it, or None, with a warning, if that fails or the scores differ.

        Args:
            network: In evaluation mode.
            inputs: (B, C, H, W) real inputs, on which both are compared.
        """
        self._tried, precision = True, self._wanted[1]
        if isinstance(network, Shell) and not isinstance(network, Headed):
            return None  # it reads inside the network
        inner = without_hooks(network.shell_network if isinstance(network, Headed) else network)  # without hooks
        with self._warning(), torch.autocast(inputs.device.type, enabled=False):
            if precision not in self._backend.precisions:
                raise ValueError(f"it does not compute in {precision}")
            expected = _traceable(inner, inputs)
            result = self._function(inner, inputs, precision)
            difference = float((result(inputs) - expected).abs().max()) / max(1.0, float(expected.abs().max()))
            if not difference <= TOLERANCES[precision]:
                raise ValueError(f"its scores differ by {difference:.2g}")
            if precision == "f32" and not torch.equal(result(inputs).argmax(1), expected.argmax(1)):
                raise ValueError("another class wins")
            return result
        return None

    def _function(self, network: nn.Module, inputs: Tensor, precision: Precision) -> Compiled:
        """Return what the backend runs, from the user's cache or, if that is missing or damaged, made anew."""
        backend, threads = self._backend, torch.get_num_threads()
        stored = cache.get(KIND, self._key)
        if stored is not None:
            with suppress(Exception):  # whatever the library raises for bytes that it cannot use
                return Compiled(partial(backend.load, stored, precision), threads)
        made = backend.compile(network, inputs, precision)
        result = Compiled(partial(backend.load, made, precision), threads)
        cache.put(KIND, self._key, made, about=f"{self.model.name} ({self.name})")
        return result

    @contextmanager
    def _warning(self) -> Iterator[None]:
        """Turn whatever the library raises into a warning, because it must not cost the result."""
        try:
            yield
        except Exception as error:
            self._tried = True
            text = " ".join(str(error).split())[:200]
            what = f"backend {self.name!r} is not used for {self.model.name!r}: {text or type(error).__name__}"
            warnings.warn(f"{what}; eager is used", stacklevel=2)


class _Reads(TorchFunctionMode):
    """Whether code reads single values of tensors."""

    found = False

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note what is called."""
        self.found = self.found or getattr(func, "__name__", "") in READS
        return func(*args, **(kwargs or {}))


def _traceable(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return the scores if a recording of one forward pass is the network.

    Raises:
        ValueError: It returns something else than rows of scores, or decides by values.
    """
    with _Reads() as reads:
        outputs = network.forward(inputs)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise ValueError("the network does not return rows of scores")
    if reads.found:
        raise ValueError("the network decides by values")
    return outputs
