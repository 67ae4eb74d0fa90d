"""Sufficient pixels of an explanation: a set that it returned, or the smallest sufficient prefix of its ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from xaihub import Case, Meta, MetricRefused, ParameterError
from xaihub.masking import Removal, SizeSearch, make_removal, masked_forward_passes

Confidence = Annotated[
    float, Meta(ge=0, le=1, description="Minimum fraction of the original confidence that the pixels must keep.")
]
Baseline = Annotated[
    str,
    Meta(
        description="What replaces the other pixels: auto (for a returned set, the baseline it was found with; else"
        " zero), or a name as for other metrics: zero, blur, mean, inpaint, deactivate, ..."
    ),
]
Pixels = Annotated[
    Literal["returned", "ranking"],
    Meta(
        description="Evaluate the set that the explanation returned, if any, else the smallest sufficient prefix of its"
        " ranking (returned); or always that prefix (ranking)."
    ),
]

RESOLUTION = 1 / 512  # of the image, to which a size is determined
SLACK = 1e-5  # equal rows in batches of different sizes differ by less than this
TIES = 0  # the seed of the order within ties; the same for all, so that equal maps get equal sets


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The model's decision for one set of pixels: whether the target is kept, and with which confidence."""

    keeps: bool
    confidence: float

    def pass_at(self, confidence: float) -> bool:
        """Whether the target is kept with at least this confidence."""
        return self.keeps and self.confidence >= confidence - SLACK


@dataclass(frozen=True, kw_only=True)
class SufficientSet:
    """One set of pixels."""

    mask: Tensor  # (H, W) bool
    returned: bool  # it is a set that the explanation returned, not a prefix of its ranking
    verdict: Verdict  # the model's decision for this set alone, under the baseline

    @property
    def area(self) -> float:
        """Fraction of the image."""
        return float(self.mask.double().mean())


