"""Choosing the measure that is best for metrics on some images, and how much it gains on others.

The model is asked once an image; every candidate's map is a weighted sum of those answers. Only the metrics ask again.
Quoting a metric that was optimised is circular, so the gain that counts is that on images that were not used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from xaihub import Case, Explanation, Metric, MetricRefused, Model, ParameterError, Scene, Target, load_image
from xaihub.errors import InputError
from xaihub.masking import make_removal
from xaihub_first_principles.answers import Answers, ask
from xaihub_first_principles.design import block_masks, lift
from xaihub_first_principles.learned import Header, LearnedMeasure
from xaihub_first_principles.masks import Mixture
from xaihub_first_principles.measures import Points
from xaihub_first_principles.regions import Regions, make_regions
from xaihub_first_principles.search import PS, Candidate, Choice, Mixed, propose

__all__ = ["Found", "Settings", "optimise_measure"]

FINALISTS = 4  # the best on the images for choosing, between which and the start the validation decides
BOOTSTRAPS = 10_000
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is chosen, and how images are asked.

    Attributes:
        choose: "p" of keep-p; "sizes", a mixture of keep-p measures; "weights" over one fixed set of masks.
        features: The regions; for weights of a kind that lies alike in every image, grid:N or patches:N.
        baseline: The base law of hidden regions.
        output: The score that is integrated.
        block: For weights: masks hide squares of so many cells a side, anywhere on the grid, so that regions are finer
            than what is hidden. With 1 they hide cells.
        budget: Masks of an image.
        trials: Candidates that are judged.
        split: Shares of images for choosing and for validation; the rest is for testing.
        seed: Of every random choice.
    """

    choose: Choice = "weights"
    features: str = "grid:7"
    baseline: str = "blur"
    output: Literal["probability", "logit"] = "probability"
    block: int = 1
    budget: int = 400
    trials: int = 30
    split: tuple[float, float] = (0.5, 0.25)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the search found.

    Attributes:
        measure: The best measure, with its gains in the header.
        parameters: Those of the best candidate.
        tried: Parameters and mean objective of every candidate on the images for choosing, the start first.
        tests: (n, 2) objective of the start and of the best measure on each image that was not used.
        skipped: Why an image was left out, by its name.
    """

    measure: LearnedMeasure
    parameters: dict[str, float]
    tried: list[tuple[dict[str, float], float]]
    tests: Tensor
    skipped: dict[str, str] = field(default_factory=dict)


def optimise_measure(
    model: Model,
    images: Sequence[str | os.PathLike[str]],
    metrics: Mapping[str, tuple[Metric, float]],
    settings: Settings | None = None,
    *,
    watch: Watch | None = None,
) -> Found:
    """Choose the measure whose maps are best by `metrics` on some of the images; keep-p at 0.5 is where it starts.

    Args:
        model: The model.
        images: Files; they are shuffled and split.
        metrics: By name, a metric and the sign with which it counts: {"insertion": (..., 1), "deletion": (..., -1)}.
        settings: The search.
        watch: Told what is being done, how much of it is, and of how much.

    Raises:
        ParameterError: Too few images, or regions that do not suit.
    """
    settings = settings or Settings()
    if settings.choose == "weights" and not settings.features.startswith(("grid:", "patches:")):
        raise ParameterError(
            f"weights need regions that lie alike in every image, not {settings.features!r}",
            hint="grid:7, or choose sizes",
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    first, second = (round(share * len(order)) for share in (settings.split[0], sum(settings.split)))
    if first < 1 or second <= first:
        raise ParameterError(f"{len(images)} images are too few to choose and to validate", hint="at least 4")
    work = _Work(model, metrics, settings, watch or (lambda _text, _done, _total: None))
    seen = [work.prepare(images[k], number, second) for number, k in enumerate(order[:second])]
    chosen, held = ([item for item in part if item is not None] for part in (seen[:first], seen[first:]))
    if not chosen or not held:
        raise ParameterError("no image is left to choose and to validate on", hint="; ".join(work.skipped.values()))
    scores: list[tuple[Candidate, float]] = []
    for candidate in propose(settings.choose, settings.trials, settings.seed, scores):
        scores.append((candidate, work.mean(candidate, chosen)))
        work.watch("choosing", len(scores), settings.trials)
    start, level = scores[0]
    better = sorted((pair for pair in scores[1:] if pair[1] > level), key=lambda pair: -pair[1])[:FINALISTS]
    finalists = [start, *(candidate for candidate, _ in better)]
    validated = [work.mean(candidate, held) for candidate in finalists]
    winner = finalists[max(range(len(finalists)), key=validated.__getitem__)]
    tests = work.tests(start, winner, [images[k] for k in order[second:]])
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
        measure=LearnedMeasure(header=header, tensors=work.tensors(winner, chosen[0])),
        parameters=winner.parameters,
        tried=[(candidate.parameters, score) for candidate, score in scores],
        tests=tests,
        skipped=work.skipped,
    )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """One image: how the metrics see it, its regions, and what the model answered."""

    scene: Scene
    regions: Regions
    answers: Answers


class _Work:
    """Asking the model, and judging candidates."""

    def __init__(
        self, model: Model, metrics: Mapping[str, tuple[Metric, float]], settings: Settings, watch: Watch
    ) -> None:
        self.model, self.metrics, self.settings, self.watch = model, metrics, settings, watch
        self.skipped: dict[str, str] = {}

    def prepare(
        self, source: str | os.PathLike[str], number: int, total: int, law: Candidate | None = None
    ) -> _Seen | None:
        """Ask the model about one image, by the law of one candidate or of all; None if it cannot be used."""
        self.watch("asking" if law is None else "testing", number, total)
        try:
            image, _ = self.model.prepare(load_image(source).rgb)
        except InputError as error:
            self.skipped[os.fspath(source)] = str(error)
            return None
        logits = self.model.predict(image[None])
        scene = Scene(model=self.model, image=image, logits=logits[0], target=Target().resolve(logits))
        generator = torch.Generator().manual_seed(self.settings.seed)
        regions = make_regions(self.settings.features, self.model, image, shifts=1, generator=generator)[0]
        points = self._points(regions, number, law)
        removals = [make_removal(self.settings.baseline, self.model, image)]
        answers = ask(self.model, image, points, features=regions.features, removals=removals)
        seen = _Seen(scene=scene, regions=regions, answers=answers)
        try:
            self._judge(Mixed(), seen)
        except MetricRefused as error:
            self.skipped[os.fspath(source)] = str(error)
            return None
        return seen

    def mean(self, candidate: Candidate, images: Sequence[_Seen]) -> float:
        """Return the mean objective; minus infinity where a map cannot be judged."""
        try:
            return sum(self._judge(candidate, seen) for seen in images) / len(images)
        except MetricRefused:
            return float("-inf")

    def tests(self, start: Candidate, winner: Candidate, images: Sequence[str | os.PathLike[str]]) -> Tensor:
        """Return (n, 2) objectives of both; each is asked by its own law, fixed weights by their own masks."""
        rows = []
        for number, image in enumerate(images):
            before = self.prepare(image, number, len(images), start)
            if before is None:
                continue
            alike = self.settings.choose == "weights" or winner == start
            after = before if alike else self.prepare(image, number, len(images), winner)
            if after is not None:
                rows.append([self.mean(start, [before]), self.mean(winner, [after])])
        return torch.tensor(rows, dtype=torch.float64).view(-1, 2)

    def tensors(self, candidate: Candidate, seen: _Seen) -> dict[str, Tensor]:
        """Return what a measure's file holds; over fixed masks that is weights, whatever they come from."""
        if isinstance(candidate, Mixed) and self.settings.choose != "weights":
            return {name: torch.tensor(getattr(candidate, f"{name}s"), dtype=torch.float64) for name in ("p", "theta")}
        points = seen.answers.points
        assert points.masks is not None  # noqa: S101 - designs of masks only
        return {"masks": points.masks.to(torch.uint8), "weights": candidate.weights(points, _places(seen.regions))}

    def _points(self, regions: Regions, number: int, law: Candidate | None) -> Points:
        """Return a design: one for all images if weights are chosen; else by `law`, or one that suits all of them."""
        count, fixed = regions.features.count, self.settings.choose == "weights"
        ones, nothing = torch.ones(count, dtype=torch.float64), torch.zeros(1, count, dtype=torch.float64)
        generator = torch.Generator().manual_seed(self.settings.seed + (0 if fixed else number))
        if fixed and self.settings.block > 1:
            design = block_masks(_sides(regions), self.settings.block, self.settings.budget, generator)
            return lift(ones, design, background=nothing, groups=torch.arange(count))
        wanted = law if isinstance(law, Mixed) else Mixed()
        if law is None and not fixed:
            wanted = Mixed(ps=PS, thetas=(1 / len(PS),) * len(PS))
        family = Mixture(ps=wanted.ps, thetas=wanted.thetas, budget=self.settings.budget, background=nothing)
        return family.points(ones, generator)

    def _judge(self, candidate: Candidate, seen: _Seen) -> float:
        """Return the objective of one candidate's map.

        Raises:
            MetricRefused: A metric has no meaning for it.
        """
        target, answers, logits = seen.scene.target, seen.answers, seen.scene.logits[None]
        scores = target.score(answers.logits, output=self.settings.output)
        weights = candidate.weights(answers.points, _places(seen.regions))
        heat = seen.regions.paint(weights.T @ scores.double(), smooth=True)
        explanation = Explanation.of_row(
            0, values=heat[None, None].float(), logits=logits, target=target, classes=self.model.classes, metadata={}
        )
        case = Case(scene=seen.scene, explanation=explanation, seed=self.settings.seed)
        return sum(sign * metric.measure(case)[0].value for metric, sign in self.metrics.values())


