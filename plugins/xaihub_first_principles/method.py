"""Attribution from first principles on images (Taimeskhanov and Garreau 2025, arXiv 2505.24729).

`phi_j = int f d mu_j`, where j runs over regions of the image and mu_j is the chosen family's measure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from msgspec import to_builtins
from torch import Tensor

from xaihub import Attribution, Explainer, ExplainerRefused, Meta, Model, ParameterError, ResolvedTarget
from xaihub.masking import Fill, Inpaint, Removal, Segments, baseline_image, make_removal
from xaihub_first_principles.answers import Answers, ask
from xaihub_first_principles.catalogue import Question, make_family
from xaihub_first_principles.images import exact_lines
from xaihub_first_principles.learned import Header, LearnedMeasure, read_measure
from xaihub_first_principles.masks import ENUMERATE_UP_TO
from xaihub_first_principles.measures import Measured, MeasureFamily
from xaihub_first_principles.regions import Regions, make_regions

# Families whose points are masks of zeros and ones; the others need replacements that can be seen through.
ON_MASKS = frozenset(
    ["keep_p", "signed_keep_p", "shapley", "occlusion", "pdp", "independent", "conditional", "rise", "lime_fixed"]
)
MOSAICS = 8


class FirstPrinciples(Explainer):
    """Integrate the target's score against one measure a region."""

    stochastic = True

    family: Annotated[
        str,
        Meta(
            description="keep_p, signed_keep_p, shapley, occlusion, pdp, independent, conditional, rise,"
            " lime_fixed, axis_dirac, axis_lebesgue, length_weighted, smoothgrad, fd_ig, or one of another package."
        ),
    ] = "keep_p"
    p: Annotated[float, Meta(gt=0, lt=1, description="Probability that keep-p and RISE show a region.")] = 0.5
    features: Annotated[str, Meta(description="The regions: grid:7, patches:16, superpixels:50 or pixels.")] = "grid:7"
    baseline: Annotated[
        str,
        Meta(description="The base law of hidden regions: one baseline, or several by commas, each equally often."),
    ] = "blur"
    budget: Annotated[int, Meta(ge=8, description="Forward passes at most, all shifts together.")] = 1000
    shifts: Annotated[int, Meta(ge=1, le=16, description="Grids, all but the first shifted at random.")] = 2
    tolerance: Annotated[
        float, Meta(ge=0, description="Stop when the standard error is below this share of the map's spread.")
    ] = 0.05
    centre: Annotated[bool, Meta(description="Subtract the mean score under the base law; ranks stay.")] = True
    smooth: Annotated[bool, Meta(description="Interpolate between cells of a grid; not for Shapley values.")] = True
    sizes: Annotated[
        Literal["own", "uniform", "shared"],
        Meta(description="Sizes of random masks: the family's own, all alike, or fit for every family."),
    ] = "own"
    output: Annotated[Literal["probability", "logit"], Meta(description="The score that is integrated.")] = (
        "probability"
    )
    exact: Annotated[
        bool, Meta(description="Exact integrals only: finite support, or lines kink by kink, at any cost.")
    ] = False
    adjust: Annotated[
        bool, Meta(description="Regress on an additive game first; keep-p and Shapley vary less then.")
    ] = True
    measure: Annotated[
        str,
        Meta(
            description="A file of 'xaihub optimise-measure' in place of a family; it also brings features,"
            " baseline, output, shifts and smooth."
        ),
    ] = ""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (1, 1, H, W): the mean over the grids of their painted values."""
        if not self.measure:
            return self._integrate(model, inputs[0], target, None)
        learned = read_measure(self.measure)
        return self._under(learned.header)._integrate(model, inputs[0], target, learned)

    def _under(self, header: Header) -> FirstPrinciples:
        """Return this explainer with the settings that a learned measure brings.

        Raises:
            ParameterError: A setting was given that contradicts the measure.
        """
        brought = {name: getattr(header, name) for name in ("features", "baseline", "output", "shifts", "smooth")}
        asked = FirstPrinciples()
        for name, value in (*brought.items(), ("family", asked.family)):
            given, usual = getattr(self, name), getattr(asked, name)
            if given not in (usual, value):
                raise ParameterError(
                    f"{name}={given} contradicts the measure {self.measure!r}, which has {name}={value}"
                    if name in brought
                    else f"measure and family={given} exclude each other",
                    hint=f"leave {name} out",
                )
        return FirstPrinciples(
            budget=self.budget, tolerance=self.tolerance, sizes=self.sizes, exact=self.exact, measure=self.measure,
            **brought,
        )  # fmt: skip

    def _integrate(
        self, model: Model, image: Tensor, target: ResolvedTarget, learned: LearnedMeasure | None
    ) -> Attribution:
        generator = torch.Generator().manual_seed(int(torch.randint(0, 2**31, ())))
        removals = self._removals(model, image)
        grids = make_regions(self.features, model, image, shifts=self.shifts, generator=generator)
        heat = torch.zeros(image.shape[1:], dtype=torch.float64)
        results, gaps, done = [], [], 0
        for number, grid in enumerate(grids):
            budget = self.budget // self.shifts
            if self._independent:
                removals = self._mosaics(model, image, grid.features, generator)
            question = Question(
                count=grid.features.count, budget=budget, bases=len(removals), p=self.p, law=self.sizes,
                centre=self.centre, adjust=self.adjust,
            )  # fmt: skip
            family = make_family(self.family, question) if learned is None else learned.family(question)
            result, gap = self._measure(model, image, target, grid, family, removals, generator, done)
            done = (number + 1) * budget
            values = result.values / grid.features.sizes if family.complete else result.values
            heat += grid.paint(values, smooth=self.smooth and not family.complete) / len(grids)
            results.append(result)
            gaps.append(gap)
        mean_gap = sum(gaps) / len(gaps) if family.complete else None
        noise = max(_noise(result) for result in results)
        return Attribution(
            values=heat[None, None],
            completeness_gap=None if mean_gap is None else torch.tensor([abs(mean_gap)]),
            details=self._details(results, noise) | ({} if learned is None else _origin(learned)),
            warnings=[
                *[f"the standard error is {noise:.0%} of the map's spread: raise the budget"] * (noise > 0.5),
                *([] if learned is None or learned.header.model == model.name else [
                    f"the measure was chosen on {learned.header.model!r}, not on {model.name!r}"
                ]),
            ],
        )  # fmt: skip

    def _measure(
        self,
        model: Model,
        image: Tensor,
        target: ResolvedTarget,
        grid: Regions,
        family: MeasureFamily,
        removals: list[Removal],
        generator: torch.Generator,
        done: int,
    ) -> tuple[Measured, float]:
        """Return the attribution on one grid and the gap in the sum of its values."""
        points = family.points(torch.ones(grid.features.count, dtype=torch.float64), generator)
        if self._independent and points.base is not None:  # mosaics are drawn: how they differ is chance
            points = replace(points, cluster=points.base, distinct=False)
        if self.exact and family.quadrature:
            if self.output != "logit":
                raise ParameterError("exact lines need output=logit: the softmax is not piecewise affine")
            return exact_lines(family, model, image, grid.features, removals, target), 0.0
        if self.exact and not points.exact:
            raise ExplainerRefused(
                f"no exact route for {self.family} on {grid.features.count} regions: its measure has"
                " too many points or no finite support",
                hint=f"families of masks need at most {ENUMERATE_UP_TO} regions and a budget of all their masks a grid;"
                " or occlusion, pdp, axis_dirac, axis_lebesgue, fd_ig",
            )

        def score(logits: Tensor) -> Tensor:
            return target.score(logits, output=self.output)

        def enough(answers: Answers) -> bool:
            return _noise(answers.measure(family, score)) < self.tolerance

        answers = ask(
            model, image, points, features=grid.features, removals=removals,
            enough=enough if self.tolerance > 0 and not points.exact else None, done=done, total=self.budget,
        )  # fmt: skip
        result = answers.measure(family, score)
        if not family.complete:
            return result, 0.0
        scores = score(answers.logits).double()
        shown = answers.points.values.mean(1)
        return result, float(result.values.sum() - scores[shown == 1].mean() + scores[shown == 0].mean())

    @property
    def _baselines(self) -> list[str]:
        names = [name.strip() for name in self.baseline.split(",")]
        if not all(names):
            raise ParameterError(f"baseline cannot be {self.baseline!r}", hint="write one, or several as blur,mean")
        return names

    @property
    def _independent(self) -> bool:
        """Whether each region is replaced by a baseline of its own."""
        return self.family == "independent" and not self.measure and len(self._baselines) > 1

    def _removals(self, model: Model, image: Tensor) -> list[Removal]:
        names = self._baselines
        removals = [make_removal(name, model, image) for name in names]
        if self.family == "conditional" and not all(isinstance(removal, Inpaint) for removal in removals):
            raise ParameterError(
                f"the conditional family needs replacements that depend on what is shown, not {self.baseline!r}",
                hint="set baseline=inpaint",
            )
        if self.family not in ON_MASKS and (len(names) > 1 or not isinstance(removals[0], Fill)):
            raise ParameterError(
                f"family {self.family!r} shows regions in part, over one image, not {self.baseline!r}",
                hint="set baseline to blur, mean, black or another single image",
            )
        return removals

    def _mosaics(self, model: Model, image: Tensor, regions: Segments, generator: torch.Generator) -> list[Removal]:
        """Return images whose regions come from different baselines, so that regions are independent."""
        images = torch.stack([baseline_image(name, model, image) for name in self._baselines])  # (k, C, H, W)
        found: list[Removal] = []
        for _ in range(MOSAICS):
            chosen = torch.randint(0, len(images), (regions.count,), generator=generator)
            where = regions.spread(chosen).to(image.device)
            found.append(Fill(images.gather(0, where.expand(1, *image.shape)).squeeze(0)))
        return found

    def _details(self, results: list[Measured], noise: float) -> dict[str, Any]:
        first = results[0]
        exact = all(result.exact for result in results)
        return {
            "family": self.family,
            "base_law": self.baseline,
            "regions": [len(result.values) for result in results],
            "points": sum(result.points for result in results),
            "exact": exact,
            "mass": round(float(first.mass.mean()), 9),
            "total_variation": round(float(first.variation.max()), 6),
            "stderr": [[round(value, 6) for value in result.stderr.tolist()] for result in results],
            "stderr_to_spread": round(noise, 4),
            "variant": f"{self.family} on regions{', exact' if exact else ''}",
        }


def _origin(learned: LearnedMeasure) -> dict[str, Any]:
    header = learned.header
    return {
        "family": header.kind,
        "variant": f"a {header.kind} of measures chosen by {' and '.join(header.metrics)}",
        "measure_sha256": learned.digest,
        "measure": to_builtins(header),
    }


def _noise(result: Measured) -> float:
    """Return the root mean square standard error over the spread of the values."""
    error = float(result.stderr.nan_to_num(nan=torch.inf).square().mean().sqrt())
    spread = float(result.values.std()) if len(result.values) > 1 else abs(float(result.values))
    return 0.0 if error == 0 else min(error / max(spread, 1e-12), 1e6)
