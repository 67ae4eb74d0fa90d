"""Families on random masks: Y = M x + (1 - M) Z, with M in {0, 1}^d and Z from a base law.

A design draws a size s from a law and then a uniform subset of that size. A family needs only the expected number of
draws of each mask, so masks drawn once serve every family. All is derived, except where marked as stated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from typing import ClassVar, Literal

import torch
from torch import Tensor

from xaihub import ExplainerRefused
from xaihub.masking import (
    CERTAIN,
    Coalitions,
    balanced_coalitions,
    binomial_sizes,
    draw_coalitions,
    every_coalition,
    shapley_sizes,
    shapley_weights,
)
from xaihub_first_principles.measures import FIXED, MeasureFamily, Points, owner_weights

Law = Literal["own", "uniform", "shared"]
ENUMERATE_UP_TO = 16  # features; 65 536 masks


@dataclass(frozen=True, kw_only=True)
class MaskFamily(MeasureFamily):
    """A family that evaluates mixtures of the input and a replacement."""

    budget: int = 1000  # number of points; if it covers all 2^d masks each is taken once, and nothing is random
    law: Law = "own"  # sizes of the masks: the family's own law, uniform, or one that suits every family
    background: Tensor | None = None  # (k, d) replacements Z, zero by default; the base law is uniform on them
    centre: bool = False  # subtract the mean of f over the law of Y, unless the family's mass is 0 anyway

    def size_law(self, d: int) -> Tensor:
        """Return the (d + 1,) log-probabilities of the sizes 0..d that suit this family."""
        return binomial_sizes(d, 0.5)

    def ends(self) -> bool:
        """Return whether the empty and the full mask are always included, once."""
        return self.law != "own"

    def replacements(self, x: Tensor) -> Tensor:
        """Return the (k, d) replacements."""
        return torch.zeros(1, len(x), dtype=torch.float64) if self.background is None else self.background.double()

    def points(self, x: Tensor, generator: torch.Generator) -> Points:
        """Draw the masks: all of them if the budget allows, else pairs with complements.

        Equally likely masks are balanced (`balanced_coalitions`); others have stratified sizes.
        """
        background = self.replacements(x)
        d, k = len(x), len(background)
        if d <= ENUMERATE_UP_TO and 2**d * k <= self.budget:
            return design_points(x, every_coalition(d, copies=k), background)
        if self._even(d):
            design = balanced_coalitions(d, self.budget, copies=k, generator=generator)
            return replace(design_points(x, design, background), distinct=False)
        design = draw_coalitions(d, self.budget, self._law(d), ends=self.ends(), copies=k, generator=generator)
        return design_points(x, design, background)

    def _even(self, d: int) -> bool:
        """Whether each mask is equally likely, and there are too many of them to draw each at most once."""
        return d > ENUMERATE_UP_TO and not self.ends() and torch.allclose(self._law(d), binomial_sizes(d, 0.5))

    def _law(self, d: int) -> Tensor:
        if self.law == "own":
            return self.size_law(d)
        if self.law == "uniform":
            return torch.full((d + 1,), -log(d + 1), dtype=torch.float64)
        return torch.logaddexp(binomial_sizes(d, 0.5), shapley_sizes(d)) - log(2)


@dataclass(frozen=True, kw_only=True)
class KeepP(MaskFamily):
    """The law of Y given m_j = 1, each feature kept with probability p; p -> 0 is partial dependence.

    With `adjust`, an additive game is fitted by weighted least squares and added back in closed form, so that only the
    residual is estimated: still linear in f, with less variance. The estimate's weights are then signed.
    """

    name: ClassVar[str] = "keep_p"

    p: float = 0.5
    adjust: bool = False

    def size_law(self, d: int) -> Tensor:
        """Return the binomial law."""
        return binomial_sizes(d, self.p)

    def weights(self, points: Points) -> Tensor:
        """Return weights M_ij w_i / sum_i M_ij w_i, with w the ratio of this law to the design's."""
        M, ratio = self._ratio(points)
        kept = M * ratio.unsqueeze(1)
        plain = kept / kept.sum(0) - self._mean(ratio)
        others = 0.0 if self.centre else self.p
        return self._adjusted(M, ratio, plain, mass=float(not self.centre), own=1 - self.p + others, other=others)

    def _adjusted(self, M: Tensor, ratio: Tensor, plain: Tensor, *, mass: float, own: float, other: float) -> Tensor:
        """Return the weights; an additive game a + sum_k b_k m_k has the values mass a + own b_j + other b_k.

        Without `adjust`, or with fewer than 2 d + 2 points, the weights are unchanged.
        """
        n, d = M.shape
        if not self.adjust or n < 2 * d + 2:
            return plain
        Z = torch.cat([torch.ones(n, 1, dtype=M.dtype), M], 1)
        ZR = Z * ratio.unsqueeze(1)
        fit: Tensor = torch.linalg.pinv(Z.T @ ZR, hermitian=True) @ ZR.T  # (1 + d, n): a and b from the outputs
        b = fit[1:]
        additive = mass * fit[:1] + (own - other) * b + other * b.sum(0)
        return (additive + plain.T - (plain.T @ Z) @ fit).T

    def stderr(self, points: Points, outputs: Tensor, weights: Tensor) -> Tensor | None:
        """Return standard errors from the residuals of the additive fit, if there is one, over clusters of points.

        They are those of the regression with the loss of degrees of freedom (derived): unlike a jackknife's, they are
        not too large where the points are hardly more than the coefficients, and they know a balanced design.
        """
        drawn = points.cluster != FIXED
        n, d = weights.shape
        clusters = int(points.cluster.max()) + 1
        if not self.adjust or n < 2 * d + 2 or not bool(drawn.all()) or clusters <= d + 1:
            return None
        M, ratio = self._ratio(points)
        Z = torch.cat([torch.ones(n, 1, dtype=M.dtype), M], 1)
        ZR = Z * ratio.unsqueeze(1)
        columns = outputs.double().view(n, -1)
        rest = columns - Z @ (torch.linalg.pinv(Z.T @ ZR, hermitian=True) @ (ZR.T @ columns))
        group = points.cluster.unique(return_inverse=True)[1]
        count = int(group.max()) + 1
        squares = torch.empty(d, columns.shape[1], dtype=torch.float64)
        for target in range(columns.shape[1]):
            parts = torch.zeros(count, d, dtype=torch.float64)
            parts.index_add_(0, group, weights * rest[:, target : target + 1])
            squares[:, target] = (parts - parts.mean(0)).square().sum(0)
        return (squares * count / (count - d)).sqrt().view(d, *outputs.shape[1:])

    def _mean(self, ratio: Tensor) -> Tensor | float:
        return (ratio / ratio.sum()).unsqueeze(1) if self.centre else 0.0

    def _ratio(self, points: Points) -> tuple[Tensor, Tensor]:
        M, s = _masks(points)
        d = points.count
        logs = s * log(self.p) + (d - s) * log(1 - self.p) - points.log_density
        return M, (logs - logs.max()).exp()


