"""Shared by the CAM family: choice of the layer, truncation of the graph at it, and upsampling to the image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from xaihub import Attribution, Explainer, ExplainerRefused, Layer, Meta, Model, ModelError, ResolvedTarget

EARLY = 0.5  # a default layer before this fraction of the network is worth a warning

LayerName = Annotated[
    str | None,
    Meta(description="Dotted name of the layer in the network; default: the last layer with a usable grid."),
]


class CAM(Explainer):
    """One map over the cells of a layer, after ReLU, upsampled to the image and not rescaled."""

    parallel = True

    layer: LayerName = None

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return non-negative (B, 1, H, W) maps."""
        layer = self._find(model)
        maps = self.maps(model, layer, inputs, target).float()  # (B, h, w)
        values = interpolate(maps.unsqueeze(1), size=inputs.shape[-2:], mode="bilinear", align_corners=False)
        return Attribution(
            values=values,
            layer=f"{layer}: {layer.reason or 'named by the parameter layer'}",
            extras={"cells": maps},
            details={"grid": list(maps.shape[-2:])},
            warnings=[*_early(layer), *_silent(maps)],
        )

    @abstractmethod
    def maps(self, model: Model, layer: Layer, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        """Return the (B, h, w) maps on the layer's grid, after ReLU."""

    def _find(self, model: Model) -> Layer:
        try:
            return model.layer(self.layer)
        except ModelError as error:
            some = "name a layer, or " if model.structure.spatial else ""
            hint = error.hint or f"{some}use a black-box explainer such as rise"
            raise ExplainerRefused(error.message, hint=hint) from error


@contextmanager
def cut(layer: Layer, *, tap: nn.Module | None = None) -> Iterator[list[Tensor]]:
    """Start the autograd graph at the layer's output: nothing before it is recorded or differentiated.

    Yields a list that receives the layer's output in each forward pass, as a leaf that requires a gradient; `tap` is
    called with it, for libraries that hook a module which returns a single tensor.
    """
    outputs: list[Tensor] = []

    def detach(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        leaf = layer.of(output).detach().requires_grad_()
        outputs.append(leaf)
        if tap is not None:
            tap(leaf)
        return layer.replaced(output, leaf)

    handle = layer.module.register_forward_hook(detach)
    try:
        yield outputs
    finally:
        handle.remove()


def on_grid(layer: Layer, output: Tensor) -> Tensor:
    """Bring the layer's output, or its gradient, to (B, C, h, w).

    Raises:
        ExplainerRefused: Inputs of this size have another grid, or the grid has a single row or column.
    """
    try:
        grid = layer.to_grid(output)
    except RuntimeError as error:
        raise ExplainerRefused(
            f"layer {layer.name!r} has no grid of {layer.grid[0]}x{layer.grid[1]} cells for inputs of this size",
            hint="give inputs of the model's input size",
        ) from error
    rows, columns = grid.shape[-2:]
    if min(rows, columns) < 2:
        raise ExplainerRefused(
            f"layer {layer.name!r} has a grid of {rows}x{columns} cells, too few to locate anything in the image",
            hint="name an earlier layer",
        )
    return grid


def activations(model: Model, layer: Layer, inputs: Tensor) -> Tensor:
    """Return the layer's (B, C, h, w) activations from one forward pass without a graph."""
    with torch.no_grad(), cut(layer) as outputs:
        model(inputs)
    return on_grid(layer, outputs[-1].detach())


def activations_and_gradients(
    model: Model, layer: Layer, inputs: Tensor, target: ResolvedTarget
) -> tuple[Tensor, Tensor]:
    """Return the layer's activations and the gradients of the target's score, both (B, C, h, w)."""
    with cut(layer) as outputs:
        logits = model(inputs)
    output = outputs[-1]
    try:
        (gradient,) = torch.autograd.grad(target.score(logits).sum(), output)
    except RuntimeError as error:
        raise disconnected(layer) from error
    return on_grid(layer, output.detach()), on_grid(layer, gradient)


def disconnected(layer: Layer) -> ExplainerRefused:
    """Return the refusal for a layer without influence on the class scores."""
    return ExplainerRefused(
        f"the class scores cannot be differentiated down to layer {layer.name!r}", hint="name another layer"
    )


def _early(layer: Layer) -> list[str]:
    if layer.depth >= EARLY:
        return []
    return [
        f"layer {layer.name!r} comes after only {layer.depth:.0%} of the network, which branches afterwards: its cells"
        " show simple features; name a later layer"
    ]


def _silent(maps: Tensor) -> list[str]:
    rows = (maps.flatten(1).amax(1) == 0).nonzero().flatten().tolist()
    if not rows:
        return []
    which = "" if len(maps) == 1 else f" in row {', '.join(map(str, rows))} of the batch"
    return [f"no cell supports the class{which}: the map is zero everywhere"]
