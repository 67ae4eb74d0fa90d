"""Statistics of rankings."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import pearsonr, rankdata, spearmanr
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score
from torch import Tensor

from xaihub import MetricRefused, ParameterError
from xaihub.ranking import (
    agreement,
    average_ranks,
    correlation,
    order_of,
    relevance_auc,
    seed_interval,
    stability,
    top_k_precision,
)


def drawn(seed: int, size: int = 20) -> Tensor:
    # Rounded, so that there are ties.
    return (torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 10).round()


@pytest.mark.parametrize("seed", range(4))
def test_agreement_is_that_of_scipy_with_ties(seed: int) -> None:
    a, b = drawn(seed), drawn(seed + 10)
    found = agreement(a, b, k=5)

    assert found.pearson == pytest.approx(pearsonr(a, b).statistic)
    assert found.spearman == pytest.approx(spearmanr(a, b).statistic)
    assert found.top_k == len(set(order_of(a)[:5].tolist()) & set(order_of(b)[:5].tolist())) / 5


def test_a_ranking_agrees_with_itself_and_not_with_its_reverse() -> None:
    a = torch.arange(10.0)

    assert (agreement(a, a).pearson, agreement(a, a).spearman, agreement(a, a).top_k) == (1, 1, 1)
    assert agreement(a, -a).pearson == pytest.approx(-1)
    assert agreement(a, -a, k=5).top_k == 0


def test_equal_weights_are_ordered_by_index() -> None:
    assert order_of(torch.tensor([1.0, 3.0, 3.0, 2.0])).tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize("seed", range(4))
def test_the_area_is_that_of_scikit_learn_with_ties(seed: int) -> None:
    weights, relevant = drawn(seed), drawn(seed + 5) > 4

    assert relevance_auc(weights, relevant) == pytest.approx(roc_auc_score(relevant, weights))


def test_relevant_features_in_front_are_perfect_and_constant_weights_are_chance() -> None:
    relevant = torch.tensor([True, True, False, False, False])

    assert relevance_auc(torch.tensor([5.0, 4, 3, 2, 1]), relevant) == 1
    assert relevance_auc(torch.tensor([1.0, 2, 3, 4, 5]), relevant) == 0
    assert relevance_auc(torch.ones(5), relevant) == 0.5
    assert top_k_precision(torch.tensor([5.0, 1, 4, 3, 2]), relevant, 2) == 0.5


def test_stability_is_the_mean_over_pairs() -> None:
    runs = torch.stack([drawn(seed) for seed in range(3)])
    pairs = [pearsonr(runs[i], runs[j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))]

    assert stability(runs) == pytest.approx(sum(pairs) / 3)
    assert stability([runs[0], runs[0] * 2]) == pytest.approx(1)


def test_correlations_are_those_of_scipy_row_by_row_at_any_scale() -> None:
    first = torch.stack([drawn(seed) for seed in range(3)])
    second = torch.stack([drawn(seed) for seed in range(10, 13)])
    for ranks, peer in ((False, pearsonr), (True, spearmanr)):
        expected = [peer(a, b).statistic for a, b in zip(first.double(), second.double(), strict=True)]
        for scale in (1.0, 1e-170, 1e170):
            found = correlation(first.double() * scale, second, ranks=ranks)
            assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_what_differs_by_rounding_alone_is_equal_and_a_constant_row_has_no_correlation() -> None:
    nearly, varied = torch.tensor([0.3, 0.1 + 0.2, 0.3], dtype=torch.float64), torch.tensor([1.0, 2.0, 4.0])
    assert not correlation(nearly, varied).isnan()
    assert correlation(nearly, varied, rounding=1e-9).isnan()
    assert correlation(torch.zeros(3), varied, ranks=True).isnan()
    rows = torch.tensor([[3.0, 1.0, 3.0, -2.0, 3.0], [0.1 + 0.2, 0.3, 5.0, 4.0, 4.0]], dtype=torch.float64)
    assert average_ranks(rows, rounding=1e-9).tolist() == [list(rankdata(rows[0])), list(rankdata([0.3, 0.3, 5, 4, 4]))]
    assert average_ranks(rows)[1].tolist() == [2, 1, 5, 3.5, 3.5]


def test_an_interval_is_students() -> None:
    values = [0.5, 0.7, 0.6, 0.9]
    found = seed_interval(values)
    low, high = student.interval(0.95, 3, loc=found.mean, scale=torch.tensor(values).std() / 2)

    assert found.mean == pytest.approx(0.675)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert str(found) == f"0.675 [{low:.3f}, {high:.3f}]"
    assert str(seed_interval([0.5])) == "0.500"


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda: agreement(torch.ones(3), torch.rand(3)), ParameterError, "k cannot be 5"),
        (lambda: agreement(torch.ones(3), torch.rand(4)), ParameterError, "3 and 4 features"),
        (lambda: agreement(torch.ones(3), torch.rand(3), k=2), MetricRefused, "constant"),
        (lambda: relevance_auc(torch.ones(3), torch.ones(3)), MetricRefused, "both relevant and irrelevant"),
        (lambda: stability([torch.rand(3)]), MetricRefused, "at least two"),
        (lambda: seed_interval([]), MetricRefused, "no values to average"),
    ],
)
def test_undefined_statistics_are_refused(ask: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ask()  # type: ignore[operator]
