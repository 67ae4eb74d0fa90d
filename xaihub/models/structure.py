"""Layer search: finds the layers whose outputs are grids over the image, in networks of any family.

It uses no table of architectures, only the shapes of all module outputs and the autograd graph of one forward pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from xaihub.errors import ModelError, ParameterError, did_you_mean
from xaihub.models.layer import Layer, Layout, tensors
from xaihub.models.opaque import Opaque, hookable

# A coarser default map hardly localises anything; a method may still select such a layer by name.
MINIMUM_GRID = 4


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Facts about a network that an adapter knows and tracing cannot find.

    Attributes:
        prefix_tokens: Tokens before the patches (class, distillation, registers).
        channels_last: Feature maps are (B, h, w, C).
        heads: Names of the classifier modules.
        layers: Manually chosen layers, by role ("features", "norm", "head").
        reason: Who chose the features layer, for the record.
    """

    prefix_tokens: int = 0
    channels_last: bool = False
    heads: tuple[str, ...] = ()
    layers: tuple[tuple[str, str], ...] = ()
    reason: str = "set by the model card"

    def within(self, network: nn.Module) -> Hints:
        """Return the facts about layers that another network has as well."""
        names = {name for name, _ in network.named_modules()}
        heads = tuple(head for head in self.heads if head in names)
        return replace(self, heads=heads, layers=tuple(pair for pair in self.layers if pair[1] in names))


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
        repeated: The number of calls per forward pass of layers with a grid of which no single call sees everything.
    """

    features: Layer | None
    spatial: dict[str, Layer]
    blocks: tuple[Layer, ...]
    norm: str | None
    head: str | None
    refusal: str = ""
    repeated: Mapping[str, int] = field(default_factory=dict)

    def layer(self, name: str | None = None) -> Layer:
        """Return the layer called `name`, or the default one.

        Raises:
            ModelError: The network has no suitable layer.
            ParameterError: The output of `name` is not a grid over the image, or no single one.
        """
        if name is not None and name in self.repeated:
            raise ParameterError(_called(name, self.repeated[name]), hint=_instead(self.spatial))
        if name is None:
            if self.features is None:
                raise ModelError(f"no layer of this model maps back to the image: {self.refusal}")
            return self.features
        if name not in self.spatial:
            raise _no_grid(name, self.spatial)
        return self.spatial[name]


def _called(name: str, times: int) -> str:
    return f"layer {name!r} is called {times} times per forward pass, and no single call sees all of the evidence"


def _instead(known: Mapping[str, Layer]) -> str:
    return f"name another layer, such as {', '.join(list(known)[-3:])}" if known else "use a black-box explainer"


def _no_grid(name: str, known: Mapping[str, Layer]) -> ParameterError:
    hint = did_you_mean(name, known) or _instead(known)
    return ParameterError(f"layer {name!r} does not return a grid over the image", hint=hint)


@dataclass(frozen=True, eq=False)
class _Seen:
    name: str
    module: nn.Module
    part: tuple[Any, ...]
    output: Tensor
    version: int
    call: int
    step: int


def trace(module: nn.Module, example: Tensor, hints: Hints | None = None) -> Structure:
    """Run one forward pass on `example` (1, C, H, W) and find the layers by role.

    The default feature layer is the last one for which (1) there are at least 4 x 4 cells, (2) every path from the
    pixels to the logits passes through it, (3) at least half of its cells affect the logits, and (4) it is neither a
    pooling nor a per-position normalisation. In a class-token transformer this is the last block but one, because the
    patch tokens that the last block returns do not affect the logits.
    """
    hints = hints or Hints()
    seen, calls, steps, logits, pixels = _run(module, example)
    size = (example.shape[2], example.shape[3])
    found = {item: layer for item in seen if (layer := _as_layer(item, size, hints)) is not None}
    passages = _passages(seen, list(found), logits, pixels)
    everything = [item for group in passages for item in group]
    # Of several tensors that a module returned, the one through which all information flows.
    maps = {item.name: found[item] for item in reversed(found)} | {item.name: found[item] for item in everything}
    through = {item.name for item in everything}
    repeated = {item.name: calls[item.name] for item in found if calls[item.name] > 1 and item.name not in through}
    maps = {item.name: maps[item.name] for item in found if item.name not in repeated}
    # The outermost module represents all modules that returned the same tensor.
    blocks = tuple(found[_outermost(group)] for group in passages)
    norm = next(
        (item.name for item in reversed(seen) if _is_norm(item.module) and _is_passage(logits, [item], pixels)),
        None,
    )
    head = next(iter(hints.heads), None) or next(
        (item.name for item in reversed(seen) if _is_head(item, logits, pixels)), None
    )
    fixed = dict(hints.layers)
    features, refusal = _choose(passages, found, logits)
    if features is not None:
        depth = next(item.step for item in found if item.name == features.name) / max(steps, 1)
        features = replace(features, depth=depth)
    if "features" in fixed:
        features = _fixed(fixed["features"], maps, repeated, hints.reason)
    elif features is None:
        last = {name: times for name, times in repeated.items() if name == list(found)[-1].name}
        refusal = _no_passage(module, last, refusal, differentiable=_leads_to(logits, pixels))
    return Structure(
        features=features,
        spatial=maps,
        blocks=blocks,
        norm=fixed.get("norm", norm),
        head=fixed.get("head", head),
        refusal=refusal,
        repeated=repeated,
    )


def _run(module: nn.Module, example: Tensor) -> tuple[list[_Seen], Counter[str], int, Tensor, Tensor]:
    """Return the outputs of each module's last call, the calls by name and of modules with weights, logits, pixels."""
    seen: list[_Seen] = []
    calls: Counter[str] = Counter()
    steps = 0  # calls of modules with weights

    def note(name: str) -> Any:
        def hook(inner: nn.Module, _: Any, output: Any) -> None:
            nonlocal steps
            calls[name] += 1
            steps += bool(inner._parameters)
            seen.extend(
                _Seen(name, inner, part, tensor, tensor._version, calls[name], steps)
                for part, tensor in tensors(output)
                if tensor.ndim >= 2
            )

        return hook

    handles = [inner.register_forward_hook(note(name)) for name, inner in hookable(module).items()]
    try:
        with torch.enable_grad():
            pixels = example.detach().clone().requires_grad_()
            # `.forward` bypasses the root module's hooks, so that this pass is not counted as an explainer's.
            logits = module.forward(pixels.clone())  # a network may write to its input
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ModelError("the model does not return one row of class scores per image")
    if not bool(logits.isfinite().all()):
        raise ModelError("the model returned NaN or infinite class scores", hint="check its weights and precision")
    # An output that a later module overwrote in place is not what its own module returned.
    last = [item for item in seen if item.output._version == item.version and item.call == calls[item.name]]
    return last, calls, steps, logits, pixels


