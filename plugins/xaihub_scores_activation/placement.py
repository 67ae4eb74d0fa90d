"""Where the gate is placed in an image model. Nothing we could read of the paper treats images: all is our choice."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from xaihub import Model, ModelError
from xaihub_scores_activation.gate import ScoresActivation, fold_, gates

Site = Literal["channels", "positions", "patches", "input"]
Gain = Literal["d", "1"]


class GatedHead(nn.Module):
    """A classifier behind a gate on the channels of its input."""

    def __init__(self, gate: ScoresActivation, head: nn.Linear) -> None:
        super().__init__()
        self.gate = gate
        self.head = head

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the logits of (..., d) channels."""
        out: Tensor = self.head(self.gate(pooled))
        return out


class GatedPositions(nn.Module):
    """The classifier behind a gate on the cells of the last feature map, which replaces average pooling.

    With equal weights this is average pooling, which skips class and register tokens as well.
    """

    def __init__(
        self,
        gate: ScoresActivation,
        norm: nn.Module,
        head: nn.Module,
        *,
        grid: tuple[int, int],
        prefix: int,
        last: bool,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.norm = norm
        self.head = head
        self.grid = grid
        self.prefix = prefix
        self.last = last

    def forward(self, maps: Tensor) -> Tensor:
        """Return the logits of (B, C, h, w), (B, h, w, C) or (B, T, C) features."""
        out: Tensor = self.head(self.norm(self.gate(_cells(maps, prefix=self.prefix, last=self.last)).mean(1)))
        return out


def _cells(maps: Tensor, *, prefix: int, last: bool) -> Tensor:
    """Return the (B, N, C) cells of a feature map or of tokens."""
    if maps.ndim == 3:
        return maps[:, prefix:]
    return maps.flatten(1, 2) if last else maps.flatten(2).transpose(1, 2)


class GatedInput(nn.Module):
    """A network behind a gate on the input channels, such as the bands of a satellite image."""

    def __init__(self, gate: ScoresActivation, network: nn.Module) -> None:
        super().__init__()
        self.gate = gate
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of (B, C, H, W) images."""
        out: Tensor = self.network(self.gated(inputs))
        return out

    def gated(self, inputs: Tensor) -> Tensor:
        """Return the images times the factors of their channels."""
        gated: Tensor = self.gate(inputs)
        return gated


class GatedPatches(GatedInput):
    """A network behind a gate on the cells of a square grid over the image."""

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of cells."""
        side = round(self.gate.num_features**0.5)
        return side, side

    def gated(self, inputs: Tensor) -> Tensor:
        """Return the images times the factors of their cells."""
        rows, columns = (
            torch.arange(length, device=inputs.device) * side // length
            for length, side in zip(inputs.shape[2:], self.grid, strict=True)
        )
        cell = rows.unsqueeze(1) * self.grid[1] + columns  # (H, W)
        return inputs * self.gate.factors().to(inputs.dtype)[cell]


def attach(model: Model, site: Site, *, gain: Gain, temperature: float, patches: int) -> nn.Module:
    """Return the model's network with a gate; its parts depend only on the architecture and the arguments.

    Raises:
        ModelError: The network has a gate already, or has no such site.
    """
    network: nn.Module = model.module
    if gates(network):
        raise ModelError(f"model {model.name!r} has a gate already", hint="train the architecture without a gate")

    def gate(features: int, dim: int = 1) -> ScoresActivation:
        return ScoresActivation(features, dim=dim, gain="d" if gain == "d" else 1.0, temperature=temperature)

    if site == "input":
        return GatedInput(gate(model.input_size[0]), network)
    if site == "patches":
        return GatedPatches(gate(patches**2), network)
    name, head = _classifier(model)
    if site == "channels":
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, GatedHead(gate(head.in_features, dim=-1), head))
        return network
    gated, trunk = _positions(model)
    gated.gate = gate(gated.gate.num_features)
    return nn.Sequential(OrderedDict(trunk=trunk, tail=gated)).to(model.device)


