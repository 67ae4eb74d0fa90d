"""Containment: what code of a plugin changes in a network is found and undone.

Weights and buffers are compared by their version counters while a built-in plugin runs. While any other code runs they
are compared by their contents, so that writes through `.data` are found, against a copy that also restores them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xaihub.errors import ModelError, PluginError
from xaihub.models.hashing import hash_state
from xaihub.models.process import ProcessState, marked
from xaihub.params import Parametrised

if TYPE_CHECKING:
    from xaihub.models.model import Model

_TABLES = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SETTINGS = (bool, int, float, str, tuple, type(None))  # of the computation, such as fused attention
_GLOBAL_HOOKS = [
    table for name, table in vars(nn.modules.module).items() if name.startswith("_global_") and isinstance(table, dict)
]
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Copies = dict[tuple[str, torch.dtype, torch.Size, tuple[int, ...]], Tensor]
Difference = tuple[str, Callable[[], Any]]  # in words, and what undoes it


class Snapshot:
    """The state of a network: its modules with their methods, settings and hooks, and its weights and buffers.

    Attributes that a network may fill while it runs, such as cached tensors, are no part of it.
    """

    def __init__(
        self, network: nn.Module, *, copies: Copies | None = None, ignored: frozenset[str] = frozenset()
    ) -> None:
        """Record the state.

        Args:
            network: The network.
            copies: Where copies of the tensors are kept, for later snapshots to reuse; None compares counters only.
            ignored: Differences, in words, that the network itself makes.
        """
        self.network, self._ignored = network, ignored
        modules = [(name or "the network", part) for name, part in network.named_modules()]
        plain = [(where, part) for where, part in modules if not isinstance(part, torch.jit.ScriptModule)]
        self._parts = [(where, part, type(part), dict(vars(part))) for where, part in plain]
        tables = [(where, name[1:-1], vars(part)[name]) for where, part in plain for name in _TABLES]
        self._tables = [(*one, _entries(one[-1]), dict(one[-1])) for one in tables]
        hooks = [(where, getattr(part, name)) for where, part in modules for name in _HOOKS]
        self._hooks = [(where, table, dict(table)) for where, table in hooks]
        self._hooks += [("all modules", table, dict(table)) for table in _GLOBAL_HOOKS]
        self._classes = [(kind, dict(vars(kind))) for kind in _classes(frozenset(type(part) for _, part in plain))]
        self._tensors = [*network.named_parameters(), *network.named_buffers()]
        self._counters = [_counter(tensor) for _, tensor in self._tensors]
        self._flags = [(tensor.requires_grad, tensor.grad) for _, tensor in self._tensors]
        self._kept = None if copies is None else [_copied(name, tensor, copies) for name, tensor in self._tensors]

    def written(self) -> list[str]:
        """Return, in the words of `changes`, which weights and buffers have been written to."""
        names = zip(self._tensors, self._counters, strict=True)
        return [f"changed the weight {name!r}" for (name, tensor), counter in names if _counter(tensor) != counter]

    def changes(self) -> list[str]:
        """Return what differs now, in words."""
        return [what for what, _ in self._differences()]

    def restore(self) -> list[str]:
        """Undo and return what differs now.

        Raises:
            Exception: A tensor cannot be written.
        """
        found = [*self._differences()]
        with torch.no_grad():
            for _, undo in found:
                undo()
        return [what for what, _ in found]

    def _differences(self) -> Iterator[Difference]:
        every = (self._of_tables(), self._of_parts(), self._of_hooks(), self._of_classes(), self._of_tensors())
        for differences in every:
            yield from (one for one in differences if one[0] not in self._ignored)

    def _of_tables(self) -> Iterator[Difference]:
        for where, what, table, entries, content in self._tables:
            if _entries(table) != entries:
                yield f"replaced the {what} of {where!r}", partial(_refill, table, content)

    def _of_parts(self) -> Iterator[Difference]:
        for where, part, kind, before in self._parts:
            now = vars(part)
            if type(part) is not kind:
                yield f"changed the class of {where!r}", partial(setattr, part, "__class__", kind)
            with suppress(Exception):  # tensors among the values have no truth value
                if now == before:
                    continue
            for name in now.keys() | before.keys():
                old, new = before.get(name), now.get(name)
                if old is new or _same_setting(old, new):
                    continue
                if name in _TABLES or name in _HOOKS or callable(old) or callable(new):
                    what = f"replaced {name!r} of {where!r}"
                elif isinstance(old, _SETTINGS) and isinstance(new, _SETTINGS) and name != "_is_full_backward_hook":
                    what = f"changed the setting {name!r} of {where!r}"
                else:
                    continue
                yield what, partial(now.__setitem__, name, old) if name in before else partial(now.pop, name)

    def _of_hooks(self) -> Iterator[Difference]:
        for where, table, before in self._hooks:
            if table and table.keys() - before.keys():
                yield f"left hooks on {where!r}", partial(_refill, table, before)
            elif len(table) != len(before):
                yield f"removed hooks of {where!r}", partial(_refill, table, before)

    def _of_classes(self) -> Iterator[Difference]:
        for kind, before in self._classes:
            now = vars(kind)
            for name in [name for name in now.keys() | before.keys() if now.get(name) is not before.get(name)]:
                if callable(before.get(name)) or callable(now.get(name)):
                    what = f"replaced {name!r} of the class {kind.__name__!r}"
                    yield what, partial(_reset, kind, name, before)

    def _of_tensors(self) -> Iterator[Difference]:
        for place, (name, tensor) in enumerate(self._tensors):
            requires_grad, gradient = self._flags[place]
            kept, counter = self._kept and self._kept[place], self._counters[place]
            if kept is not None and not _equal(tensor, kept):
                yield f"changed the weight {name!r}", partial(_rewrite, tensor, kept, counter)
            if tensor.requires_grad != requires_grad:
                yield f"changed requires_grad of {name!r}", partial(tensor.requires_grad_, requires_grad)
            if tensor.grad is not gradient:
                yield f"changed the gradient of {name!r}", partial(setattr, tensor, "grad", gradient)


def _same_setting(old: Any, new: Any) -> bool:
    with suppress(Exception):  # a tuple may hold tensors
        return isinstance(old, _SETTINGS) and type(old) is type(new) and bool(old == new)
    return True


def _entries(table: dict[str, Any]) -> list[Any]:
    return [*table, *map(id, table.values())] if table else []


def _reset(kind: type, name: str, before: dict[str, Any]) -> None:
    if name in before:
        setattr(kind, name, before[name])
    else:
        delattr(kind, name)


def _refill(table: dict[Any, Any], content: dict[Any, Any]) -> None:
    table.clear()
    table.update(content)


@cache
def _classes(kinds: frozenset[type]) -> list[type]:
    return [*{base: None for kind in kinds for base in kind.__mro__ if base is not object}]


def _counter(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _copied(name: str, tensor: Tensor, copies: Copies) -> Tensor:
    """Copy a tensor into the copy that is kept of it, which is faster than new memory."""
    plain = tensor.detach()
    if plain.is_quantized:
        return plain.clone()
    key = (name, plain.dtype, plain.shape, plain.stride())
    if key not in copies or copies[key].device != plain.device:
        copies[key] = plain.clone()
        return copies[key]
    return copies[key].copy_(plain)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Compare bit by bit, so that NaN equals itself and -0 does not equal 0."""
    one = one.detach()
    if one.dtype != other.dtype or one.shape != other.shape or one.device != other.device:
        return False
    if one.is_quantized:
        return torch.equal(one.int_repr(), other.int_repr())
    bits = _BITS.get(one.element_size())
    return torch.equal(one, other) if bits is None else torch.equal(one.view(bits), other.view(bits))


