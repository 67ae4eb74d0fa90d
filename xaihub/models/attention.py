"""Attention probabilities of token transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from xaihub.errors import ExplainerRefused
from xaihub.models.sharing import locked


@contextmanager
def recorded(network: nn.Module, *, who: str, locks: Any) -> Iterator[list[Tensor]]:
    """Record what `Model.attention` describes, for the network of the model called `who`."""
    blocks: list[Any] = [
        module
        for module in network.modules()
        if hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Module)
    ]
    if not blocks:
        reason = getattr(network, "black_box", "")  # why it has no layers
        what = "has no attention layers whose probabilities can be recorded"
        raise ExplainerRefused(f"model {who!r} {what}{reason and ': '}{reason}")
    maps: list[Tensor] = []

    def record(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        maps.append(output)

    with locked(locks), ExitStack() as stack:
        for module in blocks:
            stack.callback(setattr, module, "fused_attn", module.fused_attn)
            module.fused_attn = False
            stack.callback(module.attn_drop.register_forward_hook(record).remove)
        yield maps
