"""Families by name, on the regions of an image: the input is all ones, and 0 hides a region."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor

from xaihub import ParameterError
from xaihub_first_principles import families, masks
from xaihub_first_principles.measures import MeasureFamily

__all__ = ["NAMES", "Question", "make_family"]

GROUP = "xaihub.measure_families"  # entry points of other packages: a MeasureFamily that takes a Question
LARGEST_QUADRATURE = 64


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a family needs to know.

    Attributes:
        count: Number of features.
        budget: Points to spend.
        bases: Number of replacements.
        p: Of keep-p.
        law: Sizes of random masks.
        centre: Subtract the mean under the base law.
        adjust: Regress on an additive game first.
    """

    count: int
    budget: int
    bases: int = 1
    p: float = 0.5
    law: masks.Law = "own"
    centre: bool = True
    adjust: bool = False

    @property
    def background(self) -> Tensor:
        """(k, d) all hidden, once for each replacement."""
        return torch.zeros(self.bases, self.count, dtype=torch.float64)

    def samples(self, family: str, *, least: int = 1) -> int:
        """Return how many points each feature may have.

        Raises:
            ParameterError: Fewer than `least`.
        """
        share = (self.budget - 1) // self.count
        if share < least:
            raise ParameterError(
                f"a budget of {self.budget} is too small for {family} on {self.count} regions",
                hint=f"at least {least * self.count + 1}, or fewer regions",
            )
        return share


def make_family(name: str, question: Question) -> MeasureFamily:
    """Return the family called `name`.

    Raises:
        ParameterError: No family has that name, or the budget is too small for it.
    """
    if name in families.NOT_MEASURES:
        return families.NotAMeasure(name)
    if name in _BUILDERS:
        return _BUILDERS[name](question)
    found = metadata.entry_points(group=GROUP, name=name)
    if found:
        family: MeasureFamily = next(iter(found)).load()(question)
        return family
    raise ParameterError(f"no family is named {name!r}", hint=", ".join(_BUILDERS))


def _keep(kind: type[masks.KeepP]) -> Callable[[Question], MeasureFamily]:
    return lambda q: kind(budget=q.budget, law=q.law, background=q.background, p=q.p, centre=q.centre, adjust=q.adjust)


def _one_by_one(kind: type[masks.Occlusion], name: str) -> Callable[[Question], MeasureFamily]:
    def build(q: Question) -> MeasureFamily:
        q.samples(name, least=q.bases)
        return kind(background=q.background, centre=q.centre)

    return build


def _length_weighted(q: Question) -> MeasureFamily:
    share = q.samples("length_weighted", least=2)  # of each feature; the mean that is subtracted takes one more
    return families.LengthWeighted(samples=share * q.count // (q.count + 1), centre=q.centre)


def _axis_lebesgue(q: Question) -> MeasureFamily:
    return families.AxisLebesgue(nodes=min(LARGEST_QUADRATURE, q.samples("axis_lebesgue")), centre=q.centre)


def _fd_ig(q: Question) -> MeasureFamily:
    # A coarse step: rounding of float32 logits over 2h must stay far below the difference that is measured.
    return families.FiniteDifferenceIG(h=0.05, steps=min(LARGEST_QUADRATURE, q.samples("fd_ig", least=2) // 2))


_BUILDERS: dict[str, Callable[[Question], MeasureFamily]] = {
    "keep_p": _keep(masks.KeepP),
    "signed_keep_p": _keep(masks.SignedKeepP),
    "shapley": lambda q: masks.Shapley(budget=q.budget, law=q.law, background=q.background, adjust=q.adjust),
    "occlusion": _one_by_one(masks.Occlusion, "occlusion"),
    "pdp": _one_by_one(masks.KeepOne, "pdp"),
    "independent": _one_by_one(masks.KeepOne, "independent"),
    "conditional": _one_by_one(masks.KeepOne, "conditional"),
    "rise": _keep(masks.RISE),
    "lime_fixed": lambda q: masks.LIME(budget=q.budget, law=q.law, background=q.background),
    "axis_dirac": lambda q: families.AxisDirac(centre=q.centre),
    "axis_lebesgue": _axis_lebesgue,
    "length_weighted": _length_weighted,
    "smoothgrad": lambda q: families.SmoothGradStein(sigma=0.3, samples=q.budget),
    "fd_ig": _fd_ig,
}
NAMES = tuple(_BUILDERS)
