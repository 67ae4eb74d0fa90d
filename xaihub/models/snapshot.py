"""Snapshots of a network: what has changed since is found, and can be undone.

Weights and buffers are compared by their version counters while a built-in plugin runs. While any other code runs they
are compared by a checksum of their contents, so that writes through `.data` are found, and restored from a copy.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import copy
from functools import cache, partial
from operator import attrgetter
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from xaihub.models.hashing import tensors_of

_TABLES = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SETTINGS = (bool, int, float, str, tuple, type(None))  # of the computation, such as fused attention
_GLOBAL_HOOKS = [
    table for name, table in vars(nn.modules.module).items() if name.startswith("_global_") and isinstance(table, dict)
]
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_pointer, _version = Tensor.data_ptr, attrgetter("_version")
_flags = attrgetter("requires_grad", "grad")

# Twice as fast as comparing two tensors.
_memcmp = ctypes.CDLL("msvcrt" if os.name == "nt" else None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

Copies = dict[int, Tensor]  # by the id of the tensor
Difference = tuple[str, Callable[[], Any]]  # in words, and what undoes it


class Snapshot:
    """The state of a network: its modules with their methods, settings and hooks, and its weights and buffers.

    Attributes that a network may fill while it runs, such as cached tensors, are no part of it.
    """

    def __init__(self, network: nn.Module, *, ignored: frozenset[str] = frozenset()) -> None:
        """Record the state, of tensors only the counters; `ignored` are differences that the network itself makes."""
        self.network, self._ignored = network, ignored
        self._names = [name for name, part in network.named_modules() if not isinstance(part, torch.jit.ScriptModule)]
        self._parts = [part for part in network.modules() if not isinstance(part, torch.jit.ScriptModule)]
        self._kinds = [*map(type, self._parts)]
        self._attributes = [dict(vars(part)) for part in self._parts]
        self._tables = {name: [vars(part)[name] for part in self._parts] for name in (*_TABLES, *_HOOKS)}
        self._tables["global hooks"] = _GLOBAL_HOOKS
        self._contents = {name: [*map(dict, tables)] for name, tables in self._tables.items()}
        tables = [table for some in self._tables.values() for table in some]
        # Most are empty, and comparing each of them with an empty copy would take as long as all the rest.
        self._empty, self._full = [one for one in tables if not one], [one for one in tables if one]
        self._full_contents = [*map(dict, self._full)]
        self._classes = _classes(frozenset(self._kinds))
        self._methods = [dict(vars(kind)) for kind in self._classes]
        self._order = [(table, [*table]) for table in self._tables["_modules"] if len(table) > 1]
        self._tensors = [*{id(tensor): tensor for tensor in tensors_of(network)}.values()]
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._counters = self._count()
        self._flags = [*map(_flags, self._tensors)]
        self._contents_of_tensors: _Contents | None = None
        self.weights_hash = ""

    def with_contents(self, copies: Copies | None = None) -> Snapshot:
        """Return this snapshot with the contents of the tensors: those of `copies` that are equal, or new copies."""
        found = copy(self)
        found._contents_of_tensors = _Contents(self._tensors, {} if copies is None else copies)
        return found

    @property
    def contents_unchanged(self) -> bool:
        """Whether the contents of the tensors are those that were recorded."""
        return self._contents_of_tensors is not None and self._contents_of_tensors.unchanged

    @property
    def unchanged(self) -> bool:
        """Whether nothing at all differs, in a fraction of the time that finding the differences takes."""
        with suppress(Exception):  # tensors have no truth value
            return (
                [*map(vars, self._parts)] == self._attributes
                and not any(self._empty)
                and self._full == self._full_contents
                and all([*table] == order for table, order in self._order)
                and [*map(type, self._parts)] == self._kinds
                and [*map(vars, self._classes)] == self._methods
                and [*map(_flags, self._tensors)] == self._flags
                and (self._count() == self._counters if self._contents_of_tensors is None else self.contents_unchanged)
            )
        return False

    def _count(self) -> tuple[list[int], list[int]]:
        """Return what differs after a tensor was given other memory, or was written to past `.data`."""
        return [*map(_pointer, self._tensors)], [*map(_version, self._counted)]

    def written(self) -> list[str]:
        """Return, in the words of `changes`, which weights and buffers have been written to."""
        tensors = (self._tensors, self._counted)
        found = [
            tensor
            for some, old, now in zip(tensors, self._counters, self._count(), strict=True)
            for tensor, before, after in zip(some, old, now, strict=True)
            if before != after
        ]
        return [self._weight(tensor) for tensor in {id(tensor): tensor for tensor in found}.values()]

    def changes(self) -> list[str]:
        """Return what differs now, in words such as "changed the weight 'head.bias'"."""
        return [] if self.unchanged else [what for what, _ in self._differences()]

    def restore(self) -> list[str]:
        """Undo and return what differs now.

        Raises:
            Exception: A tensor cannot be written.
        """
        found = [] if self.unchanged else [*self._differences()]
        with torch.no_grad():
            for _, undo in found:
                undo()
        return [what for what, _ in found]

    def _differences(self) -> Iterator[Difference]:
        every = (self._of_tables(), self._of_parts(), self._of_hooks(), self._of_classes(), self._of_tensors())
        for differences in every:
            yield from (one for one in differences if one[0] not in self._ignored)

    def _of_tables(self) -> Iterator[Difference]:
        for name in _TABLES:
            for place, (table, content) in enumerate(zip(self._tables[name], self._contents[name], strict=True)):
                if (table or content) and _entries(table) != _entries(content):
                    yield f"replaced the {name[1:]} of {self._where(place)}", partial(_refill, table, content)

    def _of_parts(self) -> Iterator[Difference]:
        for place, (part, kind, before) in enumerate(zip(self._parts, self._kinds, self._attributes, strict=True)):
            now = vars(part)
            if type(part) is not kind:
                yield f"changed the class of {self._where(place)}", partial(setattr, part, "__class__", kind)
            for name in now.keys() | before.keys():
                old, new = before.get(name), now.get(name)
                if old is new or _same_setting(old, new):
                    continue
                if name in self._tables or callable(old) or callable(new):
                    what = f"replaced {name!r} of {self._where(place)}"
                elif isinstance(old, _SETTINGS) and isinstance(new, _SETTINGS) and name != "_is_full_backward_hook":
                    what = f"changed the setting {name!r} of {self._where(place)}"
                else:
                    continue
                yield what, partial(now.__setitem__, name, old) if name in before else partial(now.pop, name)

    def _of_hooks(self) -> Iterator[Difference]:
        for name in (*_HOOKS, "global hooks"):
            for place, (table, content) in enumerate(zip(self._tables[name], self._contents[name], strict=True)):
                if table.keys() != content.keys():
                    verb = "left hooks on" if table.keys() - content.keys() else "removed hooks of"
                    where = self._where(place) if name in _HOOKS else "all modules"
                    yield f"{verb} {where}", partial(_refill, table, content)

    def _of_classes(self) -> Iterator[Difference]:
        for kind, before in zip(self._classes, self._methods, strict=True):
            now = vars(kind)
            for name in [name for name in now.keys() | before.keys() if now.get(name) is not before.get(name)]:
                if callable(before.get(name)) or callable(now.get(name)):
                    what = f"replaced {name!r} of the class {kind.__name__!r}"
                    yield what, partial(_reset, kind, name, before)

    def _of_tensors(self) -> Iterator[Difference]:
        contents = self._contents_of_tensors
        for place, tensor in enumerate(self._tensors):
            requires_grad, gradient = self._flags[place]
            if contents is not None and not _equal(tensor, contents.kept[place]):
                yield self._weight(tensor), partial(_rewrite, tensor, contents.kept[place], self._counters[0][place])
            if tensor.requires_grad != requires_grad:
                undo = partial(tensor.requires_grad_, requires_grad)
                yield self._weight(tensor, "changed requires_grad of"), undo
            if tensor.grad is not gradient:
                undo_gradient = partial(setattr, tensor, "grad", gradient)
                yield self._weight(tensor, "changed the gradient of"), undo_gradient

    def _where(self, place: int) -> str:
        return repr(self._names[place] or "the network")

    def _weight(self, tensor: Tensor, verb: str = "changed the weight") -> str:
        """Return the change of a weight or a buffer in words, with the name it had."""
        for name in ("_parameters", "_buffers"):
            for where, content in zip(self._names, self._contents[name], strict=True):
                for key, value in content.items():
                    if value is tensor:
                        return f"{verb} {f'{where}.{key}'.lstrip('.')!r}"
        return f"{verb} of a scripted module"


class _Contents:
    """Copies of tensors, and one checksum of all that lie in main memory.

    While nothing has changed only the checksum is computed: the weights have just been used, and lie in the cache of
    the processor, where the copies are not.
    """

    def __init__(self, tensors: list[Tensor], copies: Copies) -> None:
        self._tensors = tensors
        self.kept = [_copied(tensor, copies) for tensor in tensors]
        self._layouts = [*map(_layout, tensors)]
        self._memory = [
            (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
            for tensor in tensors
            if tensor.nbytes and _is_dense(tensor)
        ]
        self._checksum = self._summed()
        self._others = [pair for pair in zip(tensors, self.kept, strict=True) if not _is_dense(pair[0])]

    def _summed(self) -> int:
        found = xxhash.xxh3_128()
        for memory in self._memory:
            found.update(memory)
        return found.intdigest()

    @property
    def unchanged(self) -> bool:
        """Whether every tensor has the memory it had, with the same contents."""
        return (
            [*map(_layout, self._tensors)] == self._layouts
            and self._summed() == self._checksum
            and all(_equal(*pair) for pair in self._others)
        )


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


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _copied(tensor: Tensor, copies: Copies) -> Tensor:
    """Return the copy that is kept of a tensor, made or brought up to date where they differ."""
    kept = copies.get(id(tensor))
    if kept is None or not _equal(tensor, kept):
        kept = copies[id(tensor)] = tensor.detach().clone()
    return kept


def _equal(one: Tensor, other: Tensor) -> bool:
    """Compare bit by bit, so that NaN equals itself and -0 does not equal 0."""
    if (one.dtype, one.shape, one.device) != (other.dtype, other.shape, other.device):
        return False
    if _is_dense(one) and one.stride() == other.stride():
        return not _memcmp(one.data_ptr(), other.data_ptr(), one.nbytes)
    one = one.detach()
    if one.is_quantized:
        return torch.equal(one.int_repr(), other.int_repr())
    bits = _BITS.get(one.element_size())
    return torch.equal(one, other) if bits is None else torch.equal(one.view(bits), other.view(bits))


def _is_dense(tensor: Tensor) -> bool:
    """Whether the tensor lies in main memory without gaps, so that its bytes are its contents."""
    dense = tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    return tensor.device.type == "cpu" and dense


def _rewrite(tensor: Tensor, kept: Tensor, pointer: int) -> None:
    """Write the kept values, in place where the tensor has kept its memory, because other tensors may share it."""
    if tensor.data_ptr() == pointer and (tensor.shape, tensor.dtype) == (kept.shape, kept.dtype):
        tensor.detach().copy_(kept)
    else:
        tensor.data = kept.clone()
