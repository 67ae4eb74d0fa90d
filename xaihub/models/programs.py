"""Programs: recorded forward passes as graphs of torch.fx, and how they are made faster without changing results."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from xaihub.models import fusing
from xaihub.models.folding import with_norm

_STATISTICS = ("running_mean", "running_var", "weight", "bias")
_CONVOLUTION = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def fold(program: fx.GraphModule) -> None:
    """Fold every batch norm into the convolution whose result nothing else reads."""
    for norm in list(program.graph.nodes):
        if norm.target is not functional.batch_norm:
            continue
        given = arguments(functional.batch_norm, norm)
        convolution = given["input"]
        if convolution.target is not torch.conv2d or len(convolution.users) != 1 or given["training"]:
            continue
        own = _convolution(convolution)
        sources = [own["weight"], own["bias"], *(given[name] for name in _STATISTICS)]
        if not all(source is None or source.op == "get_attr" for source in sources):
            continue  # computed from other weights
        tensors: list[Any] = [None if source is None else getattr(program, source.target) for source in sources]
        merged = with_norm(*tensors, eps=given["eps"])
        for name, tensor in zip(("weight", "bias"), merged, strict=True):
            program.register_buffer(f"{convolution.name}_{name}", tensor)
            with program.graph.inserting_before(convolution):
                own[name] = program.graph.get_attr(f"{convolution.name}_{name}")
        convolution.args, convolution.kwargs = (), own
        norm.replace_all_uses_with(convolution)
        program.graph.erase_node(norm)


def arguments(function: Callable[..., Any], node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a node that calls a Python function, by name, with defaults."""
    bound = inspect.signature(function).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def fuse(program: fx.GraphModule) -> fx.GraphModule:
    """Return a copy in which convolutions with constant weights are calls of oneDNN, with their padding and activation.

    Raises:
        RuntimeError: An operation is missing, among others.
    """
    graph = copy.deepcopy(program.graph)
    result = fx.GraphModule(program, graph, "Recording")
    for node in list(graph.nodes):
        if node.target is not torch.conv2d:
            continue
        own = _convolution(node)
        weight, bias = own["weight"], own["bias"]
        if isinstance(own["padding"], str) or any(
            part is not None and part.op != "get_attr" for part in (weight, bias)
        ):
            continue
        tensor = getattr(program, weight.target)
        source, border = own["input"], [0, 0, 0, 0]
        if (padding := _border(source)) and _pair(own["padding"]) == (0, 0) and _pair(own["dilation"]) == (1, 1):
            border, source = padding, source.args[0]
            tensor = fusing.shifted(tensor, border)
            own["padding"] = (border[3], border[1])
        activation = _activation(node)
        layer = fusing.layer(
            tensor,
            None if bias is None else getattr(program, bias.target),
            activation[1] if activation else fusing.NONE,
            **{name: _pair(own[name]) for name in ("stride", "padding", "dilation")},
            groups=own["groups"],
        )
        if layer is None:
            continue
        result.add_submodule(f"{node.name}_layer", layer)
        last = activation[0] if activation else node
        with graph.inserting_before(node):
            call = graph.call_module(f"{node.name}_layer", (source,))
        last.replace_all_uses_with(call)
        for gone in dict.fromkeys((last, node, own["input"])):
            if not gone.users and gone is not source:
                graph.erase_node(gone)
    graph.lint()
    result.recompile()
    return result


def _border(node: fx.Node) -> list[int] | None:
    """Return left, right, top and bottom of a border of zeros, as large on both sides or by one larger at the end."""
    if node.target is not functional.pad or len(node.users) != 1:
        return None
    given = arguments(functional.pad, node)
    sizes = given["pad"]
    if given["mode"] != "constant" or given["value"] not in (None, 0) or len(sizes) != 4:
        return None
    left, right, top, bottom = sizes
    even = min(sizes) >= 0 and right - left in (0, 1) and bottom - top in (0, 1)
    return [left, right, top, bottom] if even and isinstance(node.args[0], fx.Node) else None


def _activation(node: fx.Node) -> tuple[fx.Node, Any] | None:
    """Return the only reader of a node, and its name and constants for oneDNN, if it is an activation."""
    if len(node.users) != 1:
        return None
    (reader,) = node.users
    if reader.target not in _ACTIVATIONS or reader.args[:1] != (node,):
        return None
    return reader, _ACTIVATIONS[reader.target](reader)


_ACTIVATIONS: dict[Any, Callable[[fx.Node], Any]] = {
    functional.relu: lambda _: ("relu", [], ""),
    functional.silu: lambda _: ("swish", [], ""),
    functional.hardswish: lambda _: ("hardswish", [], ""),
    functional.relu6: lambda _: ("hardtanh", [0.0, 6.0], ""),
    functional.hardtanh: lambda node: (
        "hardtanh",
        [float(arguments(functional.hardtanh, node)[name]) for name in ("min_val", "max_val")],
        "",
    ),
    functional.gelu: lambda node: ("gelu", [], node.kwargs.get("approximate", "none")),
}


def _convolution(node: fx.Node) -> dict[str, Any]:
    names = ("input", "weight", *_CONVOLUTION)
    return {**_CONVOLUTION, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _pair(value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    return pair[0], pair[-1]