def _rewrite(tensor: Tensor, kept: Tensor, counter: tuple[int, int]) -> None:
    """Write the kept values, in place where the tensor has kept its memory, because other tensors may share it."""
    if tensor.data_ptr() == counter[0] and (tensor.shape, tensor.dtype) == (kept.shape, kept.dtype):
        tensor.detach().copy_(kept)
    else:
        tensor.data = kept.clone()


_CACHES = ("structure", "row_bytes", "_hashed", "_checked_rows", "_order", "_guard", "masked_rows")


class Guard:
    """Watches over one model while code of plugins runs."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._reason = ""  # why the model cannot be used any more
        self._copies: Copies = {}
        self._depth = 0
        self._ignored: frozenset[str] = frozenset()

    def check(self) -> None:
        """Refuse a model that was changed and could not be restored.

        Raises:
            ModelError: It was.
        """
        if self._reason:
            raise ModelError(self._reason, hint="load the model again")

    @contextmanager
    def learning(self, network: nn.Module) -> Iterator[None]:
        """Note what the network itself changes when it is run, such as a counter of its calls."""
        before = Snapshot(network)
        yield
        self._ignored |= {*before.changes(), *before.written()}

    @contextmanager
    def watching(self, model: Model, by: Parametrised | None, *, parallel: bool) -> Iterator[None]:
        """Undo what is changed inside; of `by`, also the settings of the process and the contents of the weights.

        Raises:
            PluginError: `by` changed something, so that its result is worth nothing.
            ModelError: An earlier change could not be undone.
        """
        self.check()
        foreign = by is not None and not by.origin.builtin
        copies = None if not foreign else {} if self._depth else self._copies
        before = Snapshot(model.module, copies=copies, ignored=self._ignored)
        hashed = model.weights_hash if by is not None and not foreign else None
        own, runtime = dict(vars(model)), dict(vars(model.runtime))
        process = None if by is None else ProcessState(foreign=foreign, parallel=parallel)
        found: list[str] = []
        self._depth += 1
        try:
            yield
        except BaseException as error:
            if by is not None:
                marked(error, by)
            raise
        finally:
            self._depth -= 1
            found += [] if process is None else process.restore()
            found += _restore_model(model, own, runtime)
            found += self._restore(before, hashed, by)
            if found:
                for name in ("structure", "row_bytes"):
                    vars(model).pop(name, None)
        if found and by is not None:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            undone = "the model cannot be used any more" if self._reason else "it was undone"
            raise PluginError(f"{by.described} {found[0]}{more}; {undone}, and the result is discarded")

    def _restore(self, before: Snapshot, hashed: str | None, by: Parametrised | None) -> list[str]:
        who = "code" if by is None else by.described
        try:
            found = before.restore()
            left = before.changes() if found else []
            if hashed is not None and before.written() and hash_state(before.network.state_dict()) != hashed:
                left = ["changed the weights"]
        except Exception as error:  # whatever was done to the tensors
            found, left = [], [f"changed the weights beyond reading ({type(error).__name__})"]
        if left:
            self._reason = f"the model was changed and cannot be restored: {who} {left[0]}"
        return found or left


def _restore_model(model: Model, own: dict[str, Any], runtime: dict[str, Any]) -> list[str]:
    """Undo changes of the attributes of a model and of its runtime."""
    found = []
    now = vars(model)
    for name in [name for name in now.keys() | own.keys() if now.get(name) is not own.get(name)]:
        if name not in _CACHES:
            now.pop(name, None)
            now.update({name: own[name]} if name in own else {})
            found.append(f"changed {name!r} of the model")
    if vars(model.runtime) != runtime:
        vars(model.runtime).update(runtime)
        found.append("changed the runtime of the model")
    return found
