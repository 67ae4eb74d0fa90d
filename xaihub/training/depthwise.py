"""Gradients of depthwise convolutions in bfloat16, by passes that are fast on a CPU.

There PyTorch takes most of a training step's time for two of them, ten times what the rest of the convolution takes:
by weights larger than 3 x 3, and by the inputs of a strided one. The former are put together from blocks of 3 x 3, the
latter are taken in float32. The sums are the same ones, in another order or at a higher precision.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["quick_depthwise"]

BLOCK = 3
_backward = torch.ops.aten.convolution_backward.default


def quick_depthwise(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return what a backward pass runs in: where it would be slow, depthwise convolutions are differentiated so."""
    return _Quick() if device.type == "cpu" and precision == "bf16" else nullcontext()  # type: ignore[no-untyped-call]


class _Quick(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Take over the backward pass of what is a depthwise convolution."""
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
    # The gradient by the bias alone would cost as much as the one by the weights, which is taken with it.
    wanted = [by_x and not slow_x, by_weight and not slow_weight, by_bias and not slow_weight]
    of_x, of_weight, of_bias = _backward(grad, x, weight, sizes, stride, *rest, wanted)
    if slow_x:
        wide = torch.empty_like(x, dtype=torch.float32)  # of the input, its shape is all that matters
        exact = _backward(grad.float(), wide, weight.float(), None, stride, *rest, [True, False, False])
        of_x = exact[0].to(x.dtype)
    if slow_weight:
        of_weight = _by_blocks(grad, x, weight, stride, rest[0])
        of_bias = grad.sum((0, 2, 3)) if by_bias else None
    return of_x, of_weight, of_bias


def _by_blocks(grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    """Return the gradient by the weights; a block of it is the one of a smaller convolution of inputs moved by it."""
    rows, columns = weight.shape[2:]
    beyond = [-side % BLOCK for side in (rows, columns)]  # how far the last blocks reach
    grad, x = (part.contiguous(memory_format=torch.channels_last) for part in (grad, x))  # once, and not a block
    padded = F.pad(x, (padding[1], padding[1] + beyond[1], padding[0], padding[0] + beyond[0]))
    height, width = (step * (side - 1) + BLOCK for step, side in zip(stride, grad.shape[2:], strict=True))
    small = weight.new_empty(len(weight), 1, BLOCK, BLOCK)
    found = weight.new_empty(len(weight), 1, rows + beyond[0], columns + beyond[1])
    same = (None, stride, [0, 0], [1, 1], False, [0, 0], len(weight))
    for top in range(0, rows, BLOCK):
        for left in range(0, columns, BLOCK):
            moved = padded[:, :, top : top + height, left : left + width]
            moved = moved.contiguous(memory_format=torch.channels_last)
            block = _backward(grad, moved, small, *same, [False, True, False])[1]
            found[:, :, top : top + BLOCK, left : left + BLOCK] = block
    return found[:, :, :rows, :columns]
