"""Batch norms folded into the convolutions before them, for forward passes without a graph.

In evaluation mode a batch norm multiplies each channel by a constant and adds another. Where its input is a
convolution's output that nothing else reads, both constants can be part of that convolution. Which pairs qualify is
read off the data flow of one forward pass, so the names and the order of modules do not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

TOLERANCE = 1e-4  # of the largest score or 1: differences of the rounding of float32 are a hundred times smaller
# Layers whose output is linear in their stored weight and bias; timm's pads its input first.
CONVOLUTIONS = ("torch.nn.modules.conv.Conv2d", "timm.layers.conv2d_same.Conv2dSame")
# Functions that read the form of a tensor rather than its values; attributes, such as its shape, are read by __get__.
_FORM = {"__get__", "__len__", "dim", "ndimension", "size", "numel", "stride", "is_contiguous", "is_floating_point"}
_NORM, _NORM_ACT = "torch.nn.modules.batchnorm.BatchNorm2d", "timm.layers.norm_act.BatchNormAct2d"


def folded(network: nn.Module, inputs: Tensor) -> nn.Module | None:
    """Return a copy of the network without the batch norms that can be folded, or None if there are none.

    The copy shares all other weights with the network, which is left as it is. A network whose copy returns other
    scores is not folded.

    Args:
        network: In evaluation mode; it returns one tensor.
        inputs: (B, C, H, W) example inputs, on which the copy is compared with the network.
    """
    if not any(is_kind(part, _NORM, _NORM_ACT) for part in network.modules()):
        return None
    with torch.inference_mode():
        flow = Flow(network, CONVOLUTIONS, (_NORM, _NORM_ACT))
        expected = flow.run(inputs)
        pairs = [(convolution, norm) for convolution, norm in flow.pairs() if _constant(norm)]
        if not pairs or not isinstance(expected, Tensor):
            return None
        replaced: dict[int, nn.Module] = {}
        for convolution, norm in pairs:
            replaced[id(convolution)] = _merged(convolution, norm)
            replaced[id(norm)] = _rest(norm)
        result = with_parts(network, replaced)
        largest = max(1.0, float(expected.abs().max()))
        close = float((result(inputs) - expected).abs().max()) <= TOLERANCE * largest
    return result if close else None


def sources(network: nn.Module) -> list[Tensor]:
    """Return the weights and statistics on which the folded weights depend."""
    parts = [part for part in network.modules() if is_kind(part, *CONVOLUTIONS, _NORM, _NORM_ACT)]
    tensors = [tensor for part in parts for tensor in (*part._parameters.values(), *part._buffers.values())]
    return [tensor for tensor in tensors if tensor is not None]


class Flow(TorchFunctionMode):
    """What each tensor of a forward pass was computed by, and how often it was read."""

    def __init__(self, network: nn.Module, writers: tuple[str, ...], readers: tuple[str, ...]) -> None:
        """Prepare to look for outputs of modules of some types that modules of other types read."""
        super().__init__()
        self._network, self._writers, self._readers = network, writers, readers
        self._calls: Counter[int] = Counter()  # of a module
        self._written: dict[int, nn.Module] = {}  # what returned a tensor
        self._read: dict[int, nn.Module] = {}  # what was given a tensor
        self._uses: Counter[int] = Counter()  # of a tensor
        self._settled: dict[int, int] = {}  # uses when a reader wrote its result into what it was given
        self._kept: list[Tensor] = []  # so that no id is used twice

    def run(self, inputs: Tensor) -> Any:
        """Run the network once, with hooks that note what writers return and what readers are given."""
        parts = list(self._network.modules())
        handles = [part.register_forward_hook(self._note) for part in parts if is_kind(part, *self._writers)]
        for part in parts:
            if is_kind(part, *self._readers):
                handles += [
                    part.register_forward_pre_hook(self._note_input),
                    part.register_forward_hook(self._note_in_place),
                ]
        try:
            with self:
                return self._network.forward(inputs)  # past the hooks of the network as a whole
        finally:
            for handle in handles:
                handle.remove()

    @property
    def written(self) -> list[nn.Module]:
        """The writers that were called."""
        return list(self._written.values())

    def pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Yield the writers and readers that are called once, and between which nothing else reads the values."""
        for tensor, reader in self._read.items():
            writer = self._written.get(tensor)
            if writer is None or self._settled.get(tensor, self._uses[tensor]) != 1:
                continue
            if self._calls[id(writer)] == self._calls[id(reader)] == 1:
                yield writer, reader

    def _note(self, module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._calls[id(module)] += 1
        self._written[id(output)] = module
        self._uses[id(output)] = 0  # earlier uses were those of a freed tensor with this id
        self._kept.append(output)

    def _note_input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._calls[id(module)] += 1
        self._read[id(inputs[0])] = module
        self._kept.append(inputs[0])

    def _note_in_place(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if output is inputs[0]:
            self._settled.setdefault(id(output), self._uses[id(output)])

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count every tensor whose values are read."""
        if getattr(func, "__name__", "") not in _FORM:
            found = [*args, *(kwargs or {}).values()]
            while found:
                item = found.pop()
                if isinstance(item, Tensor):
                    self._uses[id(item)] += 1
                elif isinstance(item, (list, tuple)):
                    found.extend(item)
        return func(*args, **(kwargs or {}))


def is_kind(module: nn.Module, *kinds: str) -> bool:
    """Return whether a module is of one of these types, given by module and name, and not of a subclass."""
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}" in kinds


def _constant(norm: Any) -> bool:
    """Return whether a batch norm computes with its running statistics and has no hooks."""
    return not norm.training and norm.running_mean is not None and norm.running_var is not None


def _merged(convolution: Any, norm: Any) -> nn.Module:
    """Return the convolution with the constants of the batch norm."""
    merged = without_hooks(convolution)
    weight, bias = with_norm(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
    merged._parameters.update(weight=_frozen(weight), bias=_frozen(bias))
    return merged


def with_norm(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    gain: Tensor | None,
    offset: Tensor | None,
    *,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with the constants of a batch norm, computed in double precision."""
    scale = (variance.double() + eps).rsqrt()
    if gain is not None:
        scale = scale * gain.double()
    shift = ((0 if bias is None else bias.double()) - mean.double()) * scale
    if offset is not None:
        shift = shift + offset.double()
    scaled = (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype)
    if weight.is_contiguous(memory_format=torch.channels_last):
        scaled = scaled.contiguous(memory_format=torch.channels_last)
    return scaled, shift.to(weight.dtype)


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _rest(norm: Any) -> nn.Module:
    """Return what a layer does in addition to the batch norm: its dropout, which is off, and its activation."""
    return norm.act if is_kind(norm, _NORM_ACT) else nn.Identity().eval()


def without_hooks(module: nn.Module) -> nn.Module:
    """Return a copy of a module with tables of its own, whose entries are shared, and without hooks."""
    result = copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        result.__dict__[name] = copy(module.__dict__[name])
    for name, value in module.__dict__.items():
        if name.endswith("_hooks") and isinstance(value, dict):
            result.__dict__[name] = type(value)()
    return result


def with_parts(network: nn.Module, replaced: dict[int, nn.Module]) -> nn.Module:
    """Return a copy of a network in which some modules, by id, are replaced; one that occurs twice stays one."""
    done = dict(replaced)

    def copied(module: nn.Module) -> nn.Module:
        if id(module) not in done:
            result = done[id(module)] = without_hooks(module)
            for name, part in module._modules.items():
                if part is not None:
                    result._modules[name] = copied(part)
        return done[id(module)]

    return copied(network)
