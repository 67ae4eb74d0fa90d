"""Attention maps of one forward pass: recorded, checked to be valid for a product over the blocks, and read out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.functional import interpolate

from xaihub import Attribution, ExplainerRefused, Layout, Model


def _refused(reason: str) -> ExplainerRefused:
    return ExplainerRefused(reason, hint="use gradcam or a black-box explainer such as rise")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The attention of one forward pass with its graph.

    Attributes:
        maps: One (B, heads, T, T) tensor per block, in the order of execution.
        logits: (B, K) class scores.
        grid: (rows, columns) of the patch tokens.
        prefix: Number of tokens before the patches.
        read: (T,) mask of the tokens that the classifier reads.
    """

    maps: list[Tensor]
    logits: Tensor
    grid: tuple[int, int]
    prefix: int
    read: Tensor

    def attribution(self, relevance: Tensor, size: tuple[int, int]) -> Attribution:
        """Turn (B, T, T) relevance into (B, 1, H, W): the mean over the rows of the tokens that are read."""
        patches = relevance[:, self.read].mean(1)[:, self.prefix :].float()  # (B, h w)
        cells = patches.unflatten(1, self.grid)
        values = interpolate(cells.unsqueeze(1), size=size, mode="bilinear")
        rows, columns = self.grid
        silent = bool((patches.amax(1) == 0).any())
        return Attribution(
            values=values,
            extras={"cells": cells},
            layer=f"{len(self.maps)} attention blocks over {self.prefix} + {rows}x{columns} tokens,"
            f" read at {self._readers()}: the method uses every block",
            details={"blocks": len(self.maps), "grid": [rows, columns], "prefix_tokens": self.prefix},
            warnings=["no token supports the class: a map is zero everywhere"] if silent else [],
        )

    def _readers(self) -> str:
        count, special = int(self.read.sum()), int(self.read[: self.prefix].sum())
        if count == special:
            return "the class token" if count == 1 else f"the mean of {count} class tokens"
        return f"the mean of {count} tokens"


def record(model: Model, inputs: Tensor) -> Recording:
    """Run one forward pass with a graph and record all attention.

    Raises:
        ExplainerRefused: Attention is not over all tokens, is not a probability, cannot be read, or its blocks do not
            follow one another.
    """
    inputs.requires_grad_()
    with model.attention() as maps:
        logits = model(inputs)
    _check_complete(model, maps)
    tokens = _check_shapes(model, maps, len(inputs))
    grid, prefix = _token_grid(model, tokens)
    _check_probabilities(model, maps)
    _check_order(model, maps)
    return Recording(maps=maps, logits=logits, grid=grid, prefix=prefix, read=_tokens_read(model, maps[-1], logits))


def _check_complete(model: Model, maps: list[Tensor]) -> None:
    # timm's attention has either mark; only modules with both expose their maps. A pooling head or a class-attention
    # stage mixes tokens without exposing how, so a product without it does not lead to the score.
    marks = {
        name: (hasattr(module, "fused_attn"), isinstance(getattr(module, "attn_drop", None), nn.Module))
        for name, module in model.module.named_modules()
    }
    attending = [name for name, mark in marks.items() if any(mark)]
    unread = [name for name in attending if not all(marks[name])]
    if unread:
        kind = type(model.module.get_submodule(unread[0])).__name__
        raise _refused(f"the attention of {unread[0]!r} ({kind}) in {model.name!r} cannot be read")
    if len(maps) > len(attending):
        raise _refused(f"{model.name!r} runs its attention several times per forward pass, so there is no single map")
    if len(maps) != len(attending):
        raise _refused(
            f"{model.name!r} has {len(attending)} attention modules, but {len(maps)} of them exposed their maps"
        )


def _check_shapes(model: Model, maps: list[Tensor], rows: int) -> int:
    shapes = list(dict.fromkeys(tuple(item.shape) for item in maps))
    found = " and ".join("x".join(map(str, shape)) for shape in shapes[:3]) + (" ..." if len(shapes) > 3 else "")
    if any(len(shape) != 4 or shape[2] != shape[3] for shape in shapes):
        raise _refused(f"{model.name!r} has attention that is not from every token to every token: {found}")
    if any(shape[0] != rows for shape in shapes):
        raise _refused(f"{model.name!r} attends within windows of the image: {found}")
    if len({shape[2] for shape in shapes}) > 1:
        raise _refused(
            f"{model.name!r} changes the number of tokens between blocks, or attends to other inputs: {found}"
        )
    return int(shapes[0][2])


def _token_grid(model: Model, tokens: int) -> tuple[tuple[int, int], int]:
    # Only layers without a bypass: attention inside a convolutional network has tokens, too.
    for layer in model.structure.blocks:
        rows, columns = layer.grid
        if layer.layout is Layout.NTC and layer.prefix + rows * columns == tokens:
            return layer.grid, layer.prefix
    raise _refused(f"{model.name!r} attends over {tokens} tokens that are not the cells of a grid over the image")


def _check_probabilities(model: Model, maps: list[Tensor]) -> None:
    for item in maps:
        # Half precision rounds each of hundreds of probabilities.
        tolerance = 1e-3 if item.dtype is torch.float32 else 2e-2
        probabilities = item.detach().float()
        if bool((probabilities < 0).any()) or bool(((probabilities.sum(-1) - 1).abs() > tolerance).any()):
            raise _refused(f"the attention of {model.name!r} is not a probability over tokens")


def _check_order(model: Model, maps: list[Tensor]) -> None:
    for earlier, later in pairwise(maps):
        if not _depends(later, earlier):
            raise _refused(f"the attention blocks of {model.name!r} run side by side, not in sequence")


def _depends(later: Tensor, earlier: Tensor) -> bool:
    todo: list[Node | None] = [later.grad_fn]
    done: set[Node] = set()
    while todo:
        node = todo.pop()
        if node is None or node in done:
            continue
        if node is earlier.grad_fn:
            return True
        done.add(node)
        todo.extend(parent for parent, _ in node.next_functions)
    return False


def _tokens_read(model: Model, last: Tensor, logits: Tensor) -> Tensor:
    """Return a (T,) mask of the tokens whose output in the last block the class scores depend on.

    This distinguishes one class token, several of them, and average pooling without knowing the architecture.
    """
    # Any fixed direction over the classes will do, whatever the target.
    direction = torch.linspace(1, 2, logits.shape[1], device=logits.device, dtype=logits.dtype)
    (gradient,) = torch.autograd.grad((logits @ direction).sum(), last, retain_graph=True, allow_unused=True)
    read = torch.zeros(0) if gradient is None else gradient.abs().amax((0, 1, 3)) > 0
    if not bool(read.any()):
        raise _refused(f"the class scores of {model.name!r} do not depend on its last attention")
    return read
