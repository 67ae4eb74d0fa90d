"""Forward passes without a graph, as fast as they can be made without changing the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from xaihub.models import folding, fusing
from xaihub.models.backends import EAGER, Candidate, Compiled, within
from xaihub.models.graphs import Graphed
from xaihub.models.hashing import tensors_of
from xaihub.models.headed import Headed, Shell
from xaihub.models.recording import hastened, recorded
from xaihub.models.tuning import Tuning

_Weights = Callable[[nn.Module], list[Tensor]]
_Run = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
COMPARED = 4  # rows at most on which a backend is compared with eager execution
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# What a module's call looks up; shared with the network, so that its hooks, such as the counter of passes, run as well.
_ROOT_HOOKS = (
    *_HOOKS,
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)


class Executor:
    """Chooses what runs in place of a network while nothing has changed: a folded copy, or another library.

    It does so inside a `with` block only, and under `torch.inference_mode()`. Code that changes a weight, replaces a
    module or registers a hook on a part gets the network itself. Writes through `.data`, which no counter shows, are
    found at the start of each period, such as an explanation.

    Attributes:
        period: The current period; None makes every call one of its own.
        backend: The name of the backend in use.
        used: The names of those that ran in this period.
    """

    def __init__(self) -> None:
        """Prepare nothing yet."""
        self.period: object | None = None
        self.backend, self.used = EAGER, dict[str, None]()
        self._checked: object | None = None
        self._depth = 0
        self._state: tuple[Any, ...] | None = None
        self._fast: nn.Module | None = None
        self._contents: list[tuple[Tensor, Tensor]] = []  # weights that were folded or compiled, and copies of then
        self._candidate: Candidate | None = None
        self._compiled: Compiled | None = None
        self._passes, self._coming = 0, 0  # that were made, and those known to follow
        self._tunings: dict[Any, Tuning] = {}
        self._variants: dict[str, _Variant] = {}
        self._last: Executor = self

    def __enter__(self) -> None:
        """Start to choose."""
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        """Leave the network as it is."""
        self._depth -= 1

    @contextmanager
    def running(self, model: Any, coming: int) -> Iterator[None]:
        """Choose inside, with what suits a model and so many passes; on as many threads as were found fastest."""
        if self._candidate is None or not self._candidate.suits(model):
            self._candidate, self._state = Candidate(model), None
        self._coming = coming
        tuning, before = self._tunings.get(self._key(model)), torch.get_num_threads()
        threads = (model.runtime.threads if tuning is None else tuning.now[1]) or before
        if threads != before:  # even a call that changes nothing rebuilds torch's pool of threads
            torch.set_num_threads(threads)
        if self._compiled is not None:
            self._compiled.threads = threads
        try:
            with self:
                yield
        finally:
            if threads != before:
                torch.set_num_threads(before)

    def tuning(self, model: Any, first: Callable[[], int], most: Callable[[], int]) -> Tuning:
        """Return the search for the fastest number of rows, which begins with `first()` and ends at `most()`."""
        key = self._key(model)
        if key not in self._tunings:
            fixed, threads = model.runtime.batch_size, model.runtime.threads
            if model.device.type != "cpu":  # it works while Python goes on, and large batches suit it
                fixed, threads = fixed or most(), threads or torch.get_num_threads()
            self._tunings[key] = Tuning(
                f"{key} {model.structure_hash}",
                about=model.name,
                first=fixed or first(),
                sizes=range(fixed or 1, (fixed or most()) + 1),
                threads=(threads,) if threads else (torch.get_num_threads(), 1),
            )
        return self._tunings[key]

    def record(self, model: Any) -> dict[str, Any]:
        """Return how the passes of this period were made; without any, the batch size is None."""
        tuning = self._tunings.get(self._key(model))
        rows, threads = (None, model.runtime.threads) if tuning is None else tuning.now
        return {
            "backend": "+".join(self.used) or EAGER,
            "precision": model.runtime.precision,
            "batch_size": rows,
            "threads": threads or torch.get_num_threads(),
        }

    def _key(self, model: Any) -> tuple[Any, ...]:
        runtime = model.runtime
        settings = runtime.precision, runtime.batch_size, runtime.threads
        return self._last.backend, *settings, str(model.device), model.input_size

    @contextmanager
    def one_period(self) -> Iterator[None]:
        """Declare that nothing writes to weights through `.data` inside."""
        before, self.period, self.used = self.period, object(), {}
        try:
            yield
        finally:
            self.period = before

    def variant(self, name: str, run: _Run) -> Executor:
        """Return the executor of something else that is computed from the network's weights.

        Its `network` returns a module that computes `run(network, inputs)`, or the network if that must be called.
        Equal names stand for equal functions.
        """
        found = self._variants.setdefault(name, _Variant(self, name))
        found.run = run
        return found

    def network(self, network: nn.Module, inputs: Tensor) -> nn.Module:
        """Return the network, or what returns the same scores up to rounding; `inputs` are an example."""
        if not self._depth or not torch.is_inference_mode_enabled() or _observed(inputs):
            return network
        if (state := _state(network)) is None:
            self.used[EAGER] = None
            return network
        if state != self._state or not self._same_contents():
            self.backend, self._compiled = EAGER, None
            self._replace(network, self._prepared(network, inputs[:COMPARED].clone()), _sources)
            if self._candidate is not None:
                self._candidate.reset()
        self._passes += len(inputs)
        subject = self._compilable(network)
        if self._candidate is not None and subject and self._candidate.pays(inputs, self._passes + self._coming):
            self._compiled = self._candidate.compiled(subject, inputs[:COMPARED].clone())
            if self._compiled is not None:
                self.backend = self._candidate.name
                self._replace(network, within(subject, self._compiled), tensors_of)
        self._checked, self._last = self.period, self
        self.used[self.backend] = None
        return network if self._fast is None else self._fast

    def _prepared(self, network: nn.Module, inputs: Tensor) -> nn.Module | None:
        return _faster(network, inputs)

    def _compilable(self, network: nn.Module) -> nn.Module | None:
        return network

    def _replace(self, network: nn.Module, fast: nn.Module | None, weights: _Weights) -> None:
        """Run `fast` from now on, which was made from some of the weights, with the hooks of the network as a whole."""
        if fast is not None:
            for name in _ROOT_HOOKS:
                fast.__dict__[name] = network.__dict__[name]
        self._fast = fast
        self._contents = [] if fast is None else [(tensor, tensor.clone()) for tensor in weights(network)]
        self._state = _state(network)

    def _same_contents(self) -> bool:
        if self.period is not None and self._checked is self.period:
            return True
        return all(torch.equal(now, then) for now, then in self._contents)


class _Variant(Executor):
    """The executor of a function that calls the network in its own way, within the periods of the network's."""

    run: _Run
    _program: nn.Module | None = None

    def __init__(self, whole: Executor, name: str) -> None:
        super().__init__()
        self._whole, self._name = whole, name

    def network(self, network: nn.Module, inputs: Tensor) -> nn.Module:
        """Return a recording, which a backend may have compiled, or the network if there is none."""
        whole, candidate = self._whole, self._whole._candidate
        self._depth, self.period, self.used, self._coming = whole._depth, whole.period, whole.used, whole._coming
        if candidate is not None and (self._candidate is None or not self._candidate.suits(candidate.model)):
            self._candidate, self._state = Candidate(candidate.model, self._name), None
        if self._compiled is not None:
            self._compiled.threads = torch.get_num_threads()
        result = super().network(network, inputs)
        whole._last = self
        return result

    def _prepared(self, network: nn.Module, inputs: Tensor) -> nn.Module | None:
        with torch.autocast(inputs.device.type, enabled=False):  # its rounding would hide a mistake
            self._program = recorded(lambda given: self.run(network.forward, given), inputs, network)
            return None if self._program is None else hastened(self._program, inputs)

    def _compilable(self, network: nn.Module) -> nn.Module | None:  # noqa: ARG002
        return self._program


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


def _faster(network: nn.Module, inputs: Tensor, *, whole: bool = True) -> nn.Module | None:
    """Return a faster copy, or None; only that of a `whole` network is free of hooks while it runs."""
    if isinstance(network, Shell):
        inner = _faster(network.shell_network, inputs, whole=isinstance(network, Headed))
        return None if inner is None else network.around(inner)
    with torch.autocast(inputs.device.type, enabled=False):  # its rounding would hide a mistake
        folded = folding.folded(network, inputs[:1])
        fast = fusing.fused(folded or network, inputs) or folded
    return Graphed(fast or folding.without_hooks(network)) if whole and inputs.is_cuda else fast


def _sources(network: nn.Module) -> list[Tensor]:
    found = {id(tensor): tensor for find in (folding.sources, fusing.sources) for tensor in find(network)}
    return list(found.values())
