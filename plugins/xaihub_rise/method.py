"""RISE (Petsiuk, Das, Saenko 2018, arXiv 1806.07421).

Notation follows Sec. 3: N masks, each upsampled from an s x s grid whose cells are kept with probability p (Sec. 3.2).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from xaihub import Attribution, Explainer, Meta, Model, ResolvedTarget, current_generator
from xaihub.masking import BaselineName, make_removal, masked_forward_passes


class RISE(Explainer):
    """Average of random masks, weighted by the target's score on the masked image."""

    stochastic = True
    parallel = True

    masks: Annotated[int, Meta(ge=1, description="Number of random masks; each costs one forward pass.")] = 1000
    cell: Annotated[int, Meta(ge=1, description="Cells per side of the coarse grid (s in the paper).")] = 7
    keep: Annotated[float, Meta(gt=0, lt=1, description="Probability that a cell is visible (p in the paper).")] = 0.5
    baseline: BaselineName = "zero"
    output: Annotated[
        Literal["probability", "logit"],
        Meta(description="The class score that weights a mask; the paper uses the probability."),
    ] = "probability"

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (1, 1, H, W): Eq. 6, the mean of score times mask, divided by the keep probability.

        Values have no natural zero, so their mean over the masks is subtracted; otherwise the density of the masks,
        times that mean, would drown the map.
        """
        image = inputs[0]
        height, width = image.shape[1:]
        draws = self._draw((height, width))
        saliency, density = torch.zeros(2, height, width, device=model.device)
        total = 0.0
        batches = masked_forward_passes(
            model,
            image,
            draws,
            removal=make_removal(self.baseline, model, image),
            expand=lambda part: self._expand(part, (height, width)),
        )
        for batch in batches:
            scores = target.score(batch.outputs, output=self.output)
            saliency += (scores @ batch.masks.flatten(1)).view(height, width)
            density, total = density + batch.masks.sum((0, 1)), total + float(scores.sum())
        if not target.outputs.classify:
            saliency -= density * total / self.masks
        return Attribution(
            values=(saliency / (self.masks * self.keep)).view(1, 1, height, width),
            details={"baseline": self.baseline, "variant": "RISE Eq. 6"},
        )

    def _draw(self, size: tuple[int, int]) -> Tensor:
        """Draw (N, 2 + s^2) rows: a random shift of less than one cell, and the kept cells."""
        generator = current_generator()
        cells = (torch.rand(self.masks, self.cell**2, generator=generator) < self.keep).float()
        limits = [_cell_pixels(side, self.cell) for side in size]
        shifts = torch.stack([torch.randint(0, limit, (self.masks,), generator=generator) for limit in limits], dim=1)
        return torch.cat([shifts.float(), cells], dim=1)

    def _expand(self, draws: Tensor, size: tuple[int, int]) -> Tensor:
        """Upsample each grid bilinearly to (s + 1) cells' pixels and crop (H, W) at its shift (Sec. 3.2)."""
        grids = draws[:, 2:].view(-1, 1, self.cell, self.cell)
        height, width = size
        # Sampling the enlarged grid at shifted pixel centres equals enlarging and cropping, without the copy.
        enlarged = [(self.cell + 1) * _cell_pixels(side, self.cell) for side in size]
        rows = _centres(draws[:, 0], height, enlarged[0])
        columns = _centres(draws[:, 1], width, enlarged[1])
        where = torch.stack(
            [columns.unsqueeze(1).expand(-1, height, -1), rows.unsqueeze(2).expand(-1, -1, width)], dim=-1
        )
        return grid_sample(grids, where, mode="bilinear", padding_mode="border", align_corners=False)


def _cell_pixels(side: int, cells: int) -> int:
    return -(-side // cells)  # rounded up: CH = ceil(H / s)


def _centres(shifts: Tensor, side: int, enlarged: int) -> Tensor:
    """Return (n, side) positions in [-1, 1] of the cropped pixels within the enlarged grid."""
    pixels = shifts.unsqueeze(1) + torch.arange(side, device=shifts.device) + 0.5
    return pixels / enlarged * 2 - 1