class Sets:
    """The sufficient sets of one explanation, each evaluated once.

    A returned set is the first of `explanation.sets` whose role claims that it keeps the target.
    """

    def __init__(self, case: Case, pixels: str, baseline: str) -> None:
        self.case = case
        self._ranks = _ranks(case)
        own = next((one for one in case.explanation.sets if one.keeps_target), None) if pixels == "returned" else None
        self._mask = own.mask if own else None
        self.baseline = (own and own.baseline) or "zero" if baseline == "auto" else baseline

    def sets(self, confidences: Sequence[float]) -> list[SufficientSet]:
        """Return for each fraction of the original confidence the set that should keep it.

        The returned set is the same for all, whatever it keeps. A prefix is the smallest that was found to pass;
        confidence need not increase with size, so a smaller one can be missed.
        """
        if self._mask is not None:
            mask = self._mask
            key = ("sufficiency: returned set", self.baseline, self._seed())
            verdict = self.case.memory.once(key, lambda: self.evaluated(mask[None, None].float())[0])
            return [SufficientSet(mask=mask, returned=True, verdict=verdict) for _ in confidences]
        counts = self._smallest([share * self.whole for share in confidences])
        verdicts = self._verdicts(counts)
        return [SufficientSet(mask=self.prefix(count), returned=False, verdict=verdicts[count]) for count in counts]

    @property
    def whole(self) -> float:
        """The target's confidence on the whole image.

        Raises:
            MetricRefused: The model makes no decision about the target, or does not decide for it on this image.
        """
        scene, logits = self.case.scene, self.case.scene.logits[None]
        if scene.target.undecided:
            raise MetricRefused(scene.target.undecided)
        if not scene.target.kept(logits, logits):
            if scene.target.against is None:
                raise MetricRefused("the model does not find the label on this image")
            raise MetricRefused("the model does not prefer the first class of the contrast on this image")
        return float(scene.score(logits.double()))

    def prefix(self, count: int) -> Tensor:
        """Return the (H, W) set of the first `count` pixels of the ranking."""
        return self._ranks < count

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self._ranks.numel()

    def _seed(self) -> int | None:
        return self.case.seed if self.baseline == "noise" else None

    def _removal(self) -> Removal:
        def make() -> Removal:
            # The noise must not depend on which metric comes first.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.case.seed)
                return make_removal(self.baseline, self.case.model, self.case.scene.image)

        return self.case.scene.memory.once(("sufficiency: removal", self.baseline, self._seed()), make)

    def evaluated(self, draws: Tensor, expand: Callable[[Tensor], Tensor] | None = None) -> list[Verdict]:
        """Evaluate (n, 1, H, W) sets alone, under the baseline; `expand` makes them of draws."""
        case, verdicts = self.case, []
        for batch in masked_forward_passes(case.model, case.scene.image, draws, removal=self._removal(), expand=expand):
            confidences = case.scene.score(batch.outputs.double()).tolist()
            keeps = case.scene.target.kept(batch.outputs, case.scene.logits[None]).tolist()
            verdicts += [Verdict(keeps=one, confidence=value) for one, value in zip(keeps, confidences, strict=True)]
        return verdicts

    def _smallest(self, confidences: Sequence[float]) -> list[int]:
        """Find the smallest prefixes that pass; each round evaluates the sizes for all confidences in one stream."""
        searches = [SizeSearch(self.size, resolution=self.size * RESOLUTION, empty=True) for _ in confidences]
        while wanted := {size for search in searches for size in search.sizes}:
            verdicts = self._verdicts(sorted(wanted))
            for search, confidence in zip(searches, confidences, strict=True):
                if search.sizes:
                    search.narrow(search.sizes, [verdicts[size].pass_at(confidence) for size in search.sizes])
        return [search.smallest for search in searches]

    def _verdicts(self, sizes: Sequence[int]) -> dict[int, Verdict]:
        """Evaluate prefixes; each is remembered by itself, so that every metric that uses it is charged for it."""
        whole = Verdict(keeps=True, confidence=self.whole)
        keys = [_Prefix(self.baseline, self._seed(), size) for size in sizes if size != self.size]
        found = self.case.memory.many(keys, self._prefixes)
        return {self.size: whole, **{key.size: verdict for key, verdict in zip(keys, found, strict=True)}}

    def _prefixes(self, keys: list[_Prefix]) -> list[Verdict]:
        ranks = self._ranks.to(self.case.model.device)

        def shown(counts: Tensor) -> Tensor:
            return (ranks < counts.view(-1, 1, 1)).float().unsqueeze(1)

        return self.evaluated(torch.tensor([key.size for key in keys]), shown)


class _Prefix(NamedTuple):
    """What the verdict for a prefix depends on, within a case."""

    baseline: str
    seed: int | None
    size: int


def sets_of(case: Case, pixels: str, baseline: str) -> Sets:
    """Return the case's sets, shared by all metrics with the same parameters."""
    key = ("sufficiency: sets", pixels, baseline, case.seed if baseline == "noise" else None)
    return case.memory.once(key, lambda: Sets(case, pixels, baseline))


def _ranks(case: Case) -> Tensor:
    """Return the (H, W) position of each pixel, highest value first; ties are in a fixed pseudo-random order."""

    def rank() -> Tensor:
        values = case.heat.flatten()
        shuffled = torch.randperm(len(values), generator=torch.Generator().manual_seed(TIES))
        order = shuffled[values[shuffled].argsort(descending=True, stable=True)]
        return torch.empty_like(order).scatter_(0, order, torch.arange(len(order))).view(case.heat.shape)

    return case.memory.once(("sufficiency: ranking",), rank)


def levels(text: str, name: str) -> list[float]:
    """Parse comma-separated numbers in [0, 1].

    Raises:
        ParameterError: The text is anything else.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1.0]
    if not all(0 <= number <= 1 for number in numbers):
        raise ParameterError(
            f"{name} cannot be {text!r}", hint="give comma-separated numbers between 0 and 1: 0,0.5,0.9"
        )
    return numbers
