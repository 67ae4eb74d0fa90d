"""Convolutions and linear layers, each with its activation as one call of oneDNN, for passes without a graph on CPUs.

torch calls oneDNN for some convolutions only, reorders their weights in every call, pads uneven borders by copying the
input, and runs activations as passes of their own over the memory. Here weights are reordered once, activations run
while the results are in the processor's cache, and an uneven border becomes an even one of a kernel with a row or
column of zeros.
"""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from xaihub.models.folding import CONVOLUTIONS, TOLERANCE, Flow, is_kind, with_parts

_SAME = CONVOLUTIONS[1]
_LINEAR = "torch.nn.modules.linear.Linear"
_ACTIVATION = "torch.nn.modules.activation."
_Fused = tuple[str, list[float], str]  # an activation as oneDNN calls it: name, constants, variant
NONE: _Fused = ("none", [], "")
_ACTIVATIONS: dict[str, Callable[[Any], _Fused]] = {
    "ReLU": lambda _: ("relu", [], ""),
    "ReLU6": lambda _: ("hardtanh", [0.0, 6.0], ""),
    "Hardtanh": lambda act: ("hardtanh", [act.min_val, act.max_val], ""),
    "SiLU": lambda _: ("swish", [], ""),
    "Hardswish": lambda _: ("hardswish", [], ""),
    "GELU": lambda act: ("gelu", [], act.approximate),
}
_MACHINES = ("x86_64", "AMD64")  # where it was measured
LARGEST = 2**30  # bytes of weights, of which there will be two more copies: reordered, and to notice changes


def fused(network: nn.Module, inputs: Tensor) -> nn.Module | None:
    """Return a copy of a network whose convolutions and linear layers are fused, or None if it has none.

    The copy shares all other weights with the network, which is left as it is. None is returned as well if the copy
    returns other scores, and on other devices and machines than those it is made for.

    Args:
        network: In evaluation mode; it returns one tensor.
        inputs: (B, C, H, W) example inputs, on which the copy is compared with the network.
    """
    if not able(inputs) or not 0 < sum(weight.nbytes for weight in sources(network)) <= LARGEST:
        return None
    names = tuple(_ACTIVATION + name for name in _ACTIVATIONS)
    with (
        torch.inference_mode(),
        suppress(RuntimeError, TypeError, LookupError, AttributeError),
    ):  # another release's operations
        flow = Flow(network, (*CONVOLUTIONS, _LINEAR), names)
        expected = flow.run(inputs)
        replaced = {id(part): made for part in flow.written if (made := _fused(part, NONE))}
        for part, activation in flow.pairs():
            kind = _ACTIVATIONS[type(activation).__name__](activation)
            if made := _fused(part, kind):
                replaced |= {id(part): made, id(activation): nn.Identity().eval()}
        if not replaced or not isinstance(expected, Tensor):
            return None
        result = with_parts(network, replaced)
        difference = float((result(inputs) - expected).abs().max())
        return result if difference <= TOLERANCE * max(1.0, float(expected.abs().max())) else None
    return None


def able(inputs: Tensor) -> bool:
    """Return whether oneDNN runs here, and was measured to be faster, on such inputs."""
    kind = inputs.device.type == "cpu" and inputs.dtype is torch.float32
    return kind and platform.machine() in _MACHINES and torch.backends.mkldnn.is_available()


def layer(weight: Tensor, bias: Tensor | None, activation: _Fused, **form: Any) -> nn.Module | None:
    """Return a convolution and an activation as one call, or None if their precision is another.

    `form` has the stride, padding, dilation and groups of `torch.nn.Conv2d`.
    """
    channels, sizes = weight.shape[1] * form["groups"], (weight.shape[2], weight.shape[3])
    part: Any = nn.Conv2d(channels, len(weight), sizes, bias=bias is not None, device="meta", **form)
    for name, tensor in (("weight", weight), ("bias", bias)):
        part._parameters[name] = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
    return _fused(part, activation)


