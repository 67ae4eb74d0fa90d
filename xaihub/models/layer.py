"""Layers whose outputs are grids over the image, and how to read and replace those outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor, nn


class Layout(StrEnum):
    """The order of a feature tensor's axes after the batch."""

    NCHW = "NCHW"
    NHWC = "NHWC"
    NTC = "NTC"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A module whose output is a grid over the image.

    Attributes:
        name: Its dotted name in the network.
        module: The module itself.
        layout: The order of its output's axes.
        grid: (rows, columns) of cells.
        channels: Features per cell.
        prefix: Tokens before the cells (NTC only).
        part: Indices or keys that lead to the grid in an output that is a tuple, a list or a dictionary.
        depth: The fraction of the network's calls of modules with weights that are complete with it; 1 if unknown.
        reason: The reason for choosing it, as one sentence.
    """

    name: str
    module: nn.Module
    layout: Layout
    grid: tuple[int, int]
    channels: int
    prefix: int = 0
    part: tuple[Any, ...] = ()
    depth: float = 1.0
    reason: str = ""

    def of(self, output: Any) -> Tensor:
        """Return the tensor that is the grid from what the module returned."""
        for key in self.part:
            output = output[key]
        return output  # type: ignore[no-any-return]

    def replaced(self, output: Any, tensor: Tensor) -> Any:
        """Return what the module returned with another tensor in place of the grid."""
        return _replaced(output, self.part, tensor)

    def to_grid(self, activations: Tensor) -> Tensor:
        """Convert this layer's output, or its gradient, to (B, C, h, w); prefix tokens are dropped."""
        if self.layout is Layout.NCHW:
            return activations
        if self.layout is Layout.NHWC:
            return activations.permute(0, 3, 1, 2)
        cells = activations[:, self.prefix :].transpose(1, 2)  # (B, C, cells)
        return cells.reshape(*cells.shape[:2], *self.grid)

    @contextmanager
    def outputs(self) -> Iterator[list[Tensor]]:
        """Record this layer's outputs, one tensor per forward pass; the hook is always removed on exit."""
        seen: list[Tensor] = []

        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen.append(self.of(output))

        handle = self.module.register_forward_hook(record)
        try:
            yield seen
        finally:
            handle.remove()

    def __str__(self) -> str:
        """Name, layout and grid on one line."""
        return f"{self.name} ({self.layout}, {self.grid[0]}x{self.grid[1]} cells, {self.channels} channels)"


def tensors(output: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """Yield every tensor in nested tuples, lists and dictionaries with the path to it."""
    if isinstance(output, Tensor):
        yield path, output
    elif isinstance(output, (tuple, list)):
        for index, item in enumerate(output):
            yield from tensors(item, (*path, index))
    elif isinstance(output, dict):
        for key, item in output.items():
            yield from tensors(item, (*path, key))


def _replaced(output: Any, path: tuple[Any, ...], tensor: Tensor) -> Any:
    if not path:
        return tensor
    key, rest = path[0], path[1:]
    if isinstance(output, dict):
        changed = copy(output)
        changed[key] = _replaced(output[key], rest, tensor)
        return changed
    items = list(output)
    items[key] = _replaced(items[key], rest, tensor)
    return output._make(items) if hasattr(output, "_make") else type(output)(items)
