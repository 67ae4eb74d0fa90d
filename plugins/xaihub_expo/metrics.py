"""Metrics of explanations of images: fidelity and stability of local linear models, and stability of any map.

Notation: f is the output that is explained, as a function of which features are shown; g is the local linear model, e
its coefficients with the intercept; x' is the image with a little noise.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from xaihub import Case, Explanation, Measurement, Meta, Metric, MetricRefused, generator_for
from xaihub.masking import batch_rows
from xaihub_expo.images import mask_opacities, noisy
from xaihub_expo.surrogate import Surrogate, asked, outputs, read_surrogate

__all__ = [
    "NeighbourhoodFidelity",
    "PointFidelity",
    "RelativeNeighbourhoodFidelity",
    "RelativeSaliencyStability",
    "RelativeSurrogateStability",
    "SaliencyStability",
    "SurrogateStability",
]

Masks = Annotated[int, Meta(ge=2, description="Fresh masks; each costs a forward pass, shared by all explainers.")]
Keep = Annotated[
    Annotated[float, Meta(gt=0, lt=1)] | None,
    Meta(description="Probability of a feature to be shown; none draws another for each mask, from U[0, 1]."),
]
Draws = Annotated[int, Meta(ge=1, description="Noisy copies; each is explained.")]
Radius = Annotated[float, Meta(gt=0, le=1, description="Largest noise on a pixel, where pixels are in [0, 1].")]


class PointFidelity(Metric):
    """(g(1) - f(1))^2: how well the local linear model predicts the output for the image itself."""

    def score(self, case: Case) -> float:
        """Return the squared error at the image.

        Raises:
            MetricRefused: The explainer gives no local linear model.
        """
        surrogate = _surrogate(case)
        everything = torch.ones(1, surrogate.features.count)
        output = case.scene.score(case.scene.logits[None], output=asked(case.explanation)["output"])
        return float((surrogate(everything) - output.double().cpu()).square())


class NeighbourhoodFidelity(Metric):
    """E (g(z) - f(z))^2 over random masks z: how well the local linear model predicts outputs around the image."""

    relative: ClassVar[bool] = False

    masks: Masks = 100
    keep: Keep = 0.8

    def score(self, case: Case) -> Measurement:
        """Return the mean squared error; its details hold the variance of the output over the same masks.

        Raises:
            MetricRefused: The explainer gives no local linear model, or the output does not vary.
        """
        error, variance = self._errors(case)
        if self.relative and variance <= 0:
            raise MetricRefused("the output is the same under all masks, so a relative error has no meaning")
        return Measurement(value=error / variance if self.relative else error, details={"variance": variance})

    def _errors(self, case: Case) -> tuple[float, float]:
        def compute() -> tuple[float, float]:
            surrogate = _surrogate(case)
            # The same masks for every explainer and for every model that gets this image: common random numbers.
            generator = generator_for(f"masks around an image {case.seed}", case.scene.image)
            masks = mask_opacities(1, self.masks, surrogate.features.count, self.keep, generator)[0]
            found = outputs(case, surrogate, masks, (self.masks, self.keep, case.seed))
            error = (surrogate(masks) - found).square().mean()
            return float(error), float(found.var(correction=0))

        return case.memory.once(("neighbourhood fidelity", self.masks, self.keep, case.seed), compute)


class RelativeNeighbourhoodFidelity(NeighbourhoodFidelity):
    """NF / Var f over the same masks: 0 for a perfect prediction, 1 for one no better than the mean output."""

    relative = True


class SurrogateStability(Metric):
    """E ||e(x') - e(x)||^2: how much the local linear model changes when the image hardly does."""

    relative: ClassVar[bool] = False

    draws: Draws = 3
    radius: Radius = 0.05

    def score(self, case: Case) -> Measurement:
        """Return the squared distance, summed over coefficients and intercept, as a mean over noisy copies.

        Raises:
            MetricRefused: The explainer gives no local linear model, its features depend on the image, or all
                coefficients are zero and a relative change has no meaning.
        """
        surrogate = _surrogate(case)
        if str(asked(case.explanation)["features"]).startswith("superpixels"):
            raise MetricRefused(
                "superpixels of a noisy copy are others, so that coefficients cannot be compared",
                hint=f"-p {case.explanation.explainer}.features=grid:7",
            )
        size = float(surrogate.coefficients.square().sum())
        if self.relative and size == 0:
            raise MetricRefused("all coefficients are zero, so a relative change has no meaning")
        vectors = []
        for image, explanation in _explained(case, self.draws, self.radius):
            vectors.append(read_surrogate(case, explanation, image).vector)
        change = float((torch.stack(vectors) - surrogate.vector).square().sum(1).mean())
        return Measurement(value=change / size if self.relative else change, details={"squared_norm": size})


class RelativeSurrogateStability(SurrogateStability):
    """S / ||beta||^2, where beta are the coefficients without the intercept."""

    relative = True


class SaliencyStability(Metric):
    """The mean squared change of a map, a pixel, when the image hardly changes; for maps of any explainer."""

    relative: ClassVar[bool] = False

    draws: Draws = 3
    radius: Radius = 0.05

    def score(self, case: Case) -> Measurement:
        """Return the mean over pixels and noisy copies.

        Raises:
            MetricRefused: It is unknown what made the map, or the map is zero and a relative change has no meaning.
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
    """Explain noisy copies for the same class with the map's own random numbers, so that only the image differs."""

    def explain() -> list[tuple[Tensor, Explanation]]:
        image = case.scene.image
        generator = generator_for(f"noise on an image {case.seed}", image)
        copies = noisy(image.expand(draws, -1, -1, -1), radius, case.model.preprocessing.std, generator)
        seed = int(case.explanation.metadata.get("seed", case.seed))
        found = [made for part in copies.split(batch_rows(case.model)) for made in case.explain_batch(part, seed=seed)]
        return list(zip(copies, found, strict=True))

    return case.memory.once(("explanations under noise", draws, radius, case.seed), explain)