def shifted(weight: Tensor, border: Sequence[int]) -> Tensor:
    """Return a kernel for a border that is as large at the beginning as this one (left, right, top, bottom) at the end.

    A row or column of zeros before the kernel makes up for the difference.
    """
    left, right, top, bottom = border
    return pad(weight, (right - left, 0, bottom - top, 0)).contiguous(memory_format=torch.channels_last)


def sources(network: nn.Module) -> list[Tensor]:
    """Return the weights on which the reordered weights depend."""
    parts = [part for part in network.modules() if is_kind(part, *CONVOLUTIONS, _LINEAR)]
    return [tensor for part in parts for tensor in part._parameters.values() if tensor is not None]


def _fused(part: Any, activation: _Fused) -> nn.Module | None:
    if any(weight is not None and weight.dtype is not torch.float32 for weight in part._parameters.values()):
        return None
    if is_kind(part, _LINEAR):
        return _Linear(part, activation)
    even = not isinstance(part.padding, str) and part.padding_mode == "zeros"
    plain = even and (not is_kind(part, _SAME) or tuple(part.dilation) == (1, 1))
    return _Convolution(part, activation) if plain else None


class _OneCall(nn.Module, ABC):
    """A layer with its activation; its weights, in oneDNN's order, by precision and size of the input."""

    layer: Any

    def __init__(self, part: Any, activation: _Fused) -> None:
        super().__init__()
        self._parameters.update(part._parameters)  # code may read them
        self.__dict__["layer"] = part  # not a part of the copy
        self.activation = activation
        self.ready: dict[Any, tuple[Any, ...]] = {}
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's outputs, in the precision of automatic mixed precision if that is on."""
        if torch.is_autocast_enabled("cpu"):
            inputs = inputs.to(torch.get_autocast_dtype("cpu"))
        key = inputs.dtype, inputs.shape[2:]
        if key not in self.ready:
            self.ready[key] = self.prepared(inputs)
        outputs: Tensor = self.call(inputs, *self.ready[key])
        return outputs

    def weights(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the weight and the bias in the precision of the inputs."""
        weight, bias = self.layer.weight.detach(), self.layer.bias
        return weight.to(inputs.dtype), None if bias is None else bias.detach().to(inputs.dtype)

    @abstractmethod
    def prepared(self, inputs: Tensor) -> tuple[Any, ...]:
        """Return what a call needs in addition to such inputs."""

    @abstractmethod
    def call(self, inputs: Tensor, *prepared: Any) -> Tensor:
        """Return the outputs."""


class _Linear(_OneCall):
    def prepared(self, inputs: Tensor) -> tuple[Any, ...]:
        weight, bias = self.weights(inputs)
        return torch.ops.mkldnn._reorder_linear_weight(weight), bias, *self.activation

    def call(self, inputs: Tensor, *prepared: Any) -> Tensor:
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, *prepared)
        return outputs


class _Convolution(_OneCall):
    def prepared(self, inputs: Tensor) -> tuple[Any, ...]:
        part, (weight, bias) = self.layer, self.weights(inputs)
        padding = list(part.padding)
        if is_kind(part, _SAME):
            total = [
                max((-(-size // stride) - 1) * stride + kernel - size, 0)
                for size, stride, kernel in zip(inputs.shape[2:], part.stride, part.kernel_size, strict=True)
            ]
            # Of an odd border the larger part comes last. A row of zeros before the kernel makes both parts as large.
            weight = pad(weight, (total[1] % 2, 0, total[0] % 2, 0)).contiguous(memory_format=torch.channels_last)
            padding = [-(-size // 2) for size in total]
        form = padding, list(part.stride), list(part.dilation), part.groups
        weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *form, list(inputs.shape))
        return weight, bias, *form, *self.activation

    def call(self, inputs: Tensor, *prepared: Any) -> Tensor:
        outputs: Tensor = torch.ops.mkldnn._convolution_pointwise(inputs, *prepared)
        return outputs
