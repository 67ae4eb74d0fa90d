"""Where in a network the image's grid still exists: found by tracing one forward pass, for any family.

No table of architectures: a layer is chosen by what it does. The facts used are the shapes of all module
outputs and the autograd graph of one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from xaihub.errors import ModelError, ParameterError, did_you_mean

__all__ = ["Hints", "Layer", "Layout", "Structure", "trace"]

# A map of fewer cells a side says next to nothing about where; method authors may ask for less.
MINIMUM_GRID = 4


class Layout(StrEnum):
    """The order of a feature tensor's axes after the batch."""

    NCHW = "NCHW"
    NHWC = "NHWC"
    NTC = "NTC"


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What an adapter knows of a network that tracing cannot tell.

    Attributes:
        prefix_tokens: Tokens before the patches (class, distillation, registers).
        channels_last: Feature maps are (B, h, w, C).
        heads: Names of the classifier modules.
        layers: Layers fixed by hand, by role ("features", "norm", "head").
    """

    prefix_tokens: int = 0
    channels_last: bool = False
    heads: tuple[str, ...] = ()
    layers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A module whose output still has the image's grid.

    Attributes:
        name: Its dotted name in the network.
        module: The module itself.
        layout: How its output's axes are ordered.
        grid: (rows, columns) of cells.
        channels: Features per cell.
        prefix: Tokens before the cells (NTC only).
        reason: Why this layer was chosen, as one sentence.
    """

    name: str
    module: nn.Module
    layout: Layout
    grid: tuple[int, int]
    channels: int
    prefix: int = 0
    reason: str = ""

    def to_grid(self, activations: Tensor) -> Tensor:
        """Bring this layer's output, or its gradient, to (B, C, h, w); prefix tokens are dropped."""
        if self.layout is Layout.NCHW:
            return activations
        if self.layout is Layout.NHWC:
            return activations.permute(0, 3, 1, 2)
        cells = activations[:, self.prefix :].transpose(1, 2)  # (B, C, cells)
        return cells.reshape(*cells.shape[:2], *self.grid)

    @contextmanager
    def outputs(self) -> Iterator[list[Tensor]]:
        """Record what this layer returns, one tensor a forward pass; the hook is gone afterwards, whatever happened.

        `to_grid` brings a recorded tensor, or its gradient, to (B, C, h, w).
        """
        seen: list[Tensor] = []

        def record(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen.append(output)

        handle = self.module.register_forward_hook(record)
        try:
            yield seen
        finally:
            handle.remove()

    def __str__(self) -> str:
        """Name, layout and grid on one line."""
        return f"{self.name} ({self.layout}, {self.grid[0]}x{self.grid[1]} cells, {self.channels} channels)"


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The layers of a network by role.

    Attributes:
        features: The default layer for activation maps, or None with `refusal` saying why.
        spatial: Every layer with a grid, by name.
        blocks: The layers that all information flows through, in the order of execution.
        norm: The name of the last normalisation, or None.
        head: The name of the classifier, or None.
        refusal: Why there is no `features` layer.
    """

    features: Layer | None
    spatial: dict[str, Layer]
    blocks: tuple[Layer, ...]
    norm: str | None
    head: str | None
    refusal: str = ""

    def layer(self, name: str | None = None) -> Layer:
        """Return the layer called `name`, or the default one.

        Raises:
            ModelError: The network has no layer that can serve.
            ParameterError: `name` is no layer with a grid.
        """
        if name is None:
            if self.features is None:
                raise ModelError(f"no layer of this model can be mapped back to the image: {self.refusal}")
            return self.features
        if name not in self.spatial:
            raise _no_grid(name, self.spatial)
        return self.spatial[name]


def _no_grid(name: str, known: Mapping[str, Layer]) -> ParameterError:
    hint = did_you_mean(name, known) or f"for instance {', '.join(list(known)[-5:])}"
    return ParameterError(f"layer {name!r} has no output that is a grid over the image", hint=hint)


@dataclass(frozen=True, eq=False)
class _Seen:
    name: str
    module: nn.Module
    output: Tensor
    version: int


def trace(module: nn.Module, example: Tensor, hints: Hints | None = None) -> Structure:
    """Run one forward pass on `example` (1, C, H, W) and find the layers by role.

    The default feature layer is the last one that (1) has at least 4 x 4 cells, (2) every path from the pixels to the
    logits goes through, (3) at least half of whose cells reach the logits, and (4) that no pooling and no
    per-position normalisation made. For a class-token transformer this is the block before the last, because
    the patch tokens that the last block returns reach nothing.
    """
    hints = hints or Hints()
    seen, logits, pixels = _run(module, example)
    size = (example.shape[2], example.shape[3])
    maps = {item.name: layer for item in seen if (layer := _as_layer(item, size, hints)) is not None}
    # The outermost module stands for every module that returned the very same tensor.
    groups = _same_output([item for item in seen if item.name in maps])
    passages = [group for group in groups if _is_passage(logits, group[0].output, pixels)]
    blocks = tuple(maps[_outermost(group).name] for group in passages)
    norm = next(
        (item.name for item in reversed(seen) if _is_norm(item.module) and _is_passage(logits, item.output, pixels)),
        None,
    )
    head = next(iter(hints.heads), None) or next(
        (item.name for item in reversed(seen) if _is_head(item, logits, pixels)), None
    )
    fixed = dict(hints.layers)
    features, refusal = _choose(passages, maps, logits, fixed.get("features"))
    return Structure(
        features=features,
        spatial=maps,
        blocks=blocks,
        norm=fixed.get("norm", norm),
        head=fixed.get("head", head),
        refusal=refusal,
    )


def _run(module: nn.Module, example: Tensor) -> tuple[list[_Seen], Tensor, Tensor]:
    seen: list[_Seen] = []

    def note(name: str) -> Any:
        def hook(inner: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim >= 2:
                seen.append(_Seen(name, inner, output, output._version))

        return hook

    handles = [inner.register_forward_hook(note(name)) for name, inner in module.named_modules() if name]
    try:
        with torch.enable_grad():
            pixels = example.detach().clone().requires_grad_()
            # Past the hooks of the network as a whole: this pass is none of a method's own, and is not counted.
            logits = module.forward(pixels)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ModelError("the model does not return one row of class scores an image")
    if not bool(logits.isfinite().all()):
        raise ModelError("the model returned NaN or infinite class scores", hint="check its weights and precision")
    # An output that a later module overwrote in place no longer holds what its module returned.
    return [item for item in seen if item.output._version == item.version], logits, pixels


def _choose(
    passages: list[list[_Seen]], maps: dict[str, Layer], logits: Tensor, fixed: str | None
) -> tuple[Layer | None, str]:
    if fixed is not None:
        if fixed not in maps:
            raise _no_grid(fixed, maps)
        return _with_reason(maps[fixed], "set by the model card"), ""
    refusal = "no module returns a grid over the image that everything flows through"
    if passages and not _reach(logits, passages[0][0].output, maps[_outermost(passages[0]).name]):
        return None, "its class scores do not depend on the image (is the classifier initialised?)"
    for group in reversed(passages):
        layer = maps[_outermost(group).name]
        if _is_pooling(group[0].module) or _is_position_norm(group[0].module):
            continue
        if min(layer.grid) < MINIMUM_GRID:
            refusal = f"its grids are too coarse (the last is {layer.grid[0]}x{layer.grid[1]} at {layer.name!r})"
            continue
        reach = _reach(logits, group[0].output, layer)
        if reach < 0.5:
            continue
        rows, columns = layer.grid
        return _with_reason(
            layer,
            f"the last layer that everything flows through, with {rows}x{columns} cells of which {reach:.0%} reach the"
            " class scores",
        ), ""
    return None, refusal


def _with_reason(layer: Layer, reason: str) -> Layer:
    return Layer(**{**layer.__dict__, "reason": reason})


def _same_output(seen: list[_Seen]) -> list[list[_Seen]]:
    groups: dict[int, list[_Seen]] = {}
    for item in seen:
        groups.setdefault(id(item.output), []).append(item)
    return sorted(groups.values(), key=lambda group: seen.index(group[0]))


def _outermost(group: list[_Seen]) -> _Seen:
    return min(group, key=lambda item: (isinstance(item.module, nn.Identity), item.name.count(".")))


def _as_layer(item: _Seen, size: tuple[int, int], hints: Hints) -> Layer | None:
    shape = tuple(item.output.shape)
    if shape[0] != 1:  # windows or heads folded into the batch
        return None
    found = _grid_of_map(shape, size, hints) if len(shape) == 4 else None
    if len(shape) == 3:
        found = _grid_of_tokens(shape, size, hints)
    if found is None:
        return None
    layout, grid, channels, prefix = found
    return Layer(name=item.name, module=item.module, layout=layout, grid=grid, channels=channels, prefix=prefix)


_Found = tuple[Layout, tuple[int, int], int, int]


def _grid_of_map(shape: tuple[int, ...], size: tuple[int, int], hints: Hints) -> _Found | None:
    _, a, b, c = shape
    first, last = _is_grid((b, c), size), _is_grid((a, b), size)
    if first and last:  # all three alike: only the adapter can tell
        first = not hints.channels_last
    if first:
        return Layout.NCHW, (b, c), a, 0
    return (Layout.NHWC, (a, b), c, 0) if last else None


def _grid_of_tokens(shape: tuple[int, ...], size: tuple[int, int], hints: Hints) -> _Found | None:
    _, tokens, channels = shape
    for prefix in dict.fromkeys((hints.prefix_tokens, 0, 1, 2)):
        cells = tokens - prefix
        if cells < 4:
            continue
        rows = round(math.sqrt(cells * size[0] / size[1]))
        if rows and cells % rows == 0 and _is_grid((rows, cells // rows), size):
            return Layout.NTC, (rows, cells // rows), channels, prefix
    return None


def _is_grid(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    (rows, columns), (height, width) = grid, size
    if rows < 2 or columns < 2 or rows > height or columns > width:
        return False
    # The same stride both ways, but for rounding: one cell more or less.
    return abs(rows - columns * height / width) < 1


def _is_passage(logits: Tensor, output: Tensor, pixels: Tensor) -> bool:
    """Tell whether every path of the autograd graph from `logits` to `pixels` goes through `output`."""
    if output.grad_fn is None:
        return False
    todo, done = [logits.grad_fn], {output.grad_fn}
    met = False
    while todo:
        node = todo.pop()
        if node is None:
            continue
        if node is output.grad_fn:
            met = True
        if node in done:
            continue
        done.add(node)
        if getattr(node, "variable", None) is pixels:
            return False
        todo.extend(parent for parent, _ in node.next_functions)
    return met


@torch.enable_grad()  # a metric may be the first to ask, without gradients
def _reach(logits: Tensor, output: Tensor, layer: Layer) -> float:
    """Return the share of the layer's cells that a fixed random combination of the logits depends on."""
    direction = torch.randn(logits.shape[1], generator=torch.Generator().manual_seed(0)).to(logits)
    (gradient,) = torch.autograd.grad((logits[0] * direction).sum(), output, retain_graph=True, allow_unused=True)
    if gradient is None:
        return 0.0
    return (layer.to_grid(gradient).abs().sum(1) > 0).float().mean().item()


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and isinstance(weight, Tensor) and weight.ndim == 1


def _is_head(item: _Seen, logits: Tensor, pixels: Tensor) -> bool:
    weight = getattr(item.module, "weight", None)
    return (
        isinstance(weight, Tensor) and weight.shape[0] == logits.shape[1] and _is_passage(logits, item.output, pixels)
    )


def _is_position_norm(module: nn.Module) -> bool:
    # These remove each cell's magnitude, which activation maps read; batch normalisation does not.
    kind = type(module).__name__
    return isinstance(module, nn.LayerNorm) or kind.startswith(("LayerNorm", "RmsNorm", "RMSNorm", "SimpleNorm"))


def _is_pooling(module: nn.Module) -> bool:
    return "pool" in type(module).__name__.lower() and next(module.parameters(), None) is None
