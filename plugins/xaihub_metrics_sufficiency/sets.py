"""Which pixels an explanation claims to be enough: the set that it returned, or the smallest prefix of its ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from xaihub import Case, Meta, MetricRefused, ParameterError
from xaihub.masking import Removal, make_removal, masked_forward_passes

__all__ = ["Answers", "Baseline", "Confidence", "Pixels", "SufficientSet", "Verdict", "answers", "levels", "prefixes"]

Confidence = Annotated[
    float, Meta(ge=0, le=1, description="Share of the whole image's confidence that the pixels must keep.")
]
Baseline = Annotated[
    str,
    Meta(
        description="What hidden pixels become: auto (the way the explanation's own set was found, else zero), or a"
        " name as for other metrics: zero, blur, mean, inpaint, deactivate, ..."
    ),
]
Pixels = Annotated[
    Literal["returned", "ranking"],
    Meta(
        description="The set of pixels that the explanation returned, where it has one, else the smallest prefix of"
        " its ranking; or always the latter."
    ),
]

FIRST_SIZES = 16  # nested sets of the first round, from small to large
NEXT_SIZES = 4  # of every later round, between the last size that failed and the first that passed
SMALLEST = 1 / 256  # of the image, where the first round begins
RESOLUTION = 1 / 512  # of the image, to which a size is found
SLACK = 1e-5  # equal rows in batches of different sizes differ by less than this
TIES = 0  # the seed of the order within ties; one for all, so that equal maps get equal sets


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the model says of one set of pixels: whether the answer is kept, and with which confidence."""

    keeps: bool
    confidence: float


@dataclass(frozen=True, kw_only=True)
class SufficientSet:
    """One set of pixels.

    Attributes:
        mask: (H, W) bool.
        returned: It is the explanation's own set, not a prefix of its ranking.
        verdict: What the model says when it sees this set alone, under the baseline.
    """

    mask: Tensor
    returned: bool
    verdict: Verdict

    @property
    def area(self) -> float:
        """Share of the image."""
        return float(self.mask.double().mean())


class Answers:
    """One explanation's sets of pixels, and what the model says of them; every set is asked about once."""

    def __init__(self, case: Case, pixels: str, baseline: str) -> None:
        self.case = case
        self._ranks, self._count = _ranks(case)
        mask = case.explanation.extras.get("mask") if pixels == "returned" else None
        is_set = mask is not None and mask.dtype == torch.uint8 and mask.shape == (1, *case.heat.shape)
        self._mask = mask[0].bool() if mask is not None and is_set else None
        own = case.explanation.metadata.get("details", {}).get("baseline")
        self.baseline = (own if self._mask is not None and own else "zero") if baseline == "auto" else baseline
        self._known: dict[int, Verdict] = {}

    def sets(self, confidences: Sequence[float]) -> list[SufficientSet]:
        """Return for each share of the whole image's confidence the set that should keep it.

        The explanation's own set is the same for all, whatever it keeps. A prefix is the smallest that was found to
        pass; confidence need not grow with size, so a smaller one can be missed.
        """
        if self._mask is not None:
            mask = self._mask[None]
            verdict = self.case.memory.once(
                ("sufficiency: returned set", self.baseline, self._seed()), lambda: self.of_masks(mask)[0]
            )
            return [SufficientSet(mask=self._mask, returned=True, verdict=verdict) for _ in confidences]
        counts = self._smallest([share * self.whole for share in confidences])
        return [SufficientSet(mask=self.prefix(count), returned=False, verdict=self._known[count]) for count in counts]

    @property
    def whole(self) -> float:
        """The target's confidence on the whole image.

        Raises:
            MetricRefused: The model does not decide a contrast for the target.
        """
        logits = self.case.scene.logits[None]
        if self.case.scene.target.against is not None and float(self.case.scene.score(logits, output="logit")) <= 0:
            raise MetricRefused("the model does not prefer the first class of the contrast on this image")
        return float(self.case.scene.score(logits.double()))

    def of_masks(self, masks: Tensor) -> list[Verdict]:
        """Return what the model says of (n, H, W) sets alone, under the baseline."""
        return self._ask(masks.unsqueeze(1).float(), None)

    def prefix(self, count: int) -> Tensor:
        """Return the (H, W) set of the first `count` pixels of the ranking."""
        return self._ranks < count

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self._count

    def _seed(self) -> int | None:
        return self.case.seed if self.baseline == "noise" else None

    def _removal(self) -> Removal:
        def make() -> Removal:
            # Whichever metric comes first must not decide which noise all of them see.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.case.seed)
                return make_removal(self.baseline, self.case.model, self.case.scene.image)

        return self.case.scene.memory.once(("sufficiency: removal", self.baseline, self._seed()), make)

    def _ask(self, draws: Tensor, expand: object) -> list[Verdict]:
        batches = masked_forward_passes(
            self.case.model,
            self.case.scene.image,
            draws,
            removal=self._removal(),
            expand=expand,  # type: ignore[arg-type]
        )
        return [verdict for batch in batches for verdict in _verdicts(self.case, batch.outputs)]

    def _smallest(self, confidences: Sequence[float]) -> list[int]:
        """Find the smallest prefixes that pass; a round's questions for all confidences go in one stream."""
        first = torch.logspace(0, 1, FIRST_SIZES + 1, dtype=torch.float64, base=1 / SMALLEST)[:-1] * SMALLEST
        everything = self._count
        sizes = {0, *(first * everything).round().long().tolist()} - {everything}
        self._known.setdefault(everything, Verdict(keeps=True, confidence=self.whole))
        asked = [set(sizes) for _ in confidences]
        while True:
            self._look(set().union(*asked))
            spans = [self._span(tried, level) for tried, level in zip(asked, confidences, strict=True)]
            wide = [high - low > max(1.0, everything * RESOLUTION) for low, high in spans]
            if not any(wide):
                return [high for _, high in spans]
            for tried, (low, high), more in zip(asked, spans, wide, strict=True):
                if more:
                    tried.update(torch.linspace(low, high, NEXT_SIZES + 2).round().long().tolist())
                    tried.discard(everything)

    def _span(self, tried: set[int], confidence: float) -> tuple[int, int]:
        """Return the largest size below the smallest one that passes, and that one; nothing needs no size at all."""
        sizes = sorted(tried)
        passing = [self._known[size].keeps and self._known[size].confidence >= confidence - SLACK for size in sizes]
        hit = passing.index(True) if True in passing else len(sizes)
        high = sizes[hit] if hit < len(sizes) else self._count
        return (sizes[hit - 1] if hit else high), high

    def _look(self, sizes: set[int]) -> None:
        missing = sorted(sizes - set(self._known))
        ranks = self._ranks.to(self.case.model.device)

        def shown(counts: Tensor) -> Tensor:
            return (ranks < counts.view(-1, 1, 1)).float().unsqueeze(1)

        if missing:
            self._known.update(zip(missing, self._ask(torch.tensor(missing), shown), strict=True))


