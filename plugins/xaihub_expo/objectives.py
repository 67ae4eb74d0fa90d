"""The three penalties as training objectives for images."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from xaihub import Meta, ParameterError, When, evaluation_mode
from xaihub.masking import BaselineName
from xaihub_expo.base import Expo, Grid, Select, is_deterministic
from xaihub_expo.neighbourhoods import baselines, cell_opacities, faded, line_opacities, mask_opacities, noisy
from xaihub_expo.penalties import (
    line_fit,
    local_fit,
    neighbour_outputs,
    relative_change,
    squared_change,
    unexplained_fraction,
)


class Stability(Expo):
    """ExpO-Stability: the mean squared change of the logits in a neighbourhood of the image."""

    c = 0.1
    neighbourhood: Annotated[
        Literal["pixels", "patches"], Meta(description="Noise on pixels, or random opacities of grid cells.")
    ] = "pixels"
    radius: Annotated[
        float, Meta(gt=0, description="Largest noise, for pixels in [0, 1]."), When(neighbourhood="pixels")
    ] = 0.05
    keep: Annotated[
        float, Meta(gt=0, lt=1, description="Probability that a cell stays opaque."), When(neighbourhood="patches")
    ] = 0.8
    grid: Annotated[Grid, When(neighbourhood="patches")] = 4
    baseline: Annotated[BaselineName, When(neighbourhood="patches")] = "mean"
    stop_gradient: Annotated[
        bool, Meta(description="Hold the logits of the unchanged image constant in the penalty.")
    ] = False

    def penalty(
        self, network: nn.Module, inputs: Tensor, logits: Tensor, select: Select, generator: torch.Generator
    ) -> Tensor:
        """Return the mean squared difference from one changed copy of each image.

        Raises:
            ParameterError: relative with stop_gradient, since a constant denominator would reward smaller logits.
        """
        if self.relative and self.stop_gradient:
            raise ParameterError("relative and stop_gradient exclude each other", hint="drop one of them")
        if self.neighbourhood == "pixels":
            changed = noisy(inputs, self.radius, self._model.preprocessing.std, generator)
        else:
            cells = self.cells(inputs)
            opacity = cell_opacities(len(inputs), 1, cells.count, self.keep, generator)
            changed = faded(inputs, baselines(self.baseline, self._model, inputs), opacity, cells)[:, 0]
        # Batch statistics and dropout would count as instability, so both sides are computed without them.
        unchanged = is_deterministic(network)
        with evaluation_mode(network):
            reference = logits if unchanged else network(inputs)
            moved = network(changed)
        here, there = select(reference.unsqueeze(1)), select(moved.unsqueeze(1))
        if self.relative:
            return relative_change(there, here)
        return squared_change(there, here.detach() if self.stop_gradient else here)


class _AffineFit(Expo):
    """The mean squared residual of affine fits to the logits of images whose cells are faded or masked."""

    @abstractmethod
    def draw(self, count: int, cells: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw (b, m, K) opacities, and the regressors of the fit: (b, m) along a line, else (b, m, K)."""

    def penalty(
        self,
        network: nn.Module,
        inputs: Tensor,
        logits: Tensor,  # noqa: ARG002 - only changed images are fitted
        select: Select,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the mean squared residual, if relative divided by the variance of the logits."""
        cells = self.cells(inputs)
        opacity, regressors = self.draw(len(inputs), cells.count, generator)
        changed = faded(inputs, baselines(self.baseline, self._model, inputs), opacity, cells)
        with evaluation_mode(network):
            outputs = select(neighbour_outputs(network, changed))
        fit = (line_fit if regressors.ndim == 2 else local_fit)(regressors.to(outputs), outputs)
        return unexplained_fraction(fit, outputs) if self.relative else fit.residuals.square().mean()


class LineFidelity(_AffineFit):
    """ExpO-1D-Fidelity on opacities: how far the logits are from affine in the opacity of one random cell."""

    penalised_in: ClassVar[int] = 4

    c = 0.005
    samples: Annotated[int, Meta(ge=3, description="Opacities drawn per image.")] = 8

    def draw(self, count: int, cells: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw opacities of one random cell per image."""
        return line_opacities(count, self.samples, cells, generator)


class Fidelity(_AffineFit):
    """ExpO-Fidelity on masks: how far the logits are from affine in which cells of a grid are visible."""

    penalised_in: ClassVar[int] = 16

    c = 1.0
    keep: Annotated[
        Annotated[float, Meta(gt=0, lt=1)] | None,
        Meta(description="Probability that a cell is visible; none: each mask draws its own from U[0, 1]."),
        When(opacities="binary"),
    ] = None
    opacities: Annotated[
        Literal["binary", "uniform"],
        Meta(description="Cells are visible or masked, or have an opacity from U[0.5, 1]."),
    ] = "binary"
    samples: Annotated[
        Annotated[int, Meta(ge=4)] | None, Meta(description="Masks drawn per image [default: 3 (cells + 1)].")
    ] = None

    def draw(self, count: int, cells: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw opacities of all cells.

        Raises:
            ParameterError: Too few masks for the grid.
        """
        samples = self.samples or 3 * (cells + 1)
        if samples < cells + 2:
            raise ParameterError(
                f"samples={samples} is too small: an affine function of {cells} cells fits that many masks exactly",
                hint=f"use samples={3 * (cells + 1)}",
            )
        if self.opacities == "binary":
            opacity = mask_opacities(count, samples, cells, self.keep, generator)
        else:
            opacity = 0.5 + 0.5 * torch.rand(count, samples, cells, generator=generator)
        return opacity, opacity
