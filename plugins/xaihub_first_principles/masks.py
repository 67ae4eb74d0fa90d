"""Families on random masks: Y = M x + (1 - M) Z, with M in {0, 1}^d and Z from a base law.

A design draws a size s from a law pi and then a uniform subset of that size. All that a family needs of the design is
how often it draws each mask, so that masks drawn once serve every p, Shapley values and any other family.
"""

from __future__ import annotations

from math import lgamma, log
from typing import Literal

import torch
from torch import Tensor

from xaihub import ExplainerRefused, ParameterError
from xaihub_first_principles.measures import FIXED, MeasureFamily, Points, owned

__all__ = ["LIME", "RISE", "KeepOne", "KeepP", "MaskFamily", "Occlusion", "Shapley", "SignedKeepP", "draw_masks", "lift"]

Law = Literal["own", "uniform", "shared"]
ENUMERATE_UP_TO = 16  # features; 65 536 masks


class MaskFamily(MeasureFamily):
    """A family that asks at mixtures of the input and a replacement.

    Args:
        budget: Points asked; if it covers all 2^d masks each is taken once, and nothing is random.
        law: Sizes of the masks: the family's own law, all sizes alike, or one that serves every family.
        background: (k, D) replacements Z, all zero by default; the base law is uniform on them.
        groups: (D,) feature of each coordinate; by default each is its own.
    """

    needs = "the replacements of hidden features"

    def __init__(
        self, *, budget: int = 1000, law: Law = "own", background: Tensor | None = None, groups: Tensor | None = None
    ) -> None:
        self.budget = budget
        self.law = law
        self.background = background
        self.groups = groups

    def size_law(self, d: int) -> Tensor:
        """Return the (d + 1,) log-probabilities of the sizes 0..d that suit this family."""
        return binomial(d, 0.5)

    def ends(self) -> bool:
        """Whether the empty and the full mask are asked once and for sure."""
        return self.law != "own"

    def points(self, x: Tensor, generator: torch.Generator) -> Points:
        """Draw the masks: all of them if the budget allows, else antithetic pairs of stratified sizes."""
        groups = torch.arange(len(x)) if self.groups is None else self.groups
        d = int(groups.max()) + 1
        background = torch.zeros(1, len(x), dtype=torch.float64) if self.background is None else self.background
        k = len(background)
        if d <= ENUMERATE_UP_TO and 2**d * k <= self.budget:
            masks = (torch.arange(2**d).unsqueeze(1) >> torch.arange(d)) & 1
            cluster = torch.full((2**d,), FIXED)
            density = torch.zeros(2**d, dtype=torch.float64)
        else:
            masks, cluster, density = draw_masks(
                d, self.budget, self._law(d), ends=self.ends(), fixed=k, generator=generator
            )
        return lift(x, masks, cluster, density, background=background.double(), groups=groups)

    def _law(self, d: int) -> Tensor:
        if self.law == "own":
            return self.size_law(d)
        if self.law == "uniform":
            return torch.full((d + 1,), -log(d + 1), dtype=torch.float64)
        return torch.logaddexp(binomial(d, 0.5), shapley_law(d)) - log(2)


