"""Layer search: finds the layers whose outputs are grids over the image, in networks of any family.

It uses no table of architectures, only the shapes of all module outputs and the autograd graph of one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from xaihub.errors import ModelError, ParameterError, did_you_mean

# A coarser default map hardly localises anything; a method may still select such a layer by name.
MINIMUM_GRID = 4


class Layout(StrEnum):
    """The order of a feature tensor's axes after the batch."""

    NCHW = "NCHW"
    NHWC = "NHWC"
    NTC = "NTC"


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Facts about a network that an adapter knows and tracing cannot find.

    Attributes:
        prefix_tokens: Tokens before the patches (class, distillation, registers).
        channels_last: Feature maps are (B, h, w, C).
        heads: Names of the classifier modules.
        layers: Manually chosen layers, by role ("features", "norm", "head").
    """

    prefix_tokens: int = 0
    channels_last: bool = False
    heads: tuple[str, ...] = ()
    layers: tuple[tuple[str, str], ...] = ()


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
        reason: The reason for choosing it, as one sentence.
    """

    name: str
    module: nn.Module
    layout: Layout
    grid: tuple[int, int]
    channels: int
    prefix: int = 0
    reason: str = ""

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
        features: The default layer for activation maps, or None; `refusal` gives the reason.
        spatial: Every layer with a grid, by name.
        blocks: The layers through which all information flows, in execution order.
        norm: The name of the last normalisation, or None.
        head: The name of the classifier, or None.
        refusal: The reason why there is no `features` layer.
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
            ModelError: The network has no suitable layer.
            ParameterError: The output of `name` is not a grid over the image.
        """
        if name is None:
            if self.features is None:
                raise ModelError(f"no layer of this model maps back to the image: {self.refusal}")
            return self.features
        if name not in self.spatial:
            raise _no_grid(name, self.spatial)
        return self.spatial[name]


def _no_grid(name: str, known: Mapping[str, Layer]) -> ParameterError:
    hint = did_you_mean(name, known) or f"for example {', '.join(list(known)[-5:])}"
    return ParameterError(f"layer {name!r} does not return a grid over the image", hint=hint)


@dataclass(frozen=True, eq=False)
class _Seen:
    name: str
    module: nn.Module
    output: Tensor
    version: int


def trace(module: nn.Module, example: Tensor, hints: Hints | None = None) -> Structure:
    """Run one forward pass on `example` (1, C, H, W) and find the layers by role.

    The default feature layer is the last one for which (1) there are at least 4 x 4 cells, (2) every path from the
    pixels to the logits passes through it, (3) at least half of its cells affect the logits, and (4) it is neither a
    pooling nor a per-position normalisation. In a class-token transformer this is the last block but one, because the
    patch tokens that the last block returns do not affect the logits.
    """
    hints = hints or Hints()
    seen, logits, pixels = _run(module, example)
    size = (example.shape[2], example.shape[3])
    maps = {item.name: layer for item in seen if (layer := _as_layer(item, size, hints)) is not None}
    # The outermost module represents all modules that returned the same tensor.
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
            # `.forward` bypasses the root module's hooks, so that this pass is not counted as an explainer's.
            logits = module.forward(pixels)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ModelError("the model does not return one row of class scores per image")
    if not bool(logits.isfinite().all()):
        raise ModelError("the model returned NaN or infinite class scores", hint="check its weights and precision")
    # An output that a later module overwrote in place is not what its own module returned.
    return [item for item in seen if item.output._version == item.version], logits, pixels


def _choose(
    passages: list[list[_Seen]], maps: dict[str, Layer], logits: Tensor, fixed: str | None
) -> tuple[Layer | None, str]:
    if fixed is not None:
        if fixed not in maps:
            raise _no_grid(fixed, maps)
        return replace(maps[fixed], reason="set by the model card"), ""
    refusal = "no module returns a grid over the image through which all information flows"
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
        reason = (
            f"the last layer through which all information flows, with {rows}x{columns} cells of which {reach:.0%}"
            " affect the class scores"
        )
        return replace(layer, reason=reason), ""
    return None, refusal


def _same_output(seen: list[_Seen]) -> list[list[_Seen]]:
    groups: dict[int, list[_Seen]] = {}
    for item in seen:
        groups.setdefault(id(item.output), []).append(item)
    return sorted(groups.values(), key=lambda group: seen.index(group[0]))


def _outermost(group: list[_Seen]) -> _Seen:
    return min(group, key=lambda item: (isinstance(item.module, nn.Identity), item.name.count(".")))


def _as_layer(item: _Seen, size: tuple[int, int], hints: Hints) -> Layer | None:
    shape = tuple(item.output.shape)
    if shape[0] != 1:  # windows or heads are folded into the batch
        return None
    find = {3: _grid_of_tokens, 4: _grid_of_map}.get(len(shape))
    found = find(shape, size, hints) if find is not None else None
    return None if found is None else Layer(name=item.name, module=item.module, **found)


def _grid_of_map(shape: tuple[int, ...], size: tuple[int, int], hints: Hints) -> dict[str, Any] | None:
    _, a, b, c = shape
    first, last = _is_grid((b, c), size), _is_grid((a, b), size)
    if first and last:  # all three are equal, so only the adapter knows
        first = not hints.channels_last
    if first:
        return {"layout": Layout.NCHW, "grid": (b, c), "channels": a}
    return {"layout": Layout.NHWC, "grid": (a, b), "channels": c} if last else None


def _grid_of_tokens(shape: tuple[int, ...], size: tuple[int, int], hints: Hints) -> dict[str, Any] | None:
    _, tokens, channels = shape
    for prefix in dict.fromkeys((hints.prefix_tokens, 0, 1, 2)):
        cells = tokens - prefix
        if cells < 4:
            continue
        rows = round(math.sqrt(cells * size[0] / size[1]))
        if rows and cells % rows == 0 and _is_grid((rows, cells // rows), size):
            return {"layout": Layout.NTC, "grid": (rows, cells // rows), "channels": channels, "prefix": prefix}
    return None


def _is_grid(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    (rows, columns), (height, width) = grid, size
    if rows < 2 or columns < 2 or rows > height or columns > width:
        return False
    # Equal strides in both directions, up to rounding by one cell.
    return abs(rows - columns * height / width) < 1


def _is_passage(logits: Tensor, output: Tensor, pixels: Tensor) -> bool:
    """Whether every path of the autograd graph from `logits` to `pixels` passes through `output`."""
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


@torch.enable_grad()  # the structure may first be needed where gradients are off
def _reach(logits: Tensor, output: Tensor, layer: Layer) -> float:
    """Return the fraction of the layer's cells that affect a fixed random combination of the logits."""
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
    # These remove each cell's magnitude, which activation maps need; batch normalisation does not.
    kind = type(module).__name__
    return isinstance(module, nn.LayerNorm) or kind.startswith(("LayerNorm", "RmsNorm", "RMSNorm", "SimpleNorm"))


def _is_pooling(module: nn.Module) -> bool:
    return "pool" in type(module).__name__.lower() and next(module.parameters(), None) is None
