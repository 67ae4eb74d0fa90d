"""Attention of transformers' networks, computed in timm's way, so that methods can read its probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "xaihub"


class Mark(nn.Identity):
    """Receives the attention probabilities of a layer, as timm's `attn_drop` does."""


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 - none in evaluation
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return (B, T, heads, D) values and the (B, heads, T, T) probabilities, which fused attention does not compute."""
    if getattr(module, "fused_attn", True):
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
        return mixed.transpose(1, 2).contiguous(), None
    scores = query * (query.shape[-1] ** -0.5 if scaling is None else scaling) @ key.transpose(2, 3)
    probabilities = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    probabilities = module.attn_drop(probabilities)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(NAME, attend)


def mark(network: nn.Module, size: tuple[int, int, int]) -> None:
    """Give the modules that attend timm's attributes `fused_attn` and `attn_drop`.

    They are those that call `attend` in a forward pass.
    """
    found: list[Any] = []

    def noting(module: Any, *given: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        found.append(module)
        return attend(module, *given, **options)

    AttentionInterface.register(NAME, noting)
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *size))
    finally:
        AttentionInterface.register(NAME, attend)
    for module in found:
        module.fused_attn, module.attn_drop = True, Mark()
