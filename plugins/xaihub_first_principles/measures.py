"""Attributions as measures: the engine (Taimeskhanov and Garreau 2025, arXiv 2505.24729, Eq. phi_j = int f d mu_j).

An attribution that is linear in the model and stable under uniform convergence is one signed measure a feature. Here
a measure is points Y and signed weights W, and the attribution is `phi_j = sum_i W[i, j] f(Y[i])`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from xaihub import ExplainerRefused
from xaihub.errors import PluginError

__all__ = ["FIXED", "MeasureFamily", "Measured", "Points", "integrate", "measured"]

FIXED = -1  # the cluster of points that are not random, and the owner of points that serve every feature
JACKKNIFE_GROUPS = 20


@dataclass(frozen=True, kw_only=True)
class Points:
    """Where a family asks the model.

    Attributes:
        values: (n, D) the points Y.
        x: (D,) what is explained.
        count: Number of features, d.
        cluster: (n,) points drawn together, such as a mask and its complement; `FIXED` for those not drawn.
        owner: (n,) the feature a point serves, or `FIXED` for all; None if weights do not follow owners.
        weight: (n,) a point's weight for its owner, where the family knows it beforehand.
        masks: (n, d) which features a point shows, for families of masks.
        base: (n,) which replacement hides the others, for families of masks.
        log_density: (n,) log of how often the design is expected to draw a point's mask.
        distinct: No point is drawn twice, so that a design which draws most of what there is errs less.
    """

    values: Tensor
    x: Tensor
    count: int
    cluster: Tensor
    owner: Tensor | None = None
    weight: Tensor | None = None
    masks: Tensor | None = None
    base: Tensor | None = None
    log_density: Tensor = field(default_factory=lambda: torch.zeros(0))
    distinct: bool = False

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.values)

    @property
    def exact(self) -> bool:
        """Whether no point is random: the measure has finite support, and a batch of forward passes is exact."""
        return bool((self.cluster == FIXED).all())

    def part(self, rows: Tensor) -> Points:
        """Return the points at (n,) Boolean `rows`, as the smaller design that they are.

        Whole clusters must be taken; the expected numbers of draws shrink with the number of clusters.
        """
        before, after = (len(c[c != FIXED].unique()) for c in (self.cluster, self.cluster[rows]))
        density = self.log_density
        if len(density):
            shrink = torch.log(torch.tensor(max(after, 1) / max(before, 1), dtype=torch.float64))
            density = density[rows] + shrink * (self.cluster[rows] != FIXED)
        picked = {
            name: None if value is None else value[rows]
            for name, value in (("owner", self.owner), ("weight", self.weight), ("masks", self.masks))
        }
        return Points(
            values=self.values[rows],
            x=self.x,
            count=self.count,
            cluster=self.cluster[rows],
            base=None if self.base is None else self.base[rows],
            log_density=density,
            distinct=self.distinct,
            **picked,
        )


class MeasureFamily(ABC):
    """One signed measure a feature; subclass it to add a method of the framework.

    A subclass says where to ask (`points`) and with which weights (`weights`). Weights must be a function of the
    points alone, so that one design can be cut into parts (standard errors) or serve several families.

    Attributes:
        name: What users type.
        needs: What a reader must know of the law behind it.
        complete: For any f the values sum to f(x) minus the mean of f over the replacements.
        quadrature: The points stand for a continuous measure, so that no design is exact.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    complete: ClassVar[bool] = False
    quadrature: ClassVar[bool] = False

    @abstractmethod
    def points(self, x: Tensor, generator: torch.Generator) -> Points:
        """Return the points for a (D,) input; every random number comes from `generator`."""

    def weights(self, points: Points) -> Tensor:
        """Return (n, d) float64 weights; here those of the owners.

        Raises:
            PluginError: The points have no owners, and the family defines no weights.
        """
        if points.owner is None or points.weight is None:
            raise PluginError(
                f"the measure family {type(self).__name__} gives no weights", hint="points with owners, or weights()"
            )
        return owned(points.owner, points.weight, points.count)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An attribution and what is known of the measure behind it.

    Attributes:
        values: (d,) or (d, T) attributions.
        stderr: The same shape: standard error by a delete-a-group jackknife; 0 where nothing is random.
        mass: (d,) mu_j(X), the attribution of the constant 1.
        variation: (d,) sum of |W|: total variation, or a bound on it where points coincide.
        points: Number of points asked.
        exact: The measure has finite support, and every point of it was asked.
    """

    values: Tensor
    stderr: Tensor
    mass: Tensor
    variation: Tensor
    points: int
    exact: bool


def integrate(f: Callable[[Tensor], Tensor], family: MeasureFamily, x: Tensor, *, seed: int = 0) -> Measured:
    """Attribute `f`, which maps (n, D) float64 points to (n,) or (n, T), at the (D,) input `x`.

    Raises:
        ExplainerRefused: `family` is not a measure.
    """
    points = family.points(x.double(), torch.Generator().manual_seed(seed))
    return measured(family, points, f(points.values).detach().double())


def measured(family: MeasureFamily, points: Points, answers: Tensor) -> Measured:
    """Put (n,) or (n, T) answers of the model at `points` together.

    Raises:
        ExplainerRefused: Too few points, so that a feature has none.
    """
    if len(answers) != len(points):
        raise ExplainerRefused(f"{family.name} asked at {len(points)} points and got {len(answers)} answers")
    answers = answers.double().cpu()

    def values(rows: Tensor) -> tuple[Tensor, Tensor]:
        weights = _weights(family, points.part(rows))
        return weights, weights.T @ answers[rows]

    everything = torch.ones(len(points), dtype=torch.bool)
    weights, phi = values(everything)
    return Measured(
        values=phi,
        stderr=_jackknife(points.cluster, lambda rows: values(rows)[1], phi) * _left_out(points),
        mass=weights.sum(0),
        variation=weights.abs().sum(0),
        points=len(points),
        exact=points.exact and not family.quadrature,
    )


def owned(owner: Tensor, weight: Tensor, count: int, *, normalise: bool = False) -> Tensor:
    """Return (n, d) weights from (n,) weights of each point's owner.

    Normalised, each feature's own points weigh 1 together, and points of all features -1.
    """
    full = torch.zeros(len(owner), count, dtype=torch.float64)
    shared = owner == FIXED
    rows = torch.nonzero(~shared).squeeze(1)
    full[rows, owner[rows]] = weight[rows]
    if normalise:
        full = full / full.sum(0)
    whole = -weight[shared].sum() if normalise else 1.0
    full[shared] = (weight[shared] / whole).unsqueeze(1)
    return full


def _weights(family: MeasureFamily, points: Points) -> Tensor:
    weights = family.weights(points)
    if not bool(weights.isfinite().all()):
        raise ExplainerRefused(
            f"{family.name} has a feature without any point in a design of {len(points)}", hint="raise the budget"
        )
    return weights


def _left_out(points: Points) -> float:
    """Return the root of the share of points that a design without repetition leaves out (finite population)."""
    drawn = points.cluster != FIXED
    if not points.distinct or not bool(drawn.any()):
        return 1.0
    copies = 1 if points.base is None else int(points.base.max()) + 1
    return float((1 - points.log_density[drawn].exp() / copies).clamp(min=0).mean().sqrt())


def _jackknife(cluster: Tensor, values: Callable[[Tensor], Tensor], phi: Tensor) -> Tensor:
    """Leave out one group of clusters after the other; clusters are independent, points of one are not."""
    drawn = cluster[cluster != FIXED].unique()
    groups = min(JACKKNIFE_GROUPS, len(drawn))
    if groups == 0:
        return torch.zeros_like(phi)
    if groups < 2:
        return torch.full_like(phi, float("nan"))
    group = torch.full((int(drawn.max()) + 1,), 0)
    group[drawn] = torch.arange(len(drawn)) % groups
    of_row = torch.where(cluster == FIXED, FIXED, group[cluster.clamp(min=0)])
    try:
        left = torch.stack([values(of_row != number) for number in range(groups)])
    except ExplainerRefused:  # a part without any point for some feature: too few points to say
        return torch.full_like(phi, float("nan"))
    return ((groups - 1) / groups * (left - left.mean(0)).square().sum(0)).sqrt()
