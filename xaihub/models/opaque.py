"""Compiled networks whose layers run no hooks: modules of torch.jit and programs of torch.export, as black boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Opaque(nn.Module):
    """A network without hooks, as a part of one that has them.

    Attributes:
        reason: Why its layers run no hooks.
    """

    reason = "its layers are compiled by torch.jit, which runs no hooks"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Any:
        """Return what the network returns."""
        return self.network(inputs)


class Exported(Opaque):
    """The module of a torch.export program, in the mode in which it was exported.

    A program for a fixed number of images is called as often as needed; the last call is filled with copies.
    """

    reason = "it is a program of torch.export, whose layers run no hooks"

    def __init__(self, network: torch.fx.GraphModule) -> None:
        super().__init__(network)
        for part in self.modules():
            part.training = False  # a program has no modes, and its `eval` raises
        example = next((node.meta.get("val") for node in network.graph.nodes if node.op == "placeholder"), None)
        rows = example.shape[0] if isinstance(example, Tensor) and example.ndim else None
        self.rows = rows if isinstance(rows, int) else None

    def train(self, mode: bool = True) -> Exported:  # noqa: ARG002 - the signature of torch
        """Do nothing."""
        return self

    def forward(self, inputs: Tensor) -> Any:
        """Return what the program returns for all images."""
        if self.rows is None or len(inputs) == self.rows:
            return self.network(inputs)
        from torch.utils._pytree import tree_map

        missing = -len(inputs) % self.rows
        filled = torch.cat([inputs, inputs[-1:].expand(missing, *inputs.shape[1:])])
        outputs = [self.network(part) for part in filled.split(self.rows)]
        return tree_map(lambda *parts: torch.cat(parts)[: len(inputs)], *outputs)


def opened(network: Any) -> nn.Module:
    """Return a module that can be prepared like any other: what torch.compile compiled, or a wrapped program."""
    network = getattr(network, "_orig_mod", network)  # what torch.compile returned skips hooks
    if isinstance(network, torch.export.ExportedProgram):
        network = network.module()
    if isinstance(network, torch.fx.GraphModule) and "eval" in vars(network):  # exported
        return Exported(network)
    return network  # type: ignore[no-any-return]


def hookable(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules on which hooks run, by name, without the network itself."""
    if isinstance(getattr(network, "shell_network", network), Opaque):
        return {}
    parts = network.named_modules()
    return {name: part for name, part in parts if name and not isinstance(part, torch.jit.ScriptModule)}
