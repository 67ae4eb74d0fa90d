"""How the patches of an image lie in a backbone's features, and which parts of the backbone make those features."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xaihub import Layout, ModelError


@dataclass(frozen=True)
class PatchGrid:
    """The layout of features: order of axes, (rows, columns), tokens before the patches, features per patch."""

    layout: Layout
    grid: tuple[int, int]
    prefix: int
    width: int

    def flatten(self, features: Tensor) -> Tensor:
        """Bring features to (B, N, L)."""
        if self.layout is Layout.NCHW:
            return features.flatten(2).transpose(1, 2)
        return features.flatten(1, 2) if self.layout is Layout.NHWC else features[:, self.prefix :]


def probe(backbone: Any, noise: Tensor) -> tuple[Tensor, int, set[nn.Module]]:
    """Run a network on noise and return its features, its number of classes, and the modules that made the features.

    Raises:
        ModelError: The network does not offer timm's interface, or does not return (B, K) class scores.
    """
    who = type(backbone).__name__
    if not hasattr(backbone, "forward_features") or not hasattr(backbone, "forward_head"):
        raise ModelError(
            f"the patch features of a {who} cannot be read: it has no forward_features", hint="use a timm architecture"
        )
    called: set[nn.Module] = set()
    handles = [module.register_forward_pre_hook(lambda m, _: called.add(m)) for module in backbone.modules()]
    try:
        with torch.no_grad():
            features = backbone.forward_features(noise)
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        scores = backbone(noise)
    if not isinstance(scores, Tensor) or scores.ndim != 2 or scores.shape[1] < 1:
        raise ModelError(f"a {who} does not return one row of class scores per image")
    return features, int(scores.shape[1]), called


def find_grid(backbone: Any, features: Any) -> PatchGrid:
    """Read the layout from the network's attributes, never from sizes: a 7 x 7 x 7 map is ambiguous.

    Raises:
        ModelError: The features do not form a grid over the image, or only a single cell.
    """
    who = type(backbone).__name__
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        shape = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise ModelError(f"the features of a {who} do not form a grid over the image: forward_features returns {shape}")
    if features.ndim == 4:
        last = str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC")
        _, a, b, c = features.shape
        found = PatchGrid(Layout.NHWC, (a, b), 0, c) if last else PatchGrid(Layout.NCHW, (b, c), 0, a)
    else:
        prefix = int(getattr(backbone, "num_prefix_tokens", 0))
        grids = [getattr(getattr(backbone, name, None), "grid_size", None) for name in ("patch_embed", "stem")]
        grid = next(filter(None, grids), None)
        tokens = features.shape[1] - prefix
        if grid is None or grid[0] * grid[1] != tokens:
            raise ModelError(
                f"the {tokens} patch tokens of a {who} cannot be arranged in a grid: its patch embedding"
                f" {'has no grid_size' if grid is None else f'has {grid[0]}x{grid[1]} patches'}"
            )
        found = PatchGrid(Layout.NTC, (int(grid[0]), int(grid[1])), prefix, features.shape[2])
    if found.grid[0] * found.grid[1] < 2:
        raise ModelError(
            f"the features of a {who} are a single cell at this input size",
            hint="use a larger input or output_stride=8",
        )
    return found


def check_attention(backbone: Any, grid: PatchGrid) -> None:
    """Refuse networks that cannot keep masked patches out of attention.

    Raises:
        ModelError: There is no mask over patches, or patches mix before the first attention.
    """
    who = type(backbone).__name__
    if grid.layout is not Layout.NTC or "attn_mask" not in inspect.signature(backbone.forward_features).parameters:
        raise ModelError(f"a {who} has no attention mask over its patches", hint="use mask=pixel")
    projection = getattr(backbone.patch_embed, "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.kernel_size != projection.stride:
        raise ModelError(f"the patch embedding of a {who} mixes neighbouring patches", hint="use mask=pixel")


def strip(backbone: Any, noise: Tensor, features: Tensor, called: set[nn.Module]) -> None:
    """Remove the parts with weights that the features do not need, and disable dropout, to whose noise the loss fits.

    A part is not needed if neither it nor a part of it was called for the features. Some parts, such as relative
    positions, are read without a call; if removal changes the features, everything is put back.
    """
    for module in backbone.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    unused = {
        name: child
        for name, child in backbone.named_children()
        if next(child.parameters(), None) is not None and not any(module in called for module in child.modules())
    }
    for name in unused:
        setattr(backbone, name, nn.Identity())
    try:
        with torch.no_grad():
            same = bool(torch.equal(backbone.forward_features(noise), features))
    except Exception:  # whatever a network raises when a part is missing
        same = False
    for name, child in unused.items() if not same else ():
        setattr(backbone, name, child)