def _sides(regions: Regions) -> tuple[int, int]:
    """Return how many rows and columns a grid has.

    Raises:
        ParameterError: The regions are no grid of cells that are all alike.
    """
    if regions.centres is None:
        raise ParameterError(
            "masks of blocks need a grid whose cells divide the input", hint="block 1, or another grid"
        )
    return len(regions.centres[0]), len(regions.centres[1])


def _places(regions: Regions) -> Tensor:
    """Return the (d, 2) centres of the regions, in widths of one."""
    labels = regions.features.labels.flatten()
    height, width = regions.features.size
    where = torch.stack([torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)], 1).double()
    totals = torch.zeros(regions.features.count, 2, dtype=torch.float64).index_add_(0, labels, where)
    width_of_one: float = (height * width / regions.features.count) ** 0.5
    return totals / (regions.features.sizes.unsqueeze(1) * width_of_one)


def _bootstrap(gains: Tensor, seed: int) -> tuple[float | None, tuple[float, float] | None]:
    """Return the mean gain and its 95 % interval, by drawing images again with replacement."""
    if not len(gains):
        return None, None
    generator = torch.Generator().manual_seed(seed)
    drawn = gains[torch.randint(0, len(gains), (BOOTSTRAPS, len(gains)), generator=generator)].mean(1)
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(gains.mean()), (low, high)