def _classifier(model: Model) -> tuple[str, nn.Linear]:
    """Return the name and module of the model's only classifier, a linear layer."""
    getter = getattr(model.module, "get_classifier", None)
    if getter is not None and isinstance(getter(), (tuple, list, nn.ModuleList)):
        raise ModelError(
            f"model {model.name!r} has several classifiers whose scores are averaged, so one gate would see only a"
            " part of the decision",
            hint="use a model with one classifier",
        )
    name = model.structure.head
    head = None if name is None else model.module.get_submodule(name)
    if isinstance(head, nn.Conv2d):
        raise ModelError(
            f"the classifier {name!r} of {model.name!r} is a convolution, which folding and cached features do not"
            " support",
            hint="use a model with a linear classifier, or another site",
        )
    if name is None or not isinstance(head, nn.Linear):
        kind = "was not found" if head is None else f"is a {type(head).__name__}, not a linear layer"
        raise ModelError(f"the classifier of {model.name!r} {kind}", hint="use another model or site")
    return name, head


@torch.no_grad()
def _positions(model: Model) -> tuple[GatedPositions, nn.Module]:
    """Return a head that pools positions with equal weights, and the trunk of the model before it."""
    trunk = copy.deepcopy(model.module)
    if not hasattr(trunk, "reset_classifier") or not hasattr(trunk, "get_classifier"):
        raise ModelError(
            f"the pooling of {model.name!r} cannot be replaced: it is not a timm model", hint="use site=channels"
        )
    noise = torch.randn(2, *model.input_size, generator=torch.Generator().manual_seed(0)).to(model.device)
    expected, head, norm = trunk(noise), trunk.get_classifier(), nn.Identity()
    if isinstance(getattr(trunk, "fc_norm", None), nn.Module):  # it follows the pooling
        norm, trunk.fc_norm = trunk.fc_norm, nn.Identity()
    try:
        trunk.reset_classifier(0, "")
        maps = trunk(noise)
    except Exception as error:  # each family of timm has its own limits here, and its own errors
        raise ModelError(
            f"the pooling of {model.name!r} cannot be replaced: {error}", hint="use site=channels"
        ) from error
    prefix, last = int(getattr(trunk, "num_prefix_tokens", 0) or 0), getattr(trunk, "output_fmt", "") == "NHWC"
    if maps.ndim not in (3, 4):
        raise ModelError(f"without its pooling {model.name!r} returns no map of positions", hint="use site=channels")
    count = _cells(maps, prefix=prefix, last=last).shape[1]
    if count < 2:
        raise ModelError(f"the last feature map of {model.name!r} has a single position", hint="use site=channels")
    rows = round((count * model.input_size[1] / model.input_size[2]) ** 0.5)
    if maps.ndim == 4:
        rows = int(maps.shape[1 if last else 2])
    grid = (rows, count // rows) if rows and count % rows == 0 else (1, count)
    gate = ScoresActivation(count, dim=1, gain="d").to(model.device)
    found = GatedPositions(gate, norm, head, grid=grid, prefix=prefix, last=last)
    if not torch.allclose(found.eval()(maps), expected, rtol=1e-3, atol=1e-4 * (1 + float(expected.abs().max()))):
        raise ModelError(
            f"model {model.name!r} does not average the positions of its last map right before the classifier",
            hint="use site=channels",
        )
    return found, trunk


def folded(network: nn.Module) -> nn.Module:
    """Return a copy of a gated network without the gate, which is folded into the layer that follows it.

    Raises:
        ModelError: The gate is not followed by a linear layer.
    """
    plain = copy.deepcopy(network)
    for name, part in plain.named_modules():
        if isinstance(part, GatedHead):
            fold_(part.gate, part.head)
            if not name:  # the network is the head alone
                return part.head
            parent, _, leaf = name.rpartition(".")
            setattr(plain.get_submodule(parent), leaf, part.head)
            return plain
    raise ModelError("a gate on positions or pixels cannot be folded", hint="fold a gate on channels")
