"""Recordings: what a forward pass computes, as a flat program without the code that led to it.

A pass whose every operation is followed by Python code, as deactivation does, takes longer than the operations. The
list of its operations depends on the form of its input only, so it is written down once and run from then on.
"""

from __future__ import annotations

import inspect
import operator
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from xaihub.models import fusing
from xaihub.models.folding import TOLERANCE
from xaihub.models.hashing import tensors_of
from xaihub.models.programs import arguments, fold, fuse

# Reading single values of a tensor, as code does that decides by them; a recording would take them as constants.
READS = {"__bool__", "__int__", "__float__", "__index__", "__contains__", "item", "tolist", "numpy", "equal"}
_ARRAYS = {"__array__", "__iter__", "is_nonzero"}  # the same, in ways that a tracer of torch notices by itself
# Arguments that are written into the program as they are.
_PLAIN = (int, float, str, complex, type(None), type(Ellipsis), torch.dtype, torch.device, torch.memory_format)
Run = Callable[[Tensor], Tensor]


def hastened(program: nn.Module, inputs: Tensor) -> nn.Module:
    """Return a copy of a recording with its convolutions as calls of oneDNN, or the recording if that fails."""
    if not isinstance(program, fx.GraphModule) or not fusing.able(inputs):
        return program
    other = inputs[:1].flip(-2)
    with suppress(RuntimeError, TypeError, LookupError, AttributeError):  # another release's operations
        fast = fuse(program)
        return fast if _close(fast, other, program.forward(other.clone())) else program
    return program


class Unrecordable(Exception):
    """A pass does something that a list of operations does not express."""


def recorded(run: Run, inputs: Tensor, network: nn.Module) -> nn.Module | None:
    """Return a module that computes what `run` does, for any number of rows; None if a recording cannot.

    Batch norms after convolutions are folded into them. The program is compared with `run` on another input and another
    number of rows than it was recorded with. It shares the weights that are not folded with the network.

    Args:
        run: Computes (B, K) scores from (B, C, H, W) inputs and the weights of the network, under
            `torch.inference_mode()`.
        inputs: (B, C, H, W) example inputs, of which the first row is used.
        network: Whose weights may be used; a pass that uses any other tensor is not recorded.
    """
    row, known = inputs[:1], {id(tensor) for tensor in tensors_of(network)}
    two, other = torch.cat([row, row.flip(-1)]), row.flip(-2)
    try:
        program = _finished(_tape(run, two, known))
        expected = run(other.clone())
        if not _close(program, other, expected):  # the number of rows may be a constant of the program
            three = _tape(run, torch.cat([two, other]), known)
            program = _finished(_for_any_rows(_tape(run, two, known), three))
            return program if _close(program, other, expected) else None
    except Unrecordable:
        return None
    return program


def _close(program: fx.GraphModule, inputs: Tensor, expected: Tensor) -> bool:
    try:
        found = program.forward(inputs.clone())  # a call would print an error
    except (RuntimeError, ValueError, IndexError):
        return False
    largest = max(1.0, float(expected.abs().max()))
    return found.shape == expected.shape and float((found - expected).abs().max()) <= TOLERANCE * largest


def _finished(program: fx.GraphModule) -> fx.GraphModule:
    fold(program)
    program.graph.eliminate_dead_code(_writes)
    program.recompile()
    return program


