"""Infidelity (Yeh et al. 2019, arXiv 1901.09392, Def. 2.1).

INFD(Phi, f, x) = E_I[(I . Phi - (f(x) - f(x - I)))^2] for random perturbations I.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal
from zlib import crc32

import torch
from torch import Tensor

from xaihub import Case, Measurement, Meta, Metric, Model, ParameterError, When
from xaihub.masking import BaselineName, Removal, masked_forward_passes


class Infidelity(Metric):
    """Mean squared error of the drops in the score that the map predicts for random perturbations."""

    perturbation: Annotated[
        Literal["squares", "noise"],
        Meta(description="Replace a random square by the baseline, or subtract Gaussian noise."),
    ] = "squares"
    units: Annotated[
        Literal["attribution", "gradient"],
        Meta(description="Units of the map: parts of the score, or its change per unit of the input."),
    ] = "attribution"
    scaling: Annotated[
        Literal["optimal", "none"], Meta(description="Scale the map by the best factor >= 0 first, or not.")
    ] = "optimal"
    samples: Annotated[int, Meta(ge=1, description="Number of perturbations; each costs one forward pass.")] = 200
    largest: Annotated[
        float,
        Meta(gt=0, le=1, description="Maximum side of a square, as a fraction of the input's shorter side."),
        When(perturbation="squares"),
    ] = 0.5
    sigma: Annotated[
        float,
        Meta(gt=0, description="Standard deviation of the noise, for pixels in [0, 1]."),
        When(perturbation="noise", units="gradient"),
    ] = 0.1
    baseline: Annotated[BaselineName, When(perturbation="squares")] = "zero"
    output: Annotated[Literal["logit", "probability", "log_probability"], Meta(description="The score f.")] = "logit"

    def score(self, case: Case) -> Measurement:
        """Return the error, in squared units of the score; the details hold that of an all-zero map.

        Raises:
            ParameterError: The perturbation is noise, but the map is not a gradient.
        """
        squares = self.perturbation == "squares"
        if not squares and self.units == "attribution":
            raise ParameterError(
                "perturbation 'noise' cannot be used with units 'attribution'",
                hint="use squares, or units=gradient for maps that are gradients",
            )
        predicted = self._by_squares(case) if squares else self._by_noise(case)
        logits = case.scene.memory.once(self._key(case), lambda: self._logits(case))
        drops = case.scene.score(case.scene.logits.cpu()[None], output=self.output) - case.scene.score(
            logits, output=self.output
        )
        drops = drops.double()
        scale = _best_scale(predicted, drops) if self.scaling == "optimal" else 1.0
        return Measurement(
            value=float((scale * predicted - drops).square().mean()),
            details={"scale": scale, "zero_map": float(drops.square().mean())},
        )

    def _by_squares(self, case: Case) -> Tensor:
        """Return the drop that the map predicts for the removal of each square: (samples,) float64."""
        parts = case.heat.double()
        if self.units == "gradient":
            removed = case.scene.image - case.baseline(self.baseline)
            parts = (removed.cpu().double() * case.explanation.values.double()).sum(0)
        table = torch.nn.functional.pad(parts.cumsum(0).cumsum(1), (1, 0, 1, 0))  # summed areas
        top, left, side = draw_squares(self.samples, self.largest, case.heat.shape, case.seed).unbind(1)
        bottom, right = top + side, left + side
        return table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]

    def _by_noise(self, case: Case) -> Tensor:
        """Return the drop that the map predicts for each perturbation: (samples,) float64."""
        values = case.explanation.values.double()
        noise = draw_noise(self.samples, self.sigma, case.model, case.seed)
        return torch.stack([(values * row.double()).sum() for row in noise])

    def _key(self, case: Case) -> tuple[object, ...]:
        how = (self.largest, self.baseline) if self.perturbation == "squares" else (self.sigma,)
        return ("logits of perturbations", self.perturbation, self.samples, *how, case.seed)

    def _logits(self, case: Case) -> Tensor:
        model, image = case.model, case.scene.image
        if self.perturbation == "noise":
            noise = draw_noise(self.samples, self.sigma, model, case.seed)
            batches = masked_forward_passes(model, image, noise, removal=_Subtract(), total=self.samples)
        else:
            size = (image.shape[1], image.shape[2])
            batches = masked_forward_passes(
                model,
                image,
                draw_squares(self.samples, self.largest, size, case.seed),
                removal=case.removal(self.baseline),
                expand=lambda squares: without_squares(squares, size),
            )
        return torch.cat([batch.outputs for batch in batches]).cpu()


class _Subtract(Removal):
    """Subtracts each "mask", here a perturbation, from the image."""

    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        """Return the (n, K) logits of the image minus each of (n, C, H, W) perturbations."""
        return model(image - masks)


def draw_squares(samples: int, largest: float, size: tuple[int, ...], seed: int) -> Tensor:
    """Draw (samples, 3) top, left, side: side lengths uniform from 1 pixel, positions uniform inside the input."""
    generator = torch.Generator().manual_seed(crc32(f"squares {seed}".encode()))
    fractions = torch.rand(3, samples, generator=generator, dtype=torch.float64)
    height, width = size
    side = 1 + (fractions[2] * max(1, round(largest * min(height, width)))).long()
    top, left = ((one * (length - side + 1)).long() for one, length in zip(fractions, (height, width), strict=False))
    return torch.stack([top, left, side], dim=1)


def without_squares(squares: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (n, 1, H, W) masks that are False inside (n, 3) squares."""
    top, left, side = squares.unsqueeze(2).unbind(1)  # (n, 1) each
    rows, columns = (torch.arange(length, device=squares.device) for length in size)
    inside_rows = (rows >= top) & (rows < top + side)  # (n, H)
    inside_columns = (columns >= left) & (columns < left + side)  # (n, W)
    return ~(inside_rows.unsqueeze(2) & inside_columns.unsqueeze(1)).unsqueeze(1)


def draw_noise(samples: int, sigma: float, model: Model, seed: int) -> Iterator[Tensor]:
    """Draw (1, C, H, W) perturbations in the model's units one by one, so that batch sizes do not matter."""
    generator = torch.Generator().manual_seed(crc32(f"noise {seed}".encode()))
    spread = torch.tensor(model.preprocessing.std).view(-1, 1, 1)
    for _ in range(samples):
        yield torch.randn(1, *model.input_size, generator=generator) * (sigma / spread)


def _best_scale(predicted: Tensor, drops: Tensor) -> float:
    """Return the factor >= 0 that minimises the error; a negative one would invert the map."""
    power = float(predicted.square().sum())
    return max(0.0, float((predicted * drops).sum()) / power) if power > 0 else 0.0