def answers(case: Case, pixels: str, baseline: str) -> Answers:
    """Return the case's sets, shared by all metrics that ask for the same ones."""
    key = ("sufficiency: sets", pixels, baseline, case.seed if baseline == "noise" else None)
    return case.memory.once(key, lambda: Answers(case, pixels, baseline))


def kept(case: Case, outputs: Tensor) -> Tensor:
    """Tell for (n, K) logits whether the target keeps its rank, or its lead over the class of a contrast: (n,)."""
    target = case.scene.target
    if target.against is not None:
        return case.scene.score(outputs, output="logit") > 0

    def ahead(logits: Tensor) -> Tensor:
        return (logits >= logits[:, target.index.to(logits.device)]).sum(1)

    return ahead(outputs) <= ahead(case.scene.logits[None].to(outputs))


def _verdicts(case: Case, outputs: Tensor) -> list[Verdict]:
    confidences = case.scene.score(outputs.double()).tolist()
    keeps = kept(case, outputs).tolist()
    return [Verdict(keeps=one, confidence=value) for one, value in zip(keeps, confidences, strict=True)]


def _ranks(case: Case) -> tuple[Tensor, int]:
    """Return the (H, W) position of each pixel, the highest value first; ties in a fixed pseudo-random order."""

    def rank() -> Tensor:
        values = case.heat.flatten()
        shuffled = torch.randperm(len(values), generator=torch.Generator().manual_seed(TIES))
        order = shuffled[values[shuffled].argsort(descending=True, stable=True)]
        return torch.empty_like(order).scatter_(0, order, torch.arange(len(order))).view(case.heat.shape)

    ranks = case.memory.once(("sufficiency: ranking",), rank)
    return ranks, ranks.numel()


def prefixes(found: Answers, shares: Sequence[float]) -> Tensor:
    """Return (n, H, W) sets of the ranking that hold these shares of the image."""
    return torch.stack([found.prefix(round(share * found.size)) for share in shares])


def levels(text: str, name: str) -> list[float]:
    """Read numbers in [0, 1] that are joined by commas.

    Raises:
        ParameterError: Something else stands there.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1.0]
    if not all(0 <= number <= 1 for number in numbers):
        raise ParameterError(
            f"{name} cannot be {text!r}", hint="give numbers between 0 and 1, joined by commas: 0,0.5,0.9"
        )
    return numbers
