"""Attribution from first principles on images (Taimeskhanov and Garreau 2025, arXiv 2505.24729).

`phi_j = int f d mu_j`, where j runs over regions of the image and mu_j is the chosen family's measure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Annotated, Any, Literal

import torch
from msgspec import to_builtins
from torch import Tensor

from xaihub import (
    Attribution,
    Explainer,
    ExplainerRefused,
    Meta,
    Model,
    ParameterError,
    Passes,
    ResolvedTarget,
    Unless,
    When,
    current_generator,
    preview,
)
from xaihub.masking import Fill, Inpaint, Removal, Segments, baseline_image, make_removal
from xaihub_first_principles.evaluation import CHECKS, PointOutputs, evaluate_points
from xaihub_first_principles.exact_lines import exact_lines_on_image
from xaihub_first_principles.learned_measures import Header, LearnedMeasure, read_measure
from xaihub_first_principles.mask_families import ENUMERATE_UP_TO
from xaihub_first_principles.measures import MeasureFamily, MeasureResult
from xaihub_first_principles.regions import Regions, make_regions
from xaihub_first_principles.registry import NAMES, FamilySettings, make_family, using

MOSAICS = 8
NOISY = 0.3  # standard error, as a fraction of the map's spread, above which a map carries a warning
LEAST = 3  # points per region before a run may stop early: with fewer, the fit leaves too little to judge its error
BROUGHT = ("features", "baseline", "output", "shifts", "smooth")  # settings that a measure's file determines


class FirstPrinciples(Explainer):
    """Attribute each region by a weighted average of scores on masked inputs: one measure per region."""

    stochastic = True
    parallel = True

    family: Annotated[
        str,
        Meta(
            examples=list(NAMES),
            description="keep_p, signed_keep_p, shapley, occlusion, pdp, independent, conditional, rise,"
            " lime_fixed, axis_dirac, axis_lebesgue, length_weighted, smoothgrad, fd_ig, or a family of a plugin.",
        ),
        When(measure=""),
    ] = "keep_p"
    p: Annotated[
        float,
        Meta(gt=0, lt=1, description="Probability that a region is visible."),
        When(family=using("p")),
        When(measure=""),
    ] = 0.5
    features: Annotated[
        str, Meta(examples=["grid:3"], description="Regions: grid:7, patches:16, superpixels:50 or pixels.")
    ] = "grid:7"
    baseline: Annotated[
        str,
        Meta(
            examples=["mean", "blur,mean", "inpaint"],
            description="Baseline(s) that replace masked regions; several, comma-separated, are drawn with equal"
            " probability.",
        ),
    ] = "blur"
    budget: Annotated[
        int,
        Meta(ge=8, description="Maximum number of forward passes, shared by all shifts."),
        Passes(tolerance=0.0),
    ] = 1024
    shifts: Annotated[
        int, Meta(ge=1, le=16, description="Number of grids; all but the first are shifted at random.")
    ] = 1
    tolerance: Annotated[
        float,
        Meta(
            ge=0,
            description="Stop when the standard error is below this fraction of the map's spread; 0 spends the budget.",
        ),
        When(family=using("tolerance")),
    ] = 0.3
    centre: Annotated[
        bool,
        Meta(description="Subtract the mean score under the base law; ranks are unchanged."),
        When(family=using("centre")),
        When(measure=""),
    ] = True
    smooth: Annotated[bool, Meta(description="Interpolate between grid cells."), Unless(family="shapley")] = True
    sizes: Annotated[
        Literal["own", "uniform", "shared"],
        Meta(description="Sizes of random masks: the family's own law, uniform, or one that suits every family."),
        When(family=using("sizes")),
    ] = "own"
    output: Annotated[Literal["probability", "logit"], Meta(description="The integrated score.")] = "probability"
    exact: Annotated[
        bool, Meta(description="Exact integrals only: finite support, or piecewise-affine lines, at any cost.")
    ] = False
    adjust: Annotated[
        bool,
        Meta(description="Fit an additive game first, which reduces the variance."),
        When(family=using("adjust")),
        When(measure=""),
    ] = True
    measure: Annotated[
        str,
        Meta(
            description="File of 'xaihub optimise-measure', used instead of a family; it also sets features, baseline,"
            " output, shifts and smooth."
        ),
    ] = ""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (1, 1, H, W): the mean of the grids' maps."""
        if not self.measure:
            return self._integrate(model, inputs[0], target, None)
        learned = read_measure(self.measure)
        return self._under(learned.header)._integrate(model, inputs[0], target, learned)

    def _under(self, header: Header) -> FirstPrinciples:
        """Return this explainer with the settings of a learned measure.

        Raises:
            ParameterError: A given setting contradicts the measure.
        """
        default = FirstPrinciples()
        brought = {name: getattr(header, name) for name in BROUGHT}
        for name, value in brought.items():
            given = getattr(self, name)
            if given not in (getattr(default, name), value):
                raise ParameterError(
                    f"{name}={given} contradicts the measure {self.measure!r}, which has {name}={value}",
                    hint=f"omit {name}",
                )
        kept = {name: getattr(self, name) for name in ("budget", "tolerance", "sizes", "exact", "measure")}
        return FirstPrinciples(**kept, **brought)

    def _integrate(
        self, model: Model, image: Tensor, target: ResolvedTarget, learned: LearnedMeasure | None
    ) -> Attribution:
        generator = torch.Generator().manual_seed(int(torch.randint(0, 2**31, (), generator=current_generator())))
        removals = self._removals(model, image)
        grids = make_regions(self.features, model, image, shifts=self.shifts, generator=generator)
        parts: list[_Part] = []
        budget = self.budget // self.shifts
        for number, grid in enumerate(grids):
            if self._independent:
                removals = self._mosaics(model, image, grid.features, generator)
            settings = FamilySettings(
                count=grid.features.count, budget=budget, bases=len(removals), p=self.p, law=self.sizes,
                centre=self.centre, adjust=self.adjust,
            )  # fmt: skip
            family = make_family(self.family, settings) if learned is None else learned.family(settings)
            make = partial(_Part, grid=grid, complete=family.complete, smooth=self.smooth and not family.complete)
            show = partial(self._shown, model, parts, make, learned)
            result, gap = self._measure(model, image, target, grid, family, removals, generator, number * budget, show)
            parts.append(make(result=result, gap=gap))
        return self._attribution(model, parts, learned)

    def _shown(
        self,
        model: Model,
        parts: list[_Part],
        make: Callable[..., _Part],
        learned: LearnedMeasure | None,
        found: _Found,
    ) -> bool:
        """Show the map of what was evaluated so far; return whether it is good enough."""
        part = make(result=found()[0], gap=0.0)
        preview(lambda: self._attribution(model, [*parts, part], learned))
        return len(part.result.values) * LEAST + LEAST <= part.result.points and part.noise < self.tolerance

    def _attribution(self, model: Model, parts: list[_Part], learned: LearnedMeasure | None) -> Attribution:
        results = [part.result for part in parts]
        noise = max(part.noise for part in parts)
        warnings = [_noisy(noise, sum(result.points for result in results))] if noise > NOISY else []
        warnings += self._unused(results)
        if learned is not None and learned.header.model != model.name:
            warnings.append(f"the measure was chosen on {learned.header.model!r}, not on {model.name!r}")
        gap = abs(sum(part.gap for part in parts) / len(parts))
        return Attribution(
            values=torch.stack([part.heat for part in parts]).mean(0)[None, None],
            completeness_gap=torch.tensor([gap]) if parts[0].complete else None,
            details=self._details(results, noise) | ({} if learned is None else _origin(learned)),
            warnings=warnings,
        )

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
        show: Callable[[_Found], bool],
    ) -> tuple[MeasureResult, float]:
        """Return the attribution on one grid and the gap in the sum of its values."""
        points = family.points(torch.ones(grid.features.count, dtype=torch.float64), generator)
        if points.masks is None and not (len(removals) == 1 and isinstance(removals[0], Fill)):
            raise ParameterError(
                f"family {self.family!r} fades regions over a single image, not {self.baseline!r}",
                hint="set baseline to blur, mean, black or another single image",
            )
        if self._independent and points.base is not None:  # mosaics are random, so points of one are a cluster
            points = replace(points, cluster=points.base, distinct=False)
        if self.exact and family.quadrature:
            if self.output != "logit":
                raise ParameterError("exact lines need output=logit: the softmax is not piecewise affine")
            return exact_lines_on_image(family, model, image, grid.features, removals, target), 0.0
        if self.exact and not points.exact:
            raise ExplainerRefused(
                f"no exact route for {self.family} on {grid.features.count} regions: its measure has"
                " too many points or no finite support",
                hint=f"families on masks need at most {ENUMERATE_UP_TO} regions and a budget of all their masks per"
                " grid; or use occlusion, pdp, axis_dirac, axis_lebesgue or fd_ig",
            )

        def score(logits: Tensor) -> Tensor:
            return target.score(logits, output=self.output)

        def enough(found: PointOutputs) -> bool:
            return show(partial(_measured, found, family, score))

        found = evaluate_points(
            model, image, points, features=grid.features, removals=removals,
            enough=None if points.exact else enough, checks=CHECKS if self.tolerance else 1, done=done,
            total=self.budget,
        )  # fmt: skip
        return _measured(found, family, score)

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
        removals = [make_removal(name, model, image) for name in self._baselines]
        if self.family == "conditional" and not all(isinstance(removal, Inpaint) for removal in removals):
            raise ParameterError(
                f"the conditional family needs replacements that depend on visible regions, not {self.baseline!r}",
                hint="set baseline=inpaint",
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

    def _unused(self, results: list[MeasureResult]) -> list[str]:
        """Return a note for each given setting that matters only if a measure has further points."""
        if not all(result.exact and result.points for result in results):
            return []
        default, names = FirstPrinciples(), ("tolerance", "sizes", "adjust", "exact")
        given = [name for name in names if getattr(self, name) != getattr(default, name)]
        return [f"{name} has no effect: every point of the measure was evaluated" for name in given]

    def _details(self, results: list[MeasureResult], noise: float) -> dict[str, Any]:
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


def _noisy(noise: float, points: int) -> str:
    """Return the warning for a map whose standard error is large, with the budget that should suffice."""
    wanted = ceil(points * (noise / NOISY) ** 2 / 100) * 100
    advice = f"budget={wanted} should give {NOISY:.0%}" if noise < 2 else "raise the budget"
    return f"the standard error is {noise:.0%} of the map's spread: {advice}"


_Found = Callable[[], tuple[MeasureResult, float]]  # the attribution from the points so far, and its gap


def _measured(
    found: PointOutputs, family: MeasureFamily, score: Callable[[Tensor], Tensor]
) -> tuple[MeasureResult, float]:
    """Return the attribution, and the gap in the sum of its values."""
    result = found.measure(family, score)
    if not family.complete:
        return result, 0.0
    scores, visible = score(found.logits).double(), found.points.values.mean(1)
    return result, float(result.values.sum() - scores[visible == 1].mean() + scores[visible == 0].mean())


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The attribution on one grid."""

    grid: Regions
    result: MeasureResult
    gap: float  # in the sum of the values
    complete: bool  # a region's value is spread evenly over its pixels
    smooth: bool

    @property
    def heat(self) -> Tensor:
        """The (H, W) map."""
        values = self.result.values / self.grid.features.sizes if self.complete else self.result.values
        return self.grid.paint(values, smooth=self.smooth)

    @property
    def noise(self) -> float:
        """The root mean square standard error of the map over its spread."""
        errors = self.result.stderr.nan_to_num(nan=1e12)
        errors = errors / self.grid.features.sizes if self.complete else errors
        error = float(self.grid.paint_errors(errors, smooth=self.smooth).square().mean().sqrt())
        spread = float(self.heat.std(correction=0)) if len(self.result.values) > 1 else abs(float(self.result.values))
        return 0.0 if error == 0 else min(error / max(spread, 1e-12), 1e6)
