"""Choosing the measure that maximises metrics on some images, and its gain on other images.

The model is evaluated once per image; every candidate's map is a weighted sum of these outputs, so only the metrics
need further passes. Quoting an optimised metric is circular: the gain that counts is that on unused images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from xaihub import Case, Explanation, Metric, MetricRefused, Model, ParameterError, Scene, Target, load_image
from xaihub.errors import InputError
from xaihub.masking import make_removal
from xaihub_first_principles.candidates import PS, Candidate, Choice, block_masks, propose
from xaihub_first_principles.evaluation import PointOutputs, evaluate_points
from xaihub_first_principles.learned_measures import Header, LearnedMeasure
from xaihub_first_principles.mask_families import Mixture, design_points
from xaihub_first_principles.measures import Points
from xaihub_first_principles.regions import Regions, make_regions

FINALISTS = 4  # the best candidates on the images for choosing; validation decides between them and the start
BOOTSTRAPS = 10_000
Path = str | os.PathLike[str]
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is searched, and how images are masked."""

    choose: Choice = "weights"  # p of keep-p, sizes of a mixture of them, or weights over one fixed set of masks
    features: str = "grid:7"  # the regions; for weights, grid:N or patches:N, which are the same in every image
    baseline: str = "blur"  # the base law of masked regions
    output: Literal["probability", "logit"] = "probability"  # the integrated score
    block: int = 1  # for weights: side in cells of the masked squares, which are anywhere on the grid
    budget: int = 400  # masks per image
    trials: int = 30  # number of candidates
    split: tuple[float, float] = (0.5, 0.25)  # fractions for choosing and for validation; the rest is for testing
    seed: int = 0  # of every random choice


@dataclass(frozen=True, kw_only=True)
class Found:
    """The result of the search."""

    measure: LearnedMeasure  # the best measure, with its gains in the header
    parameters: dict[str, float]  # the parameters of the best candidate
    tried: list[tuple[dict[str, float], float]]  # parameters and mean objective when choosing, the start first
    tests: Tensor  # (n, 2) objective of the start and of the best measure on each test image
    skipped: dict[str, str] = field(default_factory=dict)  # the reason why an image was skipped, by its name


