"""CAMs without gradients: Score-CAM (Wang et al. 2020, arXiv 1910.01279) and Eigen-CAM (Muhammad and Yeasin 2020).

Score-CAM's notation follows its Algorithm 1: each channel's map, upsampled and scaled to [0, 1], masks the image.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from xaihub import Layer, Meta, Model, Passes, ResolvedTarget
from xaihub.masking import make_removal, masked_forward_passes
from xaihub_cam.base import CAM, activations


class ScoreCAM(CAM):
    """Weight each channel by the class score of the image masked with that channel."""

    channels: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Use only the N channels that vary most over the image; none for all channels."),
        Passes(extra=1, maximum=True),
    ] = None

    def maps(self, model: Model, layer: Layer, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        """Return the (B, h, w) maps."""
        cells = activations(model, layer, inputs).float()
        rows = [self._map(model, inputs[row], cells[row], target[row : row + 1]) for row in range(len(inputs))]
        return torch.stack(rows)

    def _map(self, model: Model, image: Tensor, cells: Tensor, target: ResolvedTarget) -> Tensor:
        if self.channels is not None and self.channels < len(cells):
            # Sorted, so that lowering the limit by one keeps the order of the remaining channels.
            cells = cells[cells.flatten(1).std(1).topk(self.channels).indices.sort().values]
        size = (image.shape[1], image.shape[2])
        batches = masked_forward_passes(
            model,
            image,
            cells,
            removal=make_removal("zero", model, image),
            expand=lambda part: _unit_masks(part, size),
        )
        scores = torch.cat([target.score(batch.outputs) for batch in batches])
        # The paper subtracts the baseline's score, which is the same for all channels: softmax ignores it.
        weights = scores.softmax(0)
        return torch.einsum("c,chw->hw", weights, cells).relu()


def _unit_masks(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (n, 1, H, W) masks in [0, 1]; a constant channel masks the whole image."""
    masks = interpolate(cells.unsqueeze(1), size=size, mode="bilinear", align_corners=False)
    lowest, highest = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
    return torch.where(highest > lowest, (masks - lowest) / (highest - lowest), 0)


class EigenCAM(CAM):
    """Project each cell's activations onto their first principal component."""

    class_agnostic = True
    plain_first = True

    centre: Annotated[bool, Meta(description="Subtract each channel's mean first; the paper does not.")] = False

    def maps(self, model: Model, layer: Layer, inputs: Tensor, target: ResolvedTarget) -> Tensor:  # noqa: ARG002
        """Return the (B, h, w) maps."""
        cells = activations(model, layer, inputs).float()
        table = cells.flatten(2).transpose(1, 2)  # (B, h w, C)
        if self.centre:
            table = table - table.mean(1, keepdim=True)
        _, _, components = torch.linalg.svd(table, full_matrices=False)
        projected = (table @ components[:, 0].unsqueeze(2)).squeeze(2)  # (B, h w)
        # A singular vector is as good as its negative; the strongest cell decides.
        strongest = projected.gather(1, projected.abs().argmax(1, keepdim=True))
        maps: Tensor = (projected * strongest.sign()).relu().unflatten(1, cells.shape[-2:])
        return maps
