"""Token dropping: deactivation for vision transformers. Masked patches are not computed at all.

This is our extension; the paper covers convolutional networks. A transformer's blocks accept any number of tokens, each
of which carries its own position, so a dropped token has no effect: it contributes neither a value nor attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from xaihub import ExplainerRefused
from xaihub_convad.deactivation.live_map import SLACK


@dataclass(frozen=True)
class TokenNetwork:
    """A transformer whose blocks attend from every token to every token."""

    network: nn.Module  # the network
    entrance: nn.Module  # the module that receives all tokens, with position embeddings, before the first block
    patch: tuple[int, int]  # (rows, columns) of pixels per patch
    prefix: int  # tokens before the patches (class, distillation, registers), which are always kept
    empty: Callable[[int], Tensor] | None  # outputs for n images without patch tokens; None if the network handles them

    @classmethod
    def of(cls, network: nn.Module) -> TokenNetwork | None:
        """Return how to drop the network's tokens, or None if it is not a plain vision transformer.

        Raises:
            ExplainerRefused: It is a transformer whose tokens cannot be dropped.
        """
        from timm.models.vision_transformer import VisionTransformer
        from torchvision.models import VisionTransformer as TorchvisionTransformer

        if isinstance(network, VisionTransformer):
            return cls._timm(network)
        if isinstance(network, TorchvisionTransformer):
            side = network.patch_size
            return cls(network, network.encoder.dropout, (side, side), 1, None)
        if reason := getattr(network, "black_box", ""):  # why it has no layers
            raise ExplainerRefused(
                f"activations cannot be switched off: {reason}", hint="use another baseline for this model"
            )
        find: Any = getattr(network, "token_entrance", None)  # an adapter's network
        if find is not None and (found := find()) is not None:
            entrance, patch, prefix = found
            return cls(network, entrance, patch, prefix, None)
        _refuse_attention(network)
        return None

    @classmethod
    def _timm(cls, network: Any) -> TokenNetwork:
        embed = network.patch_embed
        projection: Any = getattr(embed, "proj", None)
        plain = isinstance(projection, nn.Conv2d) and projection.kernel_size == projection.stride
        if not plain or hasattr(embed, "backbone"):
            raise ExplainerRefused(
                f"tokens cannot be dropped: layer 'patch_embed' ({type(embed).__name__}) mixes neighbouring patches"
            )
        odd = next((name for name, part in network.named_modules() if _is_relative(part)), None)
        if odd is not None:
            raise ExplainerRefused(f"tokens cannot be dropped: layer {odd!r} needs every token's position on the grid")
        pools_patches = network.attn_pool is not None or network.global_pool not in ("token", "")
        prefix = int(network.num_prefix_tokens)

        def empty(rows: int) -> Tensor:
            features = next(network.parameters()).new_zeros(rows, network.num_features)
            outputs: Tensor = network.head(network.head_drop(network.fc_norm(features)))
            return outputs

        rows, columns = projection.kernel_size
        return cls(network, network.patch_drop, (rows, columns), prefix, empty if pools_patches or not prefix else None)

    def forward(self, call: Callable[[Tensor], Tensor], inputs: Tensor, kept: Tensor, threshold: float) -> Tensor:
        """Return the outputs for (N, C, H, W) inputs under (N, 1, H, W) masks of 0 and 1.

        A patch stays if its visible fraction reaches `threshold`; masked pixels inside it become 0. Rows with equally
        many tokens run together, so no row computes more tokens than it has.
        """
        inputs = torch.where(kept > 0, inputs, torch.zeros((), dtype=inputs.dtype, device=inputs.device))
        live = avg_pool2d(kept, self.patch, ceil_mode=True).flatten(1) >= threshold * (1 - SLACK)
        counts = live.sum(1)
        order = counts.argsort(dim=0, stable=True)
        # The live patches of each row first, in the order of the grid.
        places = live.logical_not().to(torch.uint8).argsort(dim=1, stable=True) + self.prefix
        parts: list[Tensor] = []
        start = 0
        for count, rows in zip(*(part.tolist() for part in counts.unique(return_counts=True)), strict=True):
            chosen = order[start : start + rows]
            start += rows
            if count == 0 and self.empty is not None:
                parts.append(self.empty(rows))
            elif count == live.shape[1]:
                parts.append(call(inputs[chosen]))
            else:
                parts.append(self._dropped(call, inputs[chosen], places[chosen, :count]))
        outputs = torch.cat(parts)
        return torch.empty_like(outputs).index_copy(0, order, outputs)

    def _dropped(self, call: Callable[[Tensor], Tensor], inputs: Tensor, places: Tensor) -> Tensor:
        prefix = torch.arange(self.prefix, device=places.device).expand(len(places), -1)
        keep = torch.cat([prefix, places], dim=1).unsqueeze(2)

        def choose(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            tokens = args[0]
            return (tokens.gather(1, keep.expand(-1, -1, tokens.shape[2])), *args[1:])

        handle = self.entrance.register_forward_pre_hook(choose)
        try:
            return call(inputs)
        finally:
            handle.remove()


def _is_relative(module: nn.Module) -> bool:
    names = ("rel_pos", "rope", "relative_position_bias_table", "rel_pos_bias")
    return any(getattr(module, name, None) is not None for name in names)


def _refuse_attention(network: nn.Module) -> None:
    """Refuse other transformers with the reason, before a forward pass reaches one of their functions."""
    for name, module in network.named_modules():
        if hasattr(module, "fused_attn") or hasattr(module, "window_size"):
            raise ExplainerRefused(
                f"activations cannot be switched off: layer {name!r} ({type(module).__name__}) attends between"
                " positions, and only plain vision transformers can drop tokens (their grid never changes)",
                hint="use another baseline for this model",
            )
