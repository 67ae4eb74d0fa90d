"""The three penalties as training objectives for images."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from xaihub import Meta, ParameterError, evaluation_mode
from xaihub.masking import BaselineName
from xaihub_expo.base import Expo, Outputs, steady
from xaihub_expo.images import baselines, cell_opacities, line_opacities, mask_opacities, noisy, shown
from xaihub_expo.penalties import LocalFit, ask, line_fit, local_fit, relative_change, share_missed, squared_change

__all__ = ["Fidelity", "LineFidelity", "Stability"]

Share = Annotated[
    float, Meta(ge=0, description="Penalty's share of the loss when it is switched on (the paper's c); 0 is plain.")
]
Weight = Annotated[
    Annotated[float, Meta(ge=0)] | None, Meta(description="The penalty's weight itself, instead of one that c gives.")
]
Relative = Annotated[
    bool,
    Meta(
        description="Divide by the variance of the logits on the neighbourhood (stability: by their mean square), "
        "so that smaller logits gain nothing."
    ),
]
Every = Annotated[int, Meta(ge=1, description="Penalise every so many steps, and so many times as much.")]
Warmup = Annotated[
    int, Meta(ge=0, description="Epochs of plain training, after which the weight is fixed; 0 fixes it at the start.")
]
Grid = Annotated[int, Meta(ge=2, description="Cells a side of the grid whose opacities are the features.")]
Keep = Annotated[float, Meta(gt=0, lt=1, description="Probability of a cell to stay as it is.")]


class Stability(Expo):
    """ExpO-Stability: the mean squared change of the logits in a neighbourhood of the image."""

    c: Share = 0.1
    weight: Weight = None
    relative: Relative = False
    neighbourhood: Annotated[
        Literal["pixels", "patches"],
        Meta(description="Noise on pixels, or random opacities of the cells of a grid."),
    ] = "pixels"
    radius: Annotated[float, Meta(gt=0, description="Largest noise, where pixels are in [0, 1].")] = 0.05
    grid: Grid = 4
    keep: Keep = 0.8
    baseline: BaselineName = "mean"
    penalty_batch: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Images of a batch that are penalised; by default all."),
    ] = None
    every: Every = 1
    warmup: Warmup = 1
    stop_gradient: Annotated[
        bool, Meta(description="Hold the logits of the unchanged image constant in the penalty.")
    ] = False

    def rows(self, batch: int) -> int:
        """Return the whole batch."""
        return batch

    def penalty(
        self, network: nn.Module, inputs: Tensor, logits: Tensor, outputs: Outputs, generator: torch.Generator
    ) -> Tensor:
        """Return the mean squared difference from one changed copy of each image.

        Raises:
            ParameterError: Held constant, what a relative change divides by would leave a gain in smaller logits.
        """
        if self.relative and self.stop_gradient:
            raise ParameterError("relative and stop_gradient exclude each other", hint="drop one of them")
        if self.neighbourhood == "pixels":
            changed = noisy(inputs, self.radius, self.known().preprocessing.std, generator)
        else:
            cells = self.cells(self.grid, inputs)
            opacity = cell_opacities(len(inputs), 1, cells.count, self.keep, generator)
            changed = shown(inputs, baselines(self.baseline, self.known(), inputs), opacity, cells)[:, 0]
        # Batch statistics and dropout would pass for instability, so both sides are computed without them.
        alike = steady(network)
        with evaluation_mode(network):
            reference = logits if alike else network(inputs)
            moved = network(changed)
        here, there = outputs(reference.unsqueeze(1)), outputs(moved.unsqueeze(1))
        if self.relative:
            return relative_change(there, here)
        return squared_change(there, here.detach() if self.stop_gradient else here)


class LineFidelity(Expo):
    """ExpO-1D-Fidelity on opacities: how far the logits are from affine in the opacity of one random cell."""

    c: Share = 0.005
    weight: Weight = None
    relative: Relative = False
    grid: Grid = 4
    samples: Annotated[int, Meta(ge=3, description="Opacities drawn for each image.")] = 8
    baseline: BaselineName = "mean"
    penalty_batch: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Images of a batch that are penalised; by default a quarter."),
    ] = None
    every: Every = 1
    warmup: Warmup = 1

    def rows(self, batch: int) -> int:
        """Return a quarter of the batch."""
        return max(1, batch // 4)

    def penalty(
        self,
        network: nn.Module,
        inputs: Tensor,
        logits: Tensor,  # noqa: ARG002 - the fits need changed images only
        outputs: Outputs,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the mean squared residual of the lines."""
        cells = self.cells(self.grid, inputs)
        opacity, levels = line_opacities(len(inputs), self.samples, cells.count, generator)
        changed = shown(inputs, baselines(self.baseline, self.known(), inputs), opacity, cells)
        with evaluation_mode(network):
            found = outputs(ask(network, changed))
        return _residual(line_fit(levels.to(found), found), found, relative=self.relative)


class Fidelity(Expo):
    """ExpO-Fidelity on masks: how far the logits are from affine in which cells of a grid are shown."""

    c: Share = 0.01
    weight: Weight = None
    relative: Relative = False
    grid: Grid = 4
    keep: Annotated[
        Keep | None,
        Meta(description="Probability of a cell to be shown; none draws another for each mask, from U[0, 1]."),
    ] = 0.8
    opacities: Annotated[
        Literal["binary", "uniform"],
        Meta(description="Cells are shown or hidden, or have an opacity of U[0.5, 1]."),
    ] = "binary"
    samples: Annotated[
        Annotated[int, Meta(ge=4)] | None,
        Meta(description="Masks drawn for each image; by default 3 (cells + 1)."),
    ] = None
    baseline: BaselineName = "mean"
    penalty_batch: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Images of a batch that are penalised; by default a sixteenth."),
    ] = None
    every: Every = 1
    warmup: Warmup = 1

    def rows(self, batch: int) -> int:
        """Return a sixteenth of the batch."""
        return max(1, batch // 16)

    def penalty(
        self,
        network: nn.Module,
        inputs: Tensor,
        logits: Tensor,  # noqa: ARG002 - the fits need changed images only
        outputs: Outputs,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the mean squared residual of the affine fits; cells that are constant in the sample do not matter.

        Raises:
            ParameterError: There are too few masks for the grid.
        """
        cells = self.cells(self.grid, inputs)
        samples = self.samples or 3 * (cells.count + 1)
        if samples < cells.count + 2:
            raise ParameterError(
                f"{samples} masks are always fitted exactly by the {cells.count} cells of a grid of {self.grid}",
                hint=f"use samples={3 * (cells.count + 1)}",
            )
        opacity = (
            mask_opacities(len(inputs), samples, cells.count, self.keep, generator)
            if self.opacities == "binary"
            else 0.5 + 0.5 * torch.rand(len(inputs), samples, cells.count, generator=generator)
        )
        changed = shown(inputs, baselines(self.baseline, self.known(), inputs), opacity, cells)
        with evaluation_mode(network):
            found = outputs(ask(network, changed))
        return _residual(local_fit(opacity.to(found), found), found, relative=self.relative)


def _residual(fit: LocalFit, outputs: Tensor, *, relative: bool) -> Tensor:
    return share_missed(fit, outputs) if relative else fit.residuals.square().mean()
