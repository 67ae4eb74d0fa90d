"""Fast gradients of depthwise convolutions in bfloat16 on a CPU.

PyTorch spends most of a training step on two of them, ten times as long as on the rest of the convolution: the gradient
with respect to kernels larger than 3 x 3, and with respect to the inputs of a strided convolution. Here the former is
assembled from blocks of 3 x 3, and the latter is computed in float32. The sums are the same, in another order or at a
higher precision.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention
from torch.utils._python_dispatch import TorchDispatchMode

BLOCK = 3
_backward = torch.ops.aten.convolution_backward.default


def quick_depthwise(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return a context in which depthwise convolutions use the faster backward pass; it does nothing elsewhere."""
    return _Quick() if device.type == "cpu" and precision == "bf16" else nullcontext()  # type: ignore[no-untyped-call]


class _Quick(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Replace the backward pass of depthwise convolutions."""
        if func is _backward and _depthwise(*args):
            return _quick(*args)
        return func(*args, **(kwargs or {}))


def _depthwise(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> bool:
    dilation, transposed, groups = rest[3], rest[4], rest[6]
    return (
        grad.device.type == "cpu"
        and grad.dtype == torch.bfloat16
        and grad.ndim == 4
        and not transposed
        and groups == len(weight) == x.shape[1]
        and set(dilation) == {1}
    )


def _quick(
    grad: Tensor, x: Tensor, weight: Tensor, sizes: Any, stride: list[int], *others: Any
) -> tuple[Tensor | None, ...]:
    *rest, (by_x, by_weight, by_bias) = others
    slow_x, slow_weight = by_x and max(stride) > 1, by_weight and max(weight.shape[2:]) > BLOCK
    # The gradient of the bias alone would cost as much as that of the weights.
    wanted = [by_x and not slow_x, by_weight and not slow_weight, by_bias and not slow_weight]
    grad_x, grad_weight, grad_bias = _backward(grad, x, weight, sizes, stride, *rest, wanted)
    if slow_x:
        wide = torch.empty_like(x, dtype=torch.float32)  # only the input's shape matters
        exact = _backward(grad.float(), wide, weight.float(), None, stride, *rest, [True, False, False])
        grad_x = exact[0].to(x.dtype)
    if slow_weight:
        grad_weight = _by_blocks(grad, x, weight, stride, rest[0])
        grad_bias = grad.sum((0, 2, 3)) if by_bias else None
    return grad_x, grad_weight, grad_bias


def _by_blocks(grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    """Return the gradient of the weights; each block is that of a smaller convolution of shifted inputs."""
    rows, columns = weight.shape[2:]
    beyond = [-side % BLOCK for side in (rows, columns)]  # overhang of the last blocks
    grad, x = (part.contiguous(memory_format=torch.channels_last) for part in (grad, x))  # once, not per block
    padded = F.pad(x, (padding[1], padding[1] + beyond[1], padding[0], padding[0] + beyond[0]))
    height, width = (step * (side - 1) + BLOCK for step, side in zip(stride, grad.shape[2:], strict=True))
    small = weight.new_empty(len(weight), 1, BLOCK, BLOCK)
    found = weight.new_empty(len(weight), 1, rows + beyond[0], columns + beyond[1])
    same = (None, stride, [0, 0], [1, 1], False, [0, 0], len(weight))
    for top in range(0, rows, BLOCK):
        for left in range(0, columns, BLOCK):
            shifted = padded[:, :, top : top + height, left : left + width]
            shifted = shifted.contiguous(memory_format=torch.channels_last)
            block = _backward(grad, shifted, small, *same, [False, True, False])[1]
            found[:, :, top : top + BLOCK, left : left + BLOCK] = block
    return found[:, :, :rows, :columns]
