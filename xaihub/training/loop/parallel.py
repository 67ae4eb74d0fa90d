"""Whether several processes need to search for weights without a gradient in every step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from xaihub.training.data.loaders import Loader


def every_weight_is_used(network: nn.Module, weights: Iterable[nn.Parameter], loader: Loader) -> bool:
    """Return whether the network's output alone depends on every trainable weight, in a pass over one row.

    A loss depends on the output, so that every weight then has a gradient in every step, whatever terms it has.
    """
    inputs = next(loader.epoch(0))[0].inputs[:1]
    device = next(network.parameters()).device
    with torch.enable_grad():
        network.eval()
        output = network(inputs.to(device))
        if not isinstance(output, Tensor):
            return False
        found = torch.autograd.grad(output.float().sum(), list(weights), allow_unused=True)
    return all(gradient is not None for gradient in found)
