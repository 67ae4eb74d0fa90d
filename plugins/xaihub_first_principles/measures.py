"""Attributions as measures: the engine (Taimeskhanov and Garreau 2025, arXiv 2505.24729: phi_j = int f d mu_j).

An attribution that is linear in the model and stable under uniform convergence is one signed measure per feature
(stated). Here a measure is points Y with signed weights W, and the attribution is `phi_j = sum_i W[i, j] f(Y[i])`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from xaihub import ExplainerRefused
from xaihub.errors import PluginError

FIXED = -1  # the cluster of points that are not random, and the owner of points that serve every feature
JACKKNIFE_GROUPS = 20


@dataclass(frozen=True, kw_only=True)
class Points:
    """Where a family evaluates the model."""

    values: Tensor  # (n, D) the points Y
    x: Tensor  # (D,) the explained input
    count: int  # number of features, d
    cluster: Tensor  # (n,) which points are drawn together, such as a mask and its complement; `FIXED` if not random
    owner: Tensor | None = None  # (n,) the feature that a point serves, or `FIXED` for all; None without owners
    weight: Tensor | None = None  # (n,) a point's weight for its owner, if the family knows it in advance
    masks: Tensor | None = None  # (n, d) the features that a point shows, for families on masks
    base: Tensor | None = None  # (n,) the replacement used for masked features, for families on masks
    log_density: Tensor = field(default_factory=lambda: torch.zeros(0))  # (n,) log of the expected draws of a mask
    distinct: bool = False  # no point is drawn twice, so a design that covers much of the support has a smaller error

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.values)

    @property
    def exact(self) -> bool:
        """Whether no point is random: the measure has finite support, and forward passes give it exactly."""
        return bool((self.cluster == FIXED).all())

    def part(self, rows: Tensor) -> Points:
        """Return the points at (n,) Boolean `rows` as a smaller design.

        Rows must contain whole clusters; the expected number of draws shrinks with the number of clusters.
        """
        before, after = (len(c[c != FIXED].unique()) for c in (self.cluster, self.cluster[rows]))
        picked = {
            name: value[rows]
            for name in ("values", "cluster", "owner", "weight", "masks", "base")
            if (value := getattr(self, name)) is not None
        }
        density = self.log_density
        if len(density):
            shrink = torch.log(torch.tensor(max(after, 1) / max(before, 1), dtype=torch.float64))
            density = density[rows] + shrink * (self.cluster[rows] != FIXED)
        return replace(self, log_density=density, **picked)


class MeasureFamily(ABC):
    """One signed measure per feature; subclass it to add a method of the framework.

    A subclass defines where the model is evaluated (`points`) and with which weights (`weights`). Weights must be a
    function of the points alone, so that a design can be split (standard errors) or serve several families.

    Attributes:
        name: The name users type.
        complete: For any f the values sum to f(x) minus the mean of f over the replacements.
        quadrature: The points approximate a continuous measure, so no design is exact.
        normalise: The weights of each feature's own points sum to 1, and those of shared points to -1.
    """

    name: ClassVar[str] = ""
    complete: ClassVar[bool] = False
    quadrature: ClassVar[bool] = False
    normalise: ClassVar[bool] = False

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
        return owner_weights(points.owner, points.weight, points.count, normalise=self.normalise)

    def stderr(self, points: Points, outputs: Tensor, weights: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return standard errors, of the shape of the attribution; None leaves them to a jackknife over clusters."""
        return None


@dataclass(frozen=True, kw_only=True)
class MeasureResult:
    """An attribution, and what is known about its measure."""

    values: Tensor  # (d,) or (d, T) attributions
    stderr: Tensor  # the same shape: standard errors, by default from a jackknife; 0 if nothing is random
    mass: Tensor  # (d,) mu_j(X), the attribution of the constant 1
    variation: Tensor  # (d,) sum of |W|: total variation, or a bound on it if points coincide
    points: int  # number of evaluated points
    exact: bool  # the measure has finite support, and every point of it was evaluated


def integrate(f: Callable[[Tensor], Tensor], family: MeasureFamily, x: Tensor, *, seed: int = 0) -> MeasureResult:
    """Attribute `f`, which maps (n, D) float64 points to (n,) or (n, T), at the (D,) input `x`.

    Raises:
        ExplainerRefused: `family` is not a measure.
    """
    points = family.points(x.double(), torch.Generator().manual_seed(seed))
    return combine(family, points, f(points.values).detach().double())


def combine(family: MeasureFamily, points: Points, outputs: Tensor) -> MeasureResult:
    """Return the attribution from the (n,) or (n, T) outputs of the model at `points`.

    Raises:
        ExplainerRefused: Too few points, so that a feature has none.
    """
    if len(outputs) != len(points):
        raise ExplainerRefused(f"{family.name} has {len(points)} points, but there are {len(outputs)} outputs")
    outputs = outputs.double().cpu()

    def values(rows: Tensor) -> tuple[Tensor, Tensor]:
        part = points.part(rows)
        weights = family.weights(part)
        if not bool(weights.isfinite().all()):
            raise ExplainerRefused(
                f"{family.name} has a feature without any point in a design of {len(part)}", hint="raise the budget"
            )
        return weights, weights.T @ outputs[rows]

    weights, phi = values(torch.ones(len(points), dtype=torch.bool))
    stderr = family.stderr(points, outputs, weights)
    if stderr is None:
        stderr = _jackknife(points.cluster, lambda rows: values(rows)[1], phi)
    return MeasureResult(
        values=phi,
        stderr=stderr * _finite_population(points),
        mass=weights.sum(0),
        variation=weights.abs().sum(0),
        points=len(points),
        exact=points.exact and not family.quadrature,
    )


def exact_result(values: Tensor, *, mass: float, variation: float | Tensor) -> MeasureResult:
    """Return (d,) values that were computed without points as an exact result."""
    values = values.double()
    full = torch.ones_like(values)
    return MeasureResult(
        values=values, stderr=0 * full, mass=mass * full, variation=variation * full, points=0, exact=True
    )


def owner_weights(owner: Tensor, weight: Tensor, count: int, *, normalise: bool = False) -> Tensor:
    """Return (n, d) weights from the (n,) weights of each point for its owner.

    If normalised, the weights of each feature's own points sum to 1, and those of points that serve all to -1.
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


def _finite_population(points: Points) -> float:
    """Return the square root of the fraction of the support that a design without repetition leaves out."""
    drawn = points.cluster != FIXED
    if not points.distinct or not bool(drawn.any()):
        return 1.0
    copies = 1 if points.base is None else int(points.base.max()) + 1
    return float((1 - points.log_density[drawn].exp() / copies).clamp(min=0).mean().sqrt())


def _jackknife(cluster: Tensor, values: Callable[[Tensor], Tensor], phi: Tensor) -> Tensor:
    """Leave out one group of clusters at a time; clusters are independent, points within one are not."""
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
    except ExplainerRefused:  # some feature has no point without that group: too few points for a standard error
        return torch.full_like(phi, float("nan"))
    return ((groups - 1) / groups * (left - left.mean(0)).square().sum(0)).sqrt()
