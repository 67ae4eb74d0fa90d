"""Forward passes without a graph, as fast as they can be made without changing the scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from xaihub.models.folding import folded, sources
from xaihub.models.headed import Shell

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# What a module's call looks up; shared with the network, so that its hooks, such as the counter of passes, run as well.
_ROOT_HOOKS = (
    *_HOOKS,
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)


class Executor:
    """Chooses what runs in place of a network: a copy with folded batch norms, as long as nothing has changed.

    It does so inside a `with` block only, and under `torch.inference_mode()`. Code that changes a weight, replaces a
    module or registers a hook on a part gets the network itself. Writes through `.data`, which no counter shows, are
    found at the start of each period, such as an explanation.
    """

    def __init__(self) -> None:
        """Prepare nothing yet."""
        self.period: object | None = None  # None: every call is a period of its own
        self._checked: object | None = None
        self._depth = 0
        self._state: tuple[Any, ...] | None = None
        self._fast: nn.Module | None = None
        self._contents: list[Tensor] = []  # of the weights that were folded, as they were then

    def __enter__(self) -> None:
        """Start to choose."""
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        """Leave the network as it is."""
        self._depth -= 1

    @contextmanager
    def one_period(self) -> Iterator[None]:
        """Declare that nothing writes to weights through `.data` inside."""
        before, self.period = self.period, object()
        try:
            yield
        finally:
            self.period = before

    def network(self, network: nn.Module, inputs: Tensor) -> nn.Module:
        """Return the network, or a copy that returns the same scores up to rounding; `inputs` are an example."""
        if not self._depth or not torch.is_inference_mode_enabled() or _observed(inputs):
            return network
        if (state := _state(network)) is None:
            return network
        if state != self._state or not self._same_contents(network):
            self._fast = _prepared(network, inputs[:1].clone())
            self._contents = [] if self._fast is None else [tensor.clone() for tensor in sources(network)]
            self._state = _state(network)
        self._checked = self.period
        return network if self._fast is None else self._fast

    def _same_contents(self, network: nn.Module) -> bool:
        if self._fast is None or (self.period is not None and self._checked is self.period):
            return True
        return all(map(torch.equal, sources(network), self._contents))


def _observed(inputs: Tensor) -> bool:
    """Return whether something follows the single operations of the network, as deactivation does."""
    return type(inputs) is not Tensor or torch._C._len_torch_function_stack() > 0


def _state(network: nn.Module) -> tuple[Any, ...] | None:
    """Return what identifies modules and weights; None if a part has a hook, which must run on the part itself."""
    if any(getattr(torch_module, f"_global{name}") for name in _HOOKS):
        return None
    found: list[Any] = []
    for part in network.modules():
        facts = part.__dict__
        if isinstance(part, torch.jit.ScriptModule):
            return None
        if part is not network and any(facts.get(name) for name in _HOOKS):
            return None
        found.append((id(part), type(part), facts.get("training"), facts.get("forward")))
        for name in ("_parameters", "_buffers"):
            found += [
                (id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
                for tensor in facts[name].values()
                if tensor is not None
            ]
    return tuple(found)


def _prepared(network: nn.Module, inputs: Tensor) -> nn.Module | None:
    result = _folded(network, inputs)
    if result is not None:
        for name in _ROOT_HOOKS:
            result.__dict__[name] = network.__dict__[name]
    return result


def _folded(network: nn.Module, inputs: Tensor) -> nn.Module | None:
    if not isinstance(network, Shell):
        return folded(network, inputs)
    inner = _folded(network.shell_network, inputs)
    return None if inner is None else network.around(inner)