def optimise_measure(
    model: Model,
    images: Sequence[Path],
    metrics: Mapping[str, tuple[Metric, float]],
    settings: Settings | None = None,
    *,
    watch: Watch | None = None,
) -> Found:
    """Choose the measure whose maps maximise `metrics` on some of the images, starting at keep-p with p = 0.5.

    Args:
        model: The model.
        images: Files; they are shuffled and split.
        metrics: By name, a metric and its sign: {"insertion": (..., 1), "deletion": (..., -1)}.
        settings: The search.
        watch: Called with the current stage, and its finished and total items.

    Raises:
        ParameterError: Too few images, or unsuitable regions.
    """
    settings = settings or Settings()
    if settings.choose == "weights" and not settings.features.startswith(("grid:", "patches:")):
        raise ParameterError(
            f"weights need regions that are the same in every image, not {settings.features!r}",
            hint="grid:7, or choose sizes",
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    first, second = (round(fraction * len(order)) for fraction in (settings.split[0], sum(settings.split)))
    if first < 1 or second <= first:
        raise ParameterError(f"{len(images)} images are too few to choose and to validate", hint="at least 4")
    search = _Search(model, metrics, settings, watch or (lambda _stage, _done, _total: None))
    prepared = [search.prepare(images[k], number, second) for number, k in enumerate(order[:second])]
    chosen, held = ([item for item in part if item is not None] for part in (prepared[:first], prepared[first:]))
    if not chosen or not held:
        raise ParameterError("no image is left to choose and to validate on", hint="; ".join(search.skipped.values()))
    scores: list[tuple[Candidate, float]] = []
    for candidate in propose(settings.choose, settings.trials, settings.seed, scores):
        scores.append((candidate, search.mean(candidate, chosen)))
        search.watch("choosing", len(scores), settings.trials)
    start, level = scores[0]
    better = sorted((pair for pair in scores[1:] if pair[1] > level), key=lambda pair: -pair[1])[:FINALISTS]
    finalists = [start, *(candidate for candidate, _ in better)]
    validated = [search.mean(candidate, held) for candidate in finalists]
    winner = finalists[max(range(len(finalists)), key=validated.__getitem__)]
    tests = search.test(start, winner, [images[k] for k in order[second:]])
    gain, interval = _bootstrap(tests[:, 1] - tests[:, 0], settings.seed)
    header = Header(
        kind="weights" if settings.choose == "weights" else "mixture",
        features=settings.features,
        baseline=settings.baseline,
        output=settings.output,
        shifts=1,
        smooth=True,
        budget=settings.budget,
        metrics={name: sign for name, (_, sign) in metrics.items()},
        model=model.name,
        images=(len(chosen), len(held), len(tests)),
        gain=(dict(scores)[winner] - level, max(validated) - validated[0], gain),
        interval=interval,
        seed=settings.seed,
    )
    return Found(
        measure=LearnedMeasure(header=header, tensors=search.tensors(winner, chosen[0])),
        parameters=winner.parameters,
        tried=[(candidate.parameters, score) for candidate, score in scores],
        tests=tests,
        skipped=search.skipped,
    )


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """One image: the scene for the metrics, its regions, and the model's outputs under masks."""

    scene: Scene
    regions: Regions
    outputs: PointOutputs

    @property
    def masks(self) -> Tensor:
        """(n, d) masks."""
        assert self.outputs.points.masks is not None  # noqa: S101 - only designs of masks are used
        return self.outputs.points.masks


@dataclass
class _Search:
    """Evaluates the model, and scores candidates."""

    model: Model
    metrics: Mapping[str, tuple[Metric, float]]
    settings: Settings
    watch: Watch
    skipped: dict[str, str] = field(default_factory=dict)

    def prepare(self, source: Path, number: int, total: int, law: Candidate | None = None) -> _Prepared | None:
        """Evaluate the model on one image, with masks that suit one candidate or all; None if it cannot be used."""
        self.watch("evaluating" if law is None else "testing", number, total)
        try:
            image, _ = self.model.prepare(load_image(source))
            logits = self.model.predict(image[None])
            scene = Scene(model=self.model, image=image, logits=logits[0], target=Target().resolve(logits))
            generator = torch.Generator().manual_seed(self.settings.seed)
            regions = make_regions(self.settings.features, self.model, image, shifts=1, generator=generator)[0]
            points = self._points(regions, number, law)
            removals = [make_removal(self.settings.baseline, self.model, image)]
            outputs = evaluate_points(self.model, image, points, features=regions.features, removals=removals)
            prepared = _Prepared(scene=scene, regions=regions, outputs=outputs)
            self._score(Mixture(), prepared)
        except (InputError, MetricRefused) as error:
            self.skipped[os.fspath(source)] = str(error)
            return None
        return prepared

    def mean(self, candidate: Candidate, images: Sequence[_Prepared]) -> float:
        """Return the mean objective; minus infinity if a metric refuses a map."""
        try:
            return sum(self._score(candidate, image) for image in images) / len(images)
        except MetricRefused:
            return float("-inf")

    def test(self, start: Candidate, winner: Candidate, images: Sequence[Path]) -> Tensor:
        """Return (n, 2) objectives of both, each on masks of its own law; fixed weights have their own masks."""
        rows = []
        for number, image in enumerate(images):
            before = after = self.prepare(image, number, len(images), start)
            if before is not None and self.settings.choose != "weights" and winner != start:
                after = self.prepare(image, number, len(images), winner)
            if before is not None and after is not None:
                rows.append([self.mean(start, [before]), self.mean(winner, [after])])
        return torch.tensor(rows, dtype=torch.float64).view(-1, 2)

    def tensors(self, candidate: Candidate, image: _Prepared) -> dict[str, Tensor]:
        """Return the tensors of a measure's file."""
        if isinstance(candidate, Mixture) and self.settings.choose != "weights":
            return {name: torch.tensor(getattr(candidate, f"{name}s"), dtype=torch.float64) for name in ("p", "theta")}
        return {"masks": image.masks.to(torch.uint8), "weights": _weights(candidate, image)}

    def _points(self, regions: Regions, number: int, law: Candidate | None) -> Points:
        """Return one design for all images if weights are chosen; else masks of `law`, or a design for all laws."""
        count, fixed = regions.features.count, self.settings.choose == "weights"
        ones, nothing = torch.ones(count, dtype=torch.float64), torch.zeros(1, count, dtype=torch.float64)
        generator = torch.Generator().manual_seed(self.settings.seed + (0 if fixed else number))
        if fixed and self.settings.block > 1:
            design = block_masks(_sides(regions), self.settings.block, self.settings.budget, generator)
            return design_points(ones, design, nothing)
        wanted = law if isinstance(law, Mixture) else Mixture()
        if law is None and not fixed:
            wanted = Mixture(ps=PS, thetas=(1 / len(PS),) * len(PS))
        return replace(wanted, budget=self.settings.budget, background=nothing).points(ones, generator)

    def _score(self, candidate: Candidate, image: _Prepared) -> float:
        """Return the objective of one candidate's map.

        Raises:
            MetricRefused: A metric is not valid for it.
        """
        target, outputs, logits = image.scene.target, image.outputs, image.scene.logits[None]
        scores = target.score(outputs.logits, output=self.settings.output)
        heat = image.regions.paint(_weights(candidate, image).T @ scores.double(), smooth=True)
        explanation = Explanation.of_row(
            0, values=heat[None, None].float(), logits=logits, target=target, classes=self.model.classes, metadata={}
        )
        case = Case(scene=image.scene, explanation=explanation, seed=self.settings.seed)
        return sum(sign * metric.measure(case)[0].value for metric, sign in self.metrics.values())


def _weights(candidate: Candidate, image: _Prepared) -> Tensor:
    """Return the (n, d) weights of a candidate at the points of an image."""
    if isinstance(candidate, Mixture):
        return candidate.weights(image.outputs.points)
    return candidate.weights(image.masks, _centres(image.regions))


def _sides(regions: Regions) -> tuple[int, int]:
    """Return the numbers of rows and columns of a grid; refuse other regions."""
    if regions.centres is None:
        raise ParameterError(
            "masks of blocks need a grid whose cells divide the input", hint="block 1, or another grid"
        )
    return len(regions.centres[0]), len(regions.centres[1])


def _centres(regions: Regions) -> Tensor:
    """Return the (d, 2) centres of the regions, in mean widths of a region."""
    labels = regions.features.labels.flatten()
    height, width = regions.features.size
    where = torch.stack([torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)], 1).double()
    totals = torch.zeros(regions.features.count, 2, dtype=torch.float64).index_add_(0, labels, where)
    mean_width: float = (height * width / regions.features.count) ** 0.5
    return totals / (regions.features.sizes.unsqueeze(1) * mean_width)


def _bootstrap(gains: Tensor, seed: int) -> tuple[float | None, tuple[float, float] | None]:
    """Return the mean gain and its 95 % bootstrap interval over images."""
    if not len(gains):
        return None, None
    generator = torch.Generator().manual_seed(seed)
    drawn = gains[torch.randint(0, len(gains), (BOOTSTRAPS, len(gains)), generator=generator)].mean(1)
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(gains.mean()), (low, high)
