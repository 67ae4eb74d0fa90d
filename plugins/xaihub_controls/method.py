"""Maps that are independent of the model: noise, edges, a centred Gaussian. A metric that prefers one is flawed."""

from __future__ import annotations

from typing import Annotated

import torch
from skimage.filters import sobel
from torch import Tensor

from xaihub import Explainer, Meta, Model, ResolvedTarget, generator_for


class RandomControl(Explainer):
    """Uniform noise in [0, 1), one value per pixel."""

    stochastic = True
    class_agnostic = True

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:  # noqa: ARG002
        """Return (1, 1, H, W) noise."""
        generator = generator_for(str(int(torch.randint(2**31, ()))), inputs)
        return torch.rand(1, 1, *inputs.shape[2:], generator=generator)


class EdgesControl(Explainer):
    """Sobel magnitude of the image."""

    class_agnostic = True

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:  # noqa: ARG002
        """Return (B, 1, H, W) magnitudes, in units of [0, 1] pixels."""
        grey = model.preprocessing.denormalise(inputs).mean(1).cpu().numpy()
        return torch.stack([torch.from_numpy(sobel(image)) for image in grey]).unsqueeze(1)


class CentreControl(Explainer):
    """A Gaussian at the centre of the input."""

    class_agnostic = True

    spread: Annotated[float, Meta(gt=0, description="Standard deviation, as a fraction of each side.")] = 0.25

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:  # noqa: ARG002
        """Return (B, 1, H, W): 1 at the centre of the image."""
        # Measured from the middle, so that both halves are equal to the last bit.
        y, x = ((torch.arange(side) - (side - 1) / 2) / (side * self.spread) for side in inputs.shape[2:])
        prior = torch.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / 2)
        return prior.expand(len(inputs), 1, *prior.shape)
