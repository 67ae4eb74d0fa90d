"""Families by name, on the regions of an image: the input is all ones, and 0 masks a region."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata

import torch
from torch import Tensor

from xaihub import ParameterError
from xaihub_first_principles import families, mask_families
from xaihub_first_principles.measures import MeasureFamily

GROUP = "xaihub.measure_families"  # entry points of other packages: callables from FamilySettings to MeasureFamily
MAX_NODES = 64  # of a quadrature


@dataclass(frozen=True, kw_only=True)
class FamilySettings:
    """What a family is made from."""

    count: int  # number of features
    budget: int  # number of points
    bases: int = 1  # number of replacements
    p: float = 0.5  # probability that keep-p and RISE keep a feature
    law: mask_families.Law = "own"  # sizes of random masks
    centre: bool = True  # subtract the mean under the base law
    adjust: bool = False  # fit an additive game first

    @property
    def background(self) -> Tensor:
        """(k, d) zeros: everything masked, once per replacement."""
        return torch.zeros(self.bases, self.count, dtype=torch.float64)

    def samples(self, family: str, *, least: int = 1) -> int:
        """Return the number of points per feature.

        Raises:
            ParameterError: Fewer than `least`.
        """
        found = (self.budget - 1) // self.count
        if found < least:
            raise ParameterError(
                f"a budget of {self.budget} is too small for {family} on {self.count} regions",
                hint=f"at least {least * self.count + 1}, or fewer regions",
            )
        return found


def make_family(name: str, settings: FamilySettings) -> MeasureFamily:
    """Return the family called `name`.

    Raises:
        ParameterError: No family has that name, or the budget is too small for it.
    """
    if name in families.NOT_MEASURES:
        return families.NotAMeasure(method=name)
    if name in _BUILDERS:
        return _BUILDERS[name][0](settings)
    found = metadata.entry_points(group=GROUP, name=name)
    if found:
        family: MeasureFamily = next(iter(found)).load()(settings)
        return family
    raise ParameterError(f"no family is named {name!r}", hint=", ".join(_BUILDERS))


Builder = Callable[[FamilySettings], MeasureFamily]


def _keep(kind: type[mask_families.KeepP], s: FamilySettings) -> MeasureFamily:
    return kind(budget=s.budget, law=s.law, background=s.background, p=s.p, centre=s.centre, adjust=s.adjust)


def _one_by_one(kind: type[mask_families.Occlusion], name: str, s: FamilySettings) -> MeasureFamily:
    s.samples(name, least=s.bases)
    return kind(background=s.background, centre=s.centre)


def _shapley(s: FamilySettings) -> MeasureFamily:
    return mask_families.Shapley(budget=s.budget, law=s.law, background=s.background, adjust=s.adjust)


def _lime(s: FamilySettings) -> MeasureFamily:
    return mask_families.LIME(budget=s.budget, law=s.law, background=s.background)


def _axis_dirac(s: FamilySettings) -> MeasureFamily:
    s.samples("axis_dirac")
    return families.AxisDirac(centre=s.centre)


def _length_weighted(s: FamilySettings) -> MeasureFamily:
    samples = s.samples("length_weighted", least=2)  # per feature; the mean that is subtracted takes as many
    return families.LengthWeighted(samples=samples * s.count // (s.count + 1), centre=s.centre)


def _axis_lebesgue(s: FamilySettings) -> MeasureFamily:
    return families.AxisLebesgue(nodes=min(MAX_NODES, s.samples("axis_lebesgue")), centre=s.centre)


def _fd_ig(s: FamilySettings) -> MeasureFamily:
    # A coarse step: the rounding of float32 logits over 2h must stay far below the measured difference.
    return families.FiniteDifferenceIG(h=0.05, steps=min(MAX_NODES, s.samples("fd_ig", least=2) // 2))


# What makes each family, and the parameters of the explainer that it uses.
_BUILDERS: dict[str, tuple[Builder, str]] = {
    "keep_p": (partial(_keep, mask_families.KeepP), "p sizes centre adjust tolerance"),
    "signed_keep_p": (partial(_keep, mask_families.SignedKeepP), "p sizes adjust tolerance"),
    "shapley": (_shapley, "sizes adjust tolerance"),
    "occlusion": (partial(_one_by_one, mask_families.Occlusion, "occlusion"), ""),
    "pdp": (partial(_one_by_one, mask_families.KeepOne, "pdp"), "centre"),
    "independent": (partial(_one_by_one, mask_families.KeepOne, "independent"), "centre tolerance"),
    "conditional": (partial(_one_by_one, mask_families.KeepOne, "conditional"), "centre"),
    "rise": (partial(_keep, mask_families.RISE), "p sizes centre tolerance"),
    "lime_fixed": (_lime, "sizes tolerance"),
    "axis_dirac": (_axis_dirac, "centre"),
    "axis_lebesgue": (_axis_lebesgue, "centre"),
    "length_weighted": (_length_weighted, "centre tolerance"),
    "smoothgrad": (lambda s: families.SmoothGradStein(sigma=0.3, samples=s.budget), "tolerance"),
    "fd_ig": (_fd_ig, ""),
}
NAMES = tuple(_BUILDERS)


class _Using(tuple[str, ...]):
    """The built-in families that use a parameter; it contains every family of a plugin, which may use any."""

    __slots__ = ()

    def __contains__(self, name: object) -> bool:
        """Return whether the family may use the parameter."""
        return super().__contains__(name) or name not in _BUILDERS


def using(parameter: str) -> tuple[str, ...]:
    """Return the families that use a parameter of the explainer."""
    return _Using(name for name, (_, used) in _BUILDERS.items() if parameter in used.split())
