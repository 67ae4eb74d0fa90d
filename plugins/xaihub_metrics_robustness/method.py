"""Robustness of explanations to small changes of the image, estimated by sampling.

Notation: Phi(x) is the explanation of x for a fixed class, y a copy of x with noise inside a ball of radius r.
"""

from __future__ import annotations

from typing import Annotated, ClassVar
from zlib import crc32

import torch
from torch import Tensor

from xaihub import Case, Measurement, Meta, Metric, MetricRefused
from xaihub.masking import batch_rows


class MaxSensitivity(Metric):
    """The largest change of the explanation in a ball around the image (Yeh et al. 2019, Def. 3.1)."""

    per_distance: ClassVar[bool] = False

    samples: Annotated[int, Meta(ge=1, description="Number of noisy copies; each is explained.")] = 10
    radius: Annotated[
        float, Meta(gt=0, le=1, description="Maximum change per pixel and channel, for pixels in [0, 1].")
    ] = 0.02
    relative: Annotated[bool, Meta(description="Divide by the norm of the map, so that its scale does not matter.")] = (
        True
    )

    def score(self, case: Case) -> Measurement:
        """Return the largest change, divided by ||Phi(x)|| if relative; the details hold the mean.

        Raises:
            MetricRefused: The map's explainer is unknown, or the map is zero and a relative change has no meaning.
        """
        norm = float(case.explanation.values.double().norm()) if self.relative else 1.0
        if norm == 0:
            raise MetricRefused("the map is zero, so its relative change has no meaning", hint="use relative=false")
        maps, images = _changes(case, self.samples, self.radius)
        changes = (maps / images if self.per_distance else maps) / norm
        return Measurement(value=float(changes.max()), details={"mean": float(changes.mean())})


class LocalLipschitz(MaxSensitivity):
    """The largest change of the explanation relative to that of the image (Alvarez-Melis and Jaakkola 2018)."""

    per_distance = True


def draw_noise(samples: int, radius: float, size: tuple[int, ...], seed: int) -> Tensor:
    """Draw (samples, C, H, W) noise, uniform within `radius` of 0 (an L-infinity ball), for pixels in [0, 1]."""
    # A stream of its own, independent of what the explainer draws from the same seed.
    generator = torch.Generator().manual_seed(crc32(f"noisy copies {seed}".encode()))
    # One by one, so that a smaller number of samples is a prefix of a larger one.
    return torch.stack([(torch.rand(size, generator=generator) * 2 - 1) * radius for _ in range(samples)])


def _changes(case: Case, samples: int, radius: float) -> tuple[Tensor, Tensor]:
    """Explain the noisy copies for the same class, once for all metrics with the same parameters.

    Returns:
        (samples,) Euclidean norms of the changes of the map, and of those of the image with pixels in [0, 1].
    """

    def explain() -> tuple[Tensor, Tensor]:
        image = case.scene.image
        spread = torch.tensor(case.model.preprocessing.std).view(-1, 1, 1)  # pixels to the model's units
        noise = draw_noise(samples, radius, tuple(image.shape), case.seed)
        # The explainer draws the same random numbers as for the map, so that only the image differs.
        seed = int(case.explanation.metadata.get("seed", case.seed))
        distances = []
        for part in noise.split(batch_rows(case.model)):
            explained = case.explain_batch(image + (part / spread).to(image), seed=seed)
            distances += [(found.values - case.explanation.values).double().norm() for found in explained]
        return torch.stack(distances), noise.double().flatten(1).norm(dim=1)

    return case.memory.once(("explanations of noisy copies", samples, radius, case.seed), explain)