class _Tape(TorchFunctionMode):
    """Writes down every function that is called inside."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.graph, self.root = fx.Graph(), nn.Module()
        self._known = known
        self._nodes: dict[int, tuple[weakref.ref[Tensor], fx.Node]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function and write it down if it returns or changes a tensor."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in READS or name in _ARRAYS:
            raise Unrecordable(name)
        result = func(*args, **kwargs)
        if name == "__get__":
            if isinstance(result, Tensor):
                attribute = func.__self__.__name__  # type: ignore[attr-defined]
                self.note(result, self.graph.call_function(getattr, (self._written(args[0]), attribute)))
        elif any(True for _ in _tensors(result)) or result is None:
            node = self.graph.call_function(func, self._written(args), self._written(kwargs))
            self.note(result, node)
        return result

    def note(self, result: Any, node: fx.Node) -> None:
        """Remember which node computed a tensor, or the tensors of a tuple."""
        if isinstance(result, Tensor):
            self._nodes[id(result)] = (weakref.ref(result), node)
        elif isinstance(result, (tuple, list)):
            for place, part in enumerate(result):
                if isinstance(part, (Tensor, tuple, list)):
                    self.note(part, self.graph.call_function(_item, (node, place)))
        elif result is not None:
            raise Unrecordable(f"a function returns {type(result).__name__}")

    def node(self, tensor: Tensor) -> fx.Node:
        """Return the node of a tensor.

        Raises:
            Unrecordable: It is neither computed inside nor a weight.
        """
        made = self._nodes.get(id(tensor))
        if made is not None and made[0]() is tensor:
            return made[1]
        if id(tensor) not in self._known:
            raise Unrecordable("a tensor is neither computed inside nor a weight")
        name = f"weight_{len(self.root._parameters) + len(self.root._buffers)}"
        if isinstance(tensor, nn.Parameter):
            self.root.register_parameter(name, tensor)
        else:
            self.root.register_buffer(name, tensor)
        node = self.graph.get_attr(name)
        self.note(tensor, node)
        return node

    def _written(self, value: Any) -> Any:
        """Return an argument with nodes in place of tensors."""
        if isinstance(value, Tensor):
            return self.node(value)
        if isinstance(value, (tuple, list)):
            parts = [self._written(part) for part in value]
            return parts if isinstance(value, list) else tuple(parts)
        if isinstance(value, dict):
            return {name: self._written(part) for name, part in value.items()}
        if isinstance(value, slice):
            return slice(*(self._written(part) for part in (value.start, value.stop, value.step)))
        if not isinstance(value, _PLAIN):
            raise Unrecordable(f"an argument is a {type(value).__name__}")
        return value


def _tape(run: Run, inputs: Tensor, known: set[int]) -> fx.GraphModule:
    tape = _Tape(known)
    tape.note(inputs, tape.graph.placeholder("inputs"))
    with tape:
        outputs = run(inputs)
    if not isinstance(outputs, Tensor):
        raise Unrecordable(f"it returns {type(outputs).__name__}")
    tape.graph.output(tape.node(outputs))
    return fx.GraphModule(tape.root.eval(), tape.graph, "Recording")


def _for_any_rows(program: fx.GraphModule, other: fx.GraphModule) -> fx.GraphModule:
    """Replace what differs between recordings of 2 and of 3 rows by a multiple of the number of rows.

    Raises:
        Unrecordable: They differ in another way.
    """
    pairs = list(zip(program.graph.nodes, other.graph.nodes, strict=False))
    if len(program.graph.nodes) != len(other.graph.nodes):
        raise Unrecordable("the operations depend on the number of rows")
    inputs, twins = pairs[0][0], {same: node for node, same in pairs}
    with program.graph.inserting_after(inputs):
        shape = program.graph.call_function(getattr, (inputs, "shape"))
    with program.graph.inserting_after(shape):
        rows = program.graph.call_function(_item, (shape, 0))

    def merged(one: Any, two: Any, node: fx.Node) -> Any:
        if type(one) is int and type(two) is int and one != two and 3 * one == 2 * two:
            with program.graph.inserting_before(node):
                return program.graph.call_function(operator.mul, (rows, one // 2))
        if isinstance(one, (tuple, list)) and len(one) == len(two):
            parts = [merged(*both, node) for both in zip(one, two, strict=True)]
            return parts if isinstance(one, list) else tuple(parts)
        if isinstance(one, dict) and one.keys() == two.keys():
            return {name: merged(one[name], two[name], node) for name in one}
        if isinstance(one, slice):
            return slice(*(merged(getattr(one, at), getattr(two, at), node) for at in ("start", "stop", "step")))
        if isinstance(two, fx.Node):
            two = twins[two]
        if repr(one) != repr(two):  # nan differs from itself
            raise Unrecordable("the operations depend on the number of rows")
        return one

    for node, same in pairs:
        if node.target != same.target:
            raise Unrecordable("the operations depend on the number of rows")
        node.args, node.kwargs = merged(node.args, same.args, node), merged(node.kwargs, same.kwargs, node)
    return program


def _item(results: Any, place: int) -> Any:
    return results[place]


def _writes(node: fx.Node) -> bool:
    """Return whether a node does more than to return a result, so that it stays although nothing reads that."""
    if node.op in ("placeholder", "output"):
        return True
    name, given = getattr(node.target, "__name__", ""), node.kwargs
    if inspect.isfunction(node.target):
        given = arguments(node.target, node)
    in_place = name.endswith("_") and not name.endswith("__")
    augmented = name == "__setitem__" or (name.startswith("__i") and name != "__invert__")
    return in_place or augmented or "out" in given or bool(given.get("inplace"))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