@dataclass(frozen=True, kw_only=True)
class SignedKeepP(KeepP):
    """The law given m_j = 1 minus the law given m_j = 0; an unused feature gets 0 in expectation."""

    name: ClassVar[str] = "signed_keep_p"

    def weights(self, points: Points) -> Tensor:
        """Return the weights of masks that keep j minus those of masks that drop it."""
        M, ratio = self._ratio(points)
        kept, dropped = M * ratio.unsqueeze(1), (1 - M) * ratio.unsqueeze(1)
        return self._adjusted(M, ratio, kept / kept.sum(0) - dropped / dropped.sum(0), mass=0, own=1, other=0)


@dataclass(frozen=True, kw_only=True)
class Mixture(MaskFamily):
    """sum_k theta_k times the signed keep-p measure at p_k."""

    name: ClassVar[str] = "mixture"

    ps: tuple[float, ...] = (0.5,)  # the (K,) probabilities
    thetas: tuple[float, ...] = (1.0,)  # their (K,) non-negative weights, which sum to 1
    adjust: bool = True

    @property
    def parameters(self) -> dict[str, float]:
        """The weight of each p; p itself if there is only one."""
        if len(self.ps) == 1:
            return {"p": self.ps[0]}
        return {f"weight of p = {p:g}": theta for p, theta in zip(self.ps, self.thetas, strict=True)}

    def size_law(self, d: int) -> Tensor:
        """Return the mixture of the binomial laws."""
        laws = torch.stack([binomial_sizes(d, p) + log(t) for p, t in zip(self.ps, self.thetas, strict=True) if t > 0])
        return laws.logsumexp(0)

    def weights(self, points: Points) -> Tensor:
        """Return the mixture of the weights."""
        parts = [
            theta * SignedKeepP(p=p, adjust=self.adjust).weights(points)
            for p, theta in zip(self.ps, self.thetas, strict=True)
            if theta > 0
        ]
        return torch.stack(parts).sum(0)


@dataclass(frozen=True, kw_only=True)
class RISE(KeepP):
    """RISE's Eq. 6, weights M_ij / (p N): its mass is 1 in expectation only. Soft masks are allowed."""

    name: ClassVar[str] = "rise"

    def weights(self, points: Points) -> Tensor:
        """Return M_ij / (p N) if the design follows p, else M_ij times the ratio of the laws."""
        M, ratio = self._ratio(points)
        return M * (ratio / ratio.sum()).unsqueeze(1) / self.p - self._mean(ratio)