class KeepP(MaskFamily):
    """D: the law of Y given m_j = 1, each feature kept with probability p; p -> 0 is partial dependence."""

    name = "keep_p"

    def __init__(
        self,
        *,
        p: float = 0.5,
        budget: int = 1000,
        law: Law = "own",
        background: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        super().__init__(budget=budget, law=law, background=background, groups=groups)
        self.p = p

    def size_law(self, d: int) -> Tensor:
        """Return the binomial law."""
        return binomial(d, self.p)

    def weights(self, points: Points) -> Tensor:
        """Return weights M_ij w_i / sum_i M_ij w_i, with w the ratio of this law to the design's."""
        M, ratio = self._ratio(points)
        kept = M * ratio.unsqueeze(1)
        return kept / kept.sum(0)

    def _ratio(self, points: Points) -> tuple[Tensor, Tensor]:
        M, s = _masks(points)
        d = points.count
        wanted = s * log(self.p) + (d - s) * log(1 - self.p)
        logs = wanted - points.log_density
        return M, (logs - logs.max()).exp()


class SignedKeepP(KeepP):
    """D: the law given m_j = 1 minus the law given m_j = 0; a feature that is not used gets 0 in expectation."""

    name = "signed_keep_p"

    def weights(self, points: Points) -> Tensor:
        """Return the weights of kept minus those of dropped."""
        M, ratio = self._ratio(points)
        kept, dropped = M * ratio.unsqueeze(1), (1 - M) * ratio.unsqueeze(1)
        return kept / kept.sum(0) - dropped / dropped.sum(0)


class RISE(KeepP):
    """D: RISE's Eq. 6, weights M_ij / (p N): its mass is 1 in expectation only. Soft masks are allowed."""

    name = "rise"

    def weights(self, points: Points) -> Tensor:
        """Return M_ij / (p N), where the design follows p; else by the ratio of the laws."""
        M, ratio = self._ratio(points)
        return M * (ratio / ratio.sum()).unsqueeze(1) / self.p


class Shapley(MaskFamily):
    """D: Shapley values of v(S) = E f(x_S, Z_{-S}): a signed measure of mass 0.

    Each mask is weighted by its Shapley weight over how often the design draws it. `adjust` estimates on the
    residuals of the least-squares fit of an additive game (the fit of Kernel SHAP) and adds the fit's own Shapley
    values; that is linear in f as well, and it takes the variance of all that is additive away.
    """

    name = "shapley"
    complete = True

    def __init__(
        self,
        *,
        adjust: bool = True,
        budget: int = 1000,
        law: Law = "own",
        background: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        super().__init__(budget=budget, law=law, background=background, groups=groups)
        self.adjust = adjust

    def size_law(self, d: int) -> Tensor:
        """Return sizes in proportion to the weights' absolute sum, 1/s + 1/(d - s)."""
        return shapley_law(d)

    def ends(self) -> bool:
        """Return True: the smallest and the largest coalition fix the sum."""
        return True

    def weights(self, points: Points) -> Tensor:
        """Return the weights; without `adjust`, or with fewer than 2 d + 2 points, without regression."""
        M, s = _masks(points)
        d = points.count
        kept = (_lgamma(s.clamp(min=1)) + _lgamma(d - s + 1) - lgamma(d + 1) - points.log_density).exp()
        left = (d - s).clamp(min=1)
        dropped = (_lgamma(s + 1) + _lgamma(left) - lgamma(d + 1) - points.log_density).exp()
        plain = M * kept.unsqueeze(1) - (1 - M) * dropped.unsqueeze(1)  # (n, d)
        empty, full = (s == 0).double(), (s == d).double()
        if not self.adjust or d < 2 or len(points) < 2 * d + 2 or not bool(empty.any()) or not bool(full.any()):
            return plain
        start, end = empty / empty.sum(), full / full.sum()
        fit = _additive_fit(M, s, points.log_density, start, end)  # (d, n): values of the additive game
        # Applied to the residuals F - F(empty) - M fit F, as one linear map of F.
        rest = plain.T - plain.sum(0).unsqueeze(1) * start - (plain.T @ M) @ fit
        # Zero at both ends, the residual's Shapley values sum to 0; so must their estimate.
        return (fit + rest - rest.mean(0)).T


class Occlusion(MaskFamily):
    """D: f(x) - f(x with j replaced): delta at x minus the replacement's law."""

    name = "occlusion"

    def points(self, x: Tensor, generator: torch.Generator) -> Points:  # noqa: ARG002
        """Return x and, for each replacement, d points: finite support."""
        groups = torch.arange(len(x)) if self.groups is None else self.groups
        d = int(groups.max()) + 1
        background = torch.zeros(1, len(x), dtype=torch.float64) if self.background is None else self.background
        masks = torch.cat([torch.ones(1, d), 1 - torch.eye(d)])
        cluster = torch.full((len(masks),), FIXED)
        return lift(x, masks, cluster, torch.zeros(len(masks)), background=background.double(), groups=groups)

    def weights(self, points: Points) -> Tensor:
        """Return +1 in all on x and -1 in all on the points without j."""
        M, s = _masks(points)
        shown = (s == points.count).double()
        return (shown / shown.sum()).unsqueeze(1) - (1 - M) / (1 - M).sum(0)


class KeepOne(Occlusion):
    """S: partial dependence on features: all but j replaced, by one replacement for all (Table 1)."""

    name = "pdp"

    def points(self, x: Tensor, generator: torch.Generator) -> Points:
        """Return d points for each replacement."""
        points = super().points(x, generator)
        groups = torch.arange(len(x)) if self.groups is None else self.groups
        background = torch.zeros(1, len(x), dtype=torch.float64) if self.background is None else self.background
        d = points.count
        fixed = torch.full((d,), FIXED)
        return lift(x, torch.eye(d), fixed, torch.zeros(d), background=background.double(), groups=groups)

    def weights(self, points: Points) -> Tensor:
        """Return one point's share for each feature."""
        M, _ = _masks(points)
        return owned(M.argmax(1), torch.ones(len(M), dtype=torch.float64), points.count, normalise=True)


class LIME(MaskFamily):
    """D: LIME with a fixed design, an exponential kernel and a fixed ridge, so that it is linear in f.

    Rows of (Z'KZ + ridge I)^-1 Z'K on centred Z; selecting features by Lasso is not linear, and is left out.
    """

    name = "lime_fixed"

    def __init__(
        self,
        *,
        kernel_width: float = 0.25,
        ridge: float = 1.0,
        budget: int = 1000,
        law: Law = "own",
        background: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        super().__init__(budget=budget, law=law, background=background, groups=groups)
        self.kernel_width = kernel_width
        self.ridge = ridge

    def weights(self, points: Points) -> Tensor:
        """Return the ridge estimate's weights with an intercept that is not shrunk."""
        M, s = _masks(points)
        d = points.count
        distance = 1 - (s / d).sqrt()  # cosine distance between the mask and all ones
        ratio = -d * log(2) - points.log_density  # the design of LIME is uniform on masks
        K = (-((distance / self.kernel_width) ** 2)).exp().sqrt() * (ratio - ratio.max()).exp()
        centred = M - (K @ M) / K.sum()
        KZ = centred * K.unsqueeze(1)
        return torch.linalg.solve(centred.T @ KZ + self.ridge * torch.eye(d, dtype=torch.float64), KZ.T).T


def draw_masks(
    d: int, n: int, law: Tensor, *, ends: bool, fixed: int = 1, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw (about n, d) masks, their (n,) clusters, and the log of the expected number of draws of each.

    Sizes are stratified by systematic sampling. If the law is symmetric, masks come in pairs with their complements.
    With `ends` the empty and the full mask stand first, once for each of `fixed` replacements.

    Raises:
        ParameterError: n is too small.
    """
    law = law.clone()
    first = torch.zeros(0, d)
    if ends:
        law[[0, d]] = -torch.inf
        first = torch.cat([torch.zeros(fixed, d), torch.ones(fixed, d)])
    if n - len(first) < 4 or d < 1:
        raise ParameterError(f"a budget of {n} points is too small for masks", hint=f"at least {len(first) + 4}")
    if d == 1 and ends:
        return first, torch.full((len(first),), FIXED), torch.zeros(len(first), dtype=torch.float64)
    law = law - law.logsumexp(0)
    paired = torch.allclose(law.exp(), law.exp().flip(0), atol=1e-12)
    clusters = (n - len(first)) // 2 if paired else n - len(first)
    levels = (torch.arange(clusters) + torch.rand((), generator=generator, dtype=torch.float64)) / clusters
    sizes = torch.searchsorted(law.exp().cumsum(0), levels).clamp(max=d - int(ends))
    sizes = sizes[torch.randperm(clusters, generator=generator)]
    rank = torch.rand(clusters, d, generator=generator).argsort(1).argsort(1)
    masks = (rank < sizes.unsqueeze(1)).to(first)
    cluster = torch.arange(clusters)
    if paired:
        masks = torch.stack([masks, 1 - masks], 1).flatten(0, 1)
        cluster = cluster.repeat_interleave(2)
    s = masks.sum(1).long()
    subsets = lgamma(d + 1) - _lgamma(s.double() + 1) - _lgamma(d - s.double() + 1)
    density = log(len(masks)) + law[s] - subsets
    return (
        torch.cat([first, masks]),
        torch.cat([torch.full((len(first),), FIXED), cluster]),
        torch.cat([torch.zeros(len(first), dtype=torch.float64), density]),
    )


def lift(
    x: Tensor, masks: Tensor, cluster: Tensor, density: Tensor, *, background: Tensor, groups: Tensor
) -> Points:
    """Return the points Y = M x + (1 - M) Z of (n, d) masks.

    Fixed masks meet every replacement, unless they come as one row for each already; drawn ones take them in turn.
    """
    k = len(background)
    random = cluster != FIXED
    if bool(random.any()):
        ahead = int((~random).sum())
        base = torch.where(random, cluster % k, torch.arange(len(masks)) % k if ahead else 0)
        # A fixed row that stands for each of k replacements counts for one k-th.
        density = torch.where(random, density, torch.full_like(density, log(k)))
    else:
        base = torch.arange(k).repeat_interleave(len(masks))
        masks, cluster = masks.repeat(k, 1), cluster.repeat(k)
        density = density.double().repeat(k) + log(k)
    M = masks.double()[:, groups]
    return Points(
        values=M * x + (1 - M) * background[base],
        x=x,
        count=masks.shape[1],
        cluster=cluster,
        masks=masks,
        base=base,
        log_density=density.double(),
    )


def binomial(d: int, p: float) -> Tensor:
    """Return the (d + 1,) log-probabilities of a binomial law."""
    s = torch.arange(d + 1, dtype=torch.float64)
    return lgamma(d + 1) - _lgamma(s + 1) - _lgamma(d - s + 1) + s * log(p) + (d - s) * log(1 - p)


def shapley_law(d: int) -> Tensor:
    """Return log-probabilities in proportion to 1 / (s (d - s)) for 0 < s < d."""
    s = torch.arange(d + 1, dtype=torch.float64)
    logs = -(s * (d - s)).log()
    logs[[0, d]] = -torch.inf
    return logs - logs.logsumexp(0) if d > 1 else torch.full((d + 1,), -log(2.0), dtype=torch.float64)


def _masks(points: Points) -> tuple[Tensor, Tensor]:
    if points.masks is None:
        raise ExplainerRefused("a family of masks needs points that come from masks")
    M = points.masks.double()
    return M, M.sum(1)


def _lgamma(value: Tensor) -> Tensor:
    return torch.lgamma(value.double())


def _additive_fit(M: Tensor, s: Tensor, log_density: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the (d, n) linear map from answers to Kernel SHAP's solution, which meets both ends exactly."""
    d = M.shape[1]
    inner = (s > 0) & (s < d)
    logs = torch.full_like(s, -torch.inf)
    logs[inner] = (_lgamma(s[inner]) + _lgamma(d - s[inner])) - log_density[inner]
    kernel = (logs - logs.max()).exp()  # (s - 1)! (d - s - 1)! over the density, up to a factor
    KZ = M * kernel.unsqueeze(1)
    inverse = torch.linalg.pinv(M.T @ KZ, hermitian=True)
    free = inverse @ (KZ.T - KZ.sum(0).unsqueeze(1) * start)  # answers minus the empty answer
    direction = inverse.sum(1, keepdim=True) / inverse.sum()
    return free - direction * (free.sum(0) - (end - start))
