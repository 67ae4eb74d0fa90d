"""Metrics of explanations of images: fidelity and stability of local linear models, and stability of any map.

Notation: f is the explained output as a function of which features are visible; g is the local linear model, e its
coefficients with the intercept; x' is the image with a little noise.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from xaihub import Case, Explanation, Measurement, Meta, Metric, MetricRefused, generator_for
from xaihub.masking import batch_rows
from xaihub_expo.neighbourhoods import mask_opacities, noisy
from xaihub_expo.surrogate import Surrogate, outputs, read_surrogate, surrogate_parameters

Masks = Annotated[
    int, Meta(ge=2, description="Number of fresh masks; one forward pass each, shared by all explainers.")
]
Keep = Annotated[
    Annotated[float, Meta(gt=0, lt=1)] | None,
    Meta(description="Probability that a feature is visible; none: each mask draws its own from U[0, 1]."),
]
Draws = Annotated[int, Meta(ge=1, description="Number of noisy copies; each is explained.")]
Radius = Annotated[float, Meta(gt=0, le=1, description="Largest noise, for pixels in [0, 1].")]


class PointFidelity(Metric):
    """(g(1) - f(1))^2: error of the local linear model at the image itself."""

    def score(self, case: Case) -> float:
        """Return the squared error at the image.

        Raises:
            MetricRefused: The explainer gives no local linear model.
        """
        surrogate = _surrogate(case)
        everything = torch.ones(1, surrogate.features.count)
        output = case.scene.score(case.scene.logits[None], output=surrogate_parameters(case.explanation)["output"])
        return float((surrogate(everything) - output.double().cpu()).square())


class NeighbourhoodFidelity(Metric):
    """E (g(z) - f(z))^2 over random masks z: error of the local linear model around the image."""

    relative: ClassVar[bool] = False

    masks: Masks = 100
    keep: Keep = 0.8

    def score(self, case: Case) -> Measurement:
        """Return the mean squared error; the details hold the variance of the output over the same masks.

        Raises:
            MetricRefused: The explainer gives no local linear model, or the output does not vary.
        """
        key = ("neighbourhood fidelity", self.masks, self.keep, case.seed)
        error, variance = case.memory.once(key, lambda: self._errors(case))
        if self.relative and variance <= 0:
            raise MetricRefused("the output is the same under all masks, so a relative error has no meaning")
        return Measurement(value=error / variance if self.relative else error, details={"variance": variance})

    def _errors(self, case: Case) -> tuple[float, float]:
        surrogate = _surrogate(case)
        # Common random numbers: all explainers and models get the same masks for this image.
        generator = generator_for(f"masks around an image {case.seed}", case.scene.image)
        masks = mask_opacities(1, self.masks, surrogate.features.count, self.keep, generator)[0]
        found = outputs(case, surrogate, masks, (self.masks, self.keep, case.seed))
        return float((surrogate(masks) - found).square().mean()), float(found.var(correction=0))


class RelativeNeighbourhoodFidelity(NeighbourhoodFidelity):
    """NF / Var f over the same masks: 0 is a perfect prediction, 1 is no better than the mean output."""

    relative = True


class SurrogateStability(Metric):
    """E ||e(x') - e(x)||^2: change of the local linear model under small noise on the image."""

    relative: ClassVar[bool] = False

    draws: Draws = 3
    radius: Radius = 0.05

    def score(self, case: Case) -> Measurement:
        """Return the squared distance, summed over coefficients and intercept, averaged over noisy copies.

        Raises:
            MetricRefused: The explainer gives no local linear model, its features depend on the image, or the change
                is relative and all coefficients are zero.
        """
        surrogate = _surrogate(case)
        if str(surrogate_parameters(case.explanation)["features"]).startswith("superpixels"):
            raise MetricRefused(
                "superpixels of a noisy copy differ from the image's, so their coefficients cannot be compared",
                hint=f"-p {case.explanation.explainer}.features=grid:7",
            )
        size = float(surrogate.coefficients.square().sum())
        if self.relative and size == 0:
            raise MetricRefused("all coefficients are zero, so a relative change has no meaning")
        explained = _explained(case, self.draws, self.radius)
        vectors = [read_surrogate(case, explanation, image).vector for image, explanation in explained]
        change = float((torch.stack(vectors) - surrogate.vector).square().sum(1).mean())
        return Measurement(value=change / size if self.relative else change, details={"squared_norm": size})


class RelativeSurrogateStability(SurrogateStability):
    """S / ||beta||^2, with beta the coefficients without the intercept."""

    relative = True


class SaliencyStability(Metric):
    """The mean squared change per pixel of any explainer's map under small noise on the image."""

    relative: ClassVar[bool] = False

    draws: Draws = 3
    radius: Radius = 0.05

    def score(self, case: Case) -> Measurement:
        """Return the mean over pixels and noisy copies.

        Raises:
            MetricRefused: The map's explainer is unknown, or the change is relative and the map is zero.
        """
        here = case.explanation.values.double()
        size = float(here.square().mean())
        if self.relative and size == 0:
            raise MetricRefused("the map is zero, so a relative change has no meaning")
        maps = torch.stack([found.values.double() for _, found in _explained(case, self.draws, self.radius)])
        change = float((maps - here).square().mean())
        cosine = torch.nn.functional.cosine_similarity(maps.flatten(1), here.flatten()[None], dim=1).mean()
        return Measurement(
            value=change / size if self.relative else change, details={"mean_square": size, "cosine": float(cosine)}
        )


class RelativeSaliencyStability(SaliencyStability):
    """The mean squared change of a map over its mean square."""

    relative = True


def _surrogate(case: Case) -> Surrogate:
    return case.memory.once(("surrogate",), lambda: read_surrogate(case, case.explanation, case.scene.image))


def _explained(case: Case, draws: int, radius: float) -> list[tuple[Tensor, Explanation]]:
    """Explain noisy copies for the map's class and with its random numbers, so that only the image differs."""

    def explain() -> list[tuple[Tensor, Explanation]]:
        image = case.scene.image
        generator = generator_for(f"noise on an image {case.seed}", image)
        copies = noisy(image.expand(draws, -1, -1, -1), radius, case.model.preprocessing.std, generator)
        seed = int(case.explanation.metadata.get("seed", case.seed))
        found = [made for part in copies.split(batch_rows(case.model)) for made in case.explain_batch(part, seed=seed)]
        return list(zip(copies, found, strict=True))

    return case.memory.once(("explanations under noise", draws, radius, case.seed), explain)
