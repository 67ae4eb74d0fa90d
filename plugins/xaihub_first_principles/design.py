"""Designs of random masks: a size from a law, then a uniform subset of that size; and the points they become."""

from __future__ import annotations

from math import lgamma, log

import torch
from torch import Tensor

from xaihub import ParameterError
from xaihub_first_principles.measures import FIXED, Points

__all__ = ["binomial", "draw_masks", "lift", "log_gamma", "shapley_law"]


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
    subsets = lgamma(d + 1) - log_gamma(s.double() + 1) - log_gamma(d - s.double() + 1)
    density = log(len(masks)) + law[s] - subsets
    return (
        torch.cat([first, masks]),
        torch.cat([torch.full((len(first),), FIXED), cluster]),
        torch.cat([torch.zeros(len(first), dtype=torch.float64), density]),
    )


def lift(x: Tensor, masks: Tensor, cluster: Tensor, density: Tensor, *, background: Tensor, groups: Tensor) -> Points:
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
    return lgamma(d + 1) - log_gamma(s + 1) - log_gamma(d - s + 1) + s * log(p) + (d - s) * log(1 - p)


def shapley_law(d: int) -> Tensor:
    """Return log-probabilities in proportion to 1 / (s (d - s)) for 0 < s < d."""
    s = torch.arange(d + 1, dtype=torch.float64)
    logs = -(s * (d - s)).log()
    logs[[0, d]] = -torch.inf
    return logs - logs.logsumexp(0) if d > 1 else torch.full((d + 1,), -log(2.0), dtype=torch.float64)


def log_gamma(value: Tensor) -> Tensor:
    """Return log Gamma in float64."""
    return torch.lgamma(value.double())
