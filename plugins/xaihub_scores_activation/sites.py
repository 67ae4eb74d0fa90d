"""Where the gate stands in an image model. Nothing that we could read of the paper treats images: all of it is ours."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from xaihub import Model, ModelError
from xaihub_scores_activation.layer import ScoresActivation, fold_, gates

__all__ = ["Gain", "GatedHead", "GatedInput", "GatedPatches", "GatedPositions", "Site", "attach", "folded"]

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
    """What follows the last feature map: a gate on its cells in the place of average pooling, and the classifier.

    With equal weights this is average pooling; class and register tokens are left out, as average pooling does.
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
    """Return (B, N, C) cells of a feature map or of tokens."""
    if maps.ndim == 3:
        return maps[:, prefix:]
    return maps.flatten(1, 2) if last else maps.flatten(2).transpose(1, 2)


class GatedInput(nn.Module):
    """A network behind a gate on the channels of the image, such as the bands of a satellite."""

    def __init__(self, gate: ScoresActivation, network: nn.Module) -> None:
        super().__init__()
        self.gate = gate
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of (B, C, H, W) images."""
        out: Tensor = self.network(self.gate(inputs))
        return out


class GatedPatches(nn.Module):
    """A network behind a gate on the cells of a grid over the image."""

    def __init__(self, gate: ScoresActivation, network: nn.Module, *, side: int) -> None:
        super().__init__()
        self.gate = gate
        self.network = network
        self.grid = (side, side)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of (B, C, H, W) images."""
        height, width = inputs.shape[2:]
        rows = torch.arange(height, device=inputs.device) * self.grid[0] // height
        columns = torch.arange(width, device=inputs.device) * self.grid[1] // width
        cell = rows.unsqueeze(1) * self.grid[1] + columns  # (H, W)
        out: Tensor = self.network(inputs * self.gate.factors().to(inputs.dtype)[cell])
        return out


def attach(model: Model, site: Site, *, gain: Gain, temperature: float, patches: int) -> nn.Module:
    """Return the model's network with a gate; its parts depend on the architecture and the arguments only.

    Raises:
        ModelError: The network is gated already, or has no such site; the message says why.
    """
    network: nn.Module = model.module
    if gates(network):
        raise ModelError(f"model {model.name!r} has a gate already", hint="train the plain architecture")
    factor: float | Literal["d"] = "d" if gain == "d" else 1.0
    if site == "input":
        return GatedInput(ScoresActivation(model.input_size[0], dim=1, gain=factor, temperature=temperature), network)
    if site == "patches":
        gate = ScoresActivation(patches**2, dim=1, gain=factor, temperature=temperature)
        return GatedPatches(gate, network, side=patches)
    name, head = _classifier(model)
    if site == "channels":
        gate = ScoresActivation(head.in_features, gain=factor, temperature=temperature)
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, GatedHead(gate, head))
        return network
    return _positions(model, factor, temperature)


def _classifier(model: Model) -> tuple[str, nn.Linear]:
    """Return the one linear classifier of a model, by name."""
    getter = getattr(model.module, "get_classifier", None)
    if getter is not None and isinstance(getter(), (tuple, list, nn.ModuleList)):
        raise ModelError(
            f"model {model.name!r} has several classifiers whose scores are averaged, so one gate would see only a"
            " part of what it decides by",
            hint="use a model with one classifier",
        )
    name = model.structure.head
    head = None if name is None else model.module.get_submodule(name)
    if isinstance(head, nn.Conv2d):
        raise ModelError(
            f"the classifier {name!r} of {model.name!r} is a convolution, which the gate's folding and cached features"
            " do not cover",
            hint="use a model whose classifier is linear, or another site",
        )
    if name is None or not isinstance(head, nn.Linear):
        kind = "not found" if head is None else f"a {type(head).__name__}"
        raise ModelError(f"the classifier of {model.name!r} is {kind}, where one linear layer is needed")
    return name, head


@torch.no_grad()
def _positions(model: Model, gain: float | Literal["d"], temperature: float) -> nn.Module:
    trunk = copy.deepcopy(model.module)
    if not hasattr(trunk, "reset_classifier") or not hasattr(trunk, "get_classifier"):
        raise ModelError(
            f"the pooling of {model.name!r} cannot be replaced: it is no timm model", hint="gate its channels"
        )
    noise = torch.randn(2, *model.input_size, generator=torch.Generator().manual_seed(0)).to(model.device)
    expected, head, norm = trunk(noise), trunk.get_classifier(), nn.Identity()
    if isinstance(getattr(trunk, "fc_norm", None), nn.Module):  # it follows the pooling
        norm, trunk.fc_norm = trunk.fc_norm, nn.Identity()
    try:
        trunk.reset_classifier(0, "")
        maps = trunk(noise)
    except Exception as error:  # each family of timm has its own limits here, and its own errors
        raise ModelError(f"the pooling of {model.name!r} cannot be replaced: {error}", hint="gate channels") from error
    prefix, last = int(getattr(trunk, "num_prefix_tokens", 0) or 0), getattr(trunk, "output_fmt", "") == "NHWC"
    if maps.ndim not in (3, 4):
        raise ModelError(f"the pooling of {model.name!r} leaves no map of positions", hint="gate its channels")
    count = _cells(maps, prefix=prefix, last=last).shape[1]
    if count < 2:
        raise ModelError(f"the last map of {model.name!r} has one position only", hint="gate its channels")
    rows = round((count * model.input_size[1] / model.input_size[2]) ** 0.5)
    if maps.ndim == 4:
        rows = int(maps.shape[1 if last else 2])
    grid = (rows, count // rows) if rows and count % rows == 0 else (1, count)
    gate = ScoresActivation(count, dim=1, gain=gain, temperature=temperature)
    same = GatedPositions(
        ScoresActivation(count, dim=1, gain="d").to(model.device), norm, head, grid=grid, prefix=prefix, last=last
    )
    if not torch.allclose(same.eval()(maps), expected, rtol=1e-3, atol=1e-4 * (1 + float(expected.abs().max()))):
        raise ModelError(
            f"model {model.name!r} does not average the positions of its last map right before the classifier",
            hint="gate its channels",
        )
    tail = GatedPositions(gate, norm, head, grid=grid, prefix=prefix, last=last)
    return nn.Sequential(OrderedDict(trunk=trunk, tail=tail)).to(model.device)


def folded(network: nn.Module) -> nn.Module:
    """Return a copy of a gated network without the gate, whose next layer has taken the gate in.

    Raises:
        ModelError: The gate is not followed by a linear layer.
    """
    plain = copy.deepcopy(network)
    for name, part in plain.named_modules():
        if isinstance(part, GatedHead):
            fold_(part.gate, part.head)
            if not name:  # the head alone
                return part.head
            parent, _, leaf = name.rpartition(".")
            setattr(plain.get_submodule(parent), leaf, part.head)
            return plain
    raise ModelError("a gate on positions or pixels cannot be folded away", hint="fold a gate on channels")