@dataclass(frozen=True, kw_only=True)
class Shapley(MaskFamily):
    """Shapley values of v(S) = E f(x_S, Z_{-S}): a signed measure of mass 0, with `shapley_weights` of the engine."""

    name: ClassVar[str] = "shapley"
    complete: ClassVar[bool] = True

    adjust: bool = True

    def size_law(self, d: int) -> Tensor:
        """Return sizes in proportion to the weights' absolute sum, 1/s + 1/(d - s)."""
        return shapley_sizes(d)

    def ends(self) -> bool:
        """Return True: the empty and the full coalition determine the sum."""
        return True

    def weights(self, points: Points) -> Tensor:
        """Return the weights; without `adjust`, or with fewer than 2 d + 2 points, without regression."""
        return shapley_weights(_masks(points)[0], points.log_density, adjust=self.adjust)


@dataclass(frozen=True, kw_only=True)
class Occlusion(MaskFamily):
    """f(x) - f(x with j replaced): delta at x minus the replacement's law."""

    name: ClassVar[str] = "occlusion"

    def masks(self, d: int) -> Tensor:
        """Return the full mask and the d masks that drop one feature."""
        return torch.cat([torch.ones(1, d), 1 - torch.eye(d)])

    def points(self, x: Tensor, generator: torch.Generator) -> Points:  # noqa: ARG002
        """Return the masks over every replacement: finite support."""
        background = self.replacements(x)
        return design_points(x, fixed_masks(self.masks(len(x)), copies=len(background)), background)

    def weights(self, points: Points) -> Tensor:
        """Return weights that sum to +1 on x and to -1 on the points without j."""
        M, s = _masks(points)
        full = (s == points.count).double()
        return (full / full.sum()).unsqueeze(1) - (1 - M) / (1 - M).sum(0)


@dataclass(frozen=True, kw_only=True)
class KeepOne(Occlusion):
    """Stated: partial dependence (Table 1): all features but j are replaced, all by the same replacement."""

    name: ClassVar[str] = "pdp"

    def masks(self, d: int) -> Tensor:
        """Return the d masks that keep one feature, and the empty mask if centred."""
        return torch.cat([torch.eye(d), torch.zeros(int(self.centre), d)])

    def weights(self, points: Points) -> Tensor:
        """Return equal weights for each feature's points, minus the replacements if centred."""
        M, s = _masks(points)
        owner = torch.where(s == 0, FIXED, M.argmax(1))
        return owner_weights(owner, torch.ones(len(M), dtype=torch.float64), points.count, normalise=True)


@dataclass(frozen=True, kw_only=True)
class LIME(MaskFamily):
    """LIME with a fixed design, an exponential kernel and a fixed ridge, so that it is linear in f.

    Rows of (Z'KZ + ridge I)^-1 Z'K on centred Z. Selecting features by Lasso is not linear, so it is omitted.
    """

    name: ClassVar[str] = "lime_fixed"

    kernel_width: float = 0.25
    ridge: float = 1.0

    def weights(self, points: Points) -> Tensor:
        """Return the ridge estimate's weights, with an unpenalised intercept."""
        M, s = _masks(points)
        d = points.count
        distance = 1 - (s / d).sqrt()  # cosine distance between the mask and all ones
        ratio = -d * log(2) - points.log_density  # the design of LIME is uniform on masks
        K = (-((distance / self.kernel_width) ** 2)).exp().sqrt() * (ratio - ratio.max()).exp()
        centred = M - (K @ M) / K.sum()
        KZ = centred * K.unsqueeze(1)
        estimate: Tensor = torch.linalg.solve(centred.T @ KZ + self.ridge * torch.eye(d, dtype=torch.float64), KZ.T)
        return estimate.T


def fixed_masks(masks: Tensor, *, copies: int) -> Coalitions:
    """Return (n, d) masks as a non-random design, once per replacement."""
    return Coalitions(
        shown=masks.repeat(copies, 1),
        draw=torch.full((len(masks) * copies,), CERTAIN),
        copy=torch.arange(copies).repeat_interleave(len(masks)),
        log_expected=torch.full((len(masks) * copies,), float(copies), dtype=torch.float64).log(),
    )


def design_points(x: Tensor, design: Coalitions, background: Tensor) -> Points:
    """Return the points Y = M x + (1 - M) Z of a design, for the (d,) input and (k, d) replacements Z."""
    M = design.shown.double()
    return Points(
        values=M * x + (1 - M) * background[design.copy],
        x=x,
        count=len(x),
        cluster=torch.where(design.draw == CERTAIN, FIXED, design.draw),
        masks=design.shown,
        base=design.copy,
        log_density=design.log_expected,
        distinct=True,
    )


def _masks(points: Points) -> tuple[Tensor, Tensor]:
    if points.masks is None:
        raise ExplainerRefused("this family needs points drawn by masks")
    M = points.masks.double()
    return M, M.sum(1)