def _fixed(name: str, maps: dict[str, Layer], repeated: Mapping[str, int], reason: str) -> Layer:
    if name in repeated:
        raise ParameterError(_called(name, repeated[name]), hint=_instead(maps))
    if name not in maps:
        raise _no_grid(name, maps)
    return replace(maps[name], reason=reason)


def _no_passage(module: nn.Module, repeated: Mapping[str, int], refusal: str, *, differentiable: bool) -> str:
    """Explain why no layer can be chosen."""
    if reason := getattr(module, "black_box", ""):  # why it has no layers
        return str(reason)
    if not differentiable:
        return "its class scores cannot be differentiated down to the image"
    if refusal:
        return refusal
    if not hookable(module) and next(module.children(), None) is not None:
        return getattr(module, "reason", Opaque.reason)
    if repeated:
        return _called(*next(iter(repeated.items())))
    return "no module returns a grid over the image through which all information flows"


def _choose(passages: list[list[_Seen]], found: dict[_Seen, Layer], logits: Tensor) -> tuple[Layer | None, str]:
    refusal = ""
    if passages and not _reach(logits, passages[0][0].output, found[passages[0][0]]):
        return (
            None,
            "its class scores have no gradient with respect to the image (is the classifier initialised or quantised?)",
        )
    for group in reversed(passages):
        layer = found[_outermost(group)]
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
    return None if found is None else Layer(name=item.name, module=item.module, part=item.part, **found)


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


def _passages(seen: list[_Seen], grids: list[_Seen], logits: Tensor, pixels: Tensor) -> list[list[_Seen]]:
    """Return the groups of modules that returned the same grid, of those through which all information flows.

    A module that returns several tensors counts with all of them, if a single one is a grid: a transformer in
    transformer (TNT) returns the tokens of the patches and of the pixels inside them.
    """
    of_module: dict[str, list[_Seen]] = {}
    for item in seen:
        of_module.setdefault(item.name, []).append(item)
    # A module may also return what it computed from its grid, such as the pooled features, and only that may be used.
    grids = [
        item
        for item in grids
        if not any(_leads_to(other.output, item.output) for other in of_module[item.name] if other is not item)
    ]
    several = {name for name, count in Counter(item.name for item in grids).items() if count > 1}
    passages = []
    for group in _same_output(grids):
        kept = [item for item in group if len(of_module[item.name]) > 1 and item.name not in several]
        kept = [item for item in kept if _is_passage(logits, of_module[item.name], pixels)]
        plain = [item for item in group if item not in kept]
        if plain and _is_passage(logits, plain[:1], pixels):
            kept = group
        if kept:
            passages.append(kept)
    return passages


def _is_passage(logits: Tensor, items: list[_Seen], pixels: Tensor) -> bool:
    """Whether every path of the autograd graph from `logits` to `pixels` passes through an output of `items`."""
    stops = {item.output.grad_fn for item in items} - {None}
    met = set()
    for node in _nodes(logits, stops):
        if getattr(node, "variable", None) is pixels:
            return False
        met |= stops & {node}
    return bool(met) and items[0].output.grad_fn is not None


def _leads_to(later: Tensor, earlier: Tensor) -> bool:
    """Whether the autograd graph of `later` contains `earlier`."""
    if later is earlier:
        return False
    return any(node is earlier.grad_fn or getattr(node, "variable", None) is earlier for node in _nodes(later))


def _nodes(output: Tensor, stops: Collection[Node | None] = ()) -> Iterator[Node]:
    """Yield each node of the autograd graph of `output` once, none beyond `stops`."""
    todo, done = [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in done:
            continue
        done.add(node)
        yield node
        if node not in stops:
            todo.extend(parent for parent, _ in node.next_functions)


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
    return isinstance(weight, Tensor) and weight.shape[0] == logits.shape[1] and _is_passage(logits, [item], pixels)


def _is_position_norm(module: nn.Module) -> bool:
    # These remove each cell's magnitude, which activation maps need; batch normalisation does not.
    kind = type(module).__name__
    return isinstance(module, nn.LayerNorm) or kind.startswith(("LayerNorm", "RmsNorm", "RMSNorm", "SimpleNorm"))


def _is_pooling(module: nn.Module) -> bool:
    return "pool" in type(module).__name__.lower() and next(module.parameters(), None) is None
