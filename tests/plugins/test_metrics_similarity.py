"""How alike two maps are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import conv2d

from tests.plugins.sanity_cases import KINDS, SIDE
from xaihub import (
    MetricRefused,
)
from xaihub_metrics_sanity.similarity import similarity


def maps(count: int, side: int = SIDE) -> Iterator[Tensor]:
    yield from torch.randn(count, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_map_is_like_itself_at_any_scale(kind: str, absolute: bool) -> None:
    for heat in maps(3):
        assert similarity(heat, heat * 1e-20, kind, absolute=absolute) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("kind", ["spearman", "cosine"])
def test_the_opposite_map_is_unlike_unless_signs_do_not_matter(kind: str) -> None:
    (heat,) = maps(1)
    assert similarity(heat, -heat, kind, absolute=False) == pytest.approx(-1)
    assert similarity(heat, -heat, kind, absolute=True) == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_unrelated_noise_is_about_zero(kind: str) -> None:
    first, second = maps(2, side=64)
    assert similarity(first, second, kind, absolute=False) == pytest.approx(0, abs=0.05)


def test_rank_correlation_equals_scipy_with_ties() -> None:
    a, b = ((heat * 2).round() for heat in maps(2))
    b = a + 2 * b
    expected = spearmanr(a.flatten().numpy(), b.flatten().numpy()).statistic
    assert similarity(a, b, "spearman", absolute=False) == pytest.approx(expected, abs=1e-12)
    assert len(a.unique()) < 20


def test_structural_similarity_is_the_mean_of_the_published_formula_over_gaussian_windows() -> None:
    a, b = maps(2, side=30)
    b = a + 0.5 * b
    x, y = (heat.double().abs() / heat.double().abs().max() for heat in (a, b))
    window = torch.exp(-(torch.arange(-5, 6).double() ** 2) / (2 * 1.5**2))
    window = torch.outer(window, window) / window.sum() ** 2

    def blur(values: Tensor) -> Tensor:
        return conv2d(values[None, None], window[None, None])[0, 0]

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + 0.01**2) * (2 * cov + 0.03**2)
    expected = top / ((mean_x**2 + mean_y**2 + 0.01**2) * (var_x + var_y + 0.03**2))
    assert similarity(a, b, "ssim", absolute=True) == pytest.approx(expected.mean().item(), abs=1e-6)


def test_a_map_that_says_nothing_is_unrelated() -> None:
    (heat,) = maps(1)
    assert similarity(heat, torch.full_like(heat, 3.0), "spearman", absolute=True) == 0
    assert similarity(heat, torch.zeros_like(heat), "cosine", absolute=True) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_compared_with_an_empty_map(kind: str) -> None:
    with pytest.raises(MetricRefused, match="zero everywhere"):
        similarity(torch.zeros(SIDE, SIDE), torch.rand(SIDE, SIDE), kind, absolute=True)


def test_ranks_of_a_constant_map_and_windows_on_a_tiny_one_are_refused() -> None:
    with pytest.raises(MetricRefused, match="constant"):
        similarity(torch.ones(SIDE, SIDE), torch.rand(SIDE, SIDE), "spearman", absolute=True)
    with pytest.raises(MetricRefused, match="at least 11x11 pixels"):
        similarity(torch.rand(10, 20), torch.rand(10, 20), "ssim", absolute=True)
