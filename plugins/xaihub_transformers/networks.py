"""Networks of transformers as modules from pixels to a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Parameters that hold the tokens before the patches, in the networks' embeddings.
_PREFIX = ("cls_token", "class_embedding", "distillation_token", "register_tokens")
# Networks whose tokens all carry their own position when they enter the first block.
_ABSOLUTE = ("vit", "deit", "dinov2", "dinov2_with_registers")


class Wrapped(nn.Module):
    """A network of transformers as a part of a module from pixels to a tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def token_entrance(self) -> tuple[nn.Module, tuple[int, int], int] | None:
        """Return the module through which all tokens enter the blocks, (rows, columns) of a patch, and prefix tokens.

        None if patches cannot be dropped there: positions are relative, or the mean of all patches is read.
        """
        kind = self.network.config.model_type
        if kind not in _ABSOLUTE or (kind.startswith("dinov2") and isinstance(self, Classifier)):
            return None
        embeddings = self.network.base_model.embeddings
        rows, columns = embeddings.patch_embeddings.projection.kernel_size
        return embeddings.dropout, (rows, columns), prefix_tokens(self)


class Classifier(Wrapped):
    """Returns the logits of a network for image classification."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (B, K) logits of (B, C, H, W) inputs."""
        logits: Tensor = self.network(pixel_values=pixels).logits
        return logits


class Backbone(Wrapped):
    """Returns one row of features per image."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (B, D) features of (B, C, H, W) inputs: those that the network pools, else the class token's."""
        outputs: Any = self.network(pixel_values=pixels)
        pooled = getattr(outputs, "pooler_output", None)
        if pooled is not None:
            return torch.flatten(pooled, 1)
        hidden: Tensor = outputs.last_hidden_state
        if hidden.ndim == 4:
            return hidden.mean((2, 3))
        return hidden[:, 0] if prefix_tokens(self.network) else hidden.mean(1)


class ImageTower(nn.Module):
    """Returns the features of images that are compared with those of texts."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.vision_model: nn.Module = network.vision_model
        self.visual_projection: nn.Module = getattr(network, "visual_projection", nn.Identity())

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (B, D) features of (B, C, H, W) inputs."""
        features: Tensor = self.visual_projection(self.vision_model(pixel_values=pixels).pooler_output)
        return features


def prefix_tokens(network: nn.Module) -> int:
    """Return the number of tokens before the patches: class, distillation and registers."""
    found = {name.rpartition(".")[2]: weight for name, weight in network.named_parameters()}
    return sum(found[name].shape[-2] if found[name].ndim > 1 else 1 for name in _PREFIX if name in found)
