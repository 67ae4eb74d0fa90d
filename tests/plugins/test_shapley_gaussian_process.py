"""The prior over games: against Bayesian regression in the long way, symmetries, neighbours, what is asked next."""

from __future__ import annotations

from itertools import combinations
from math import inf

import pytest
import torch
from torch import Tensor

from xaihub.masking import every_coalition
from xaihub.masking import shapley_weights as weights_of
from xaihub_shapley.estimators import interacting
from xaihub_shapley.gaussian_process import (
    Choice,
    Posterior,
    Prior,
    choose_prior,
    correlations,
    make_prior,
    most_informative,
)

PLAYERS = 5


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _signs(*rows: int, players: int = PLAYERS) -> Tensor:
    return 2 * every_coalition(players).shown[list(rows)].double() - 1


def _prior(reach: float = 0.4) -> Prior:
    decay = torch.tensor([0.1, 0.3, 0.5, 0.2, 0.4]).double()
    root = torch.randn(PLAYERS, PLAYERS, generator=_rng(1), dtype=torch.float64)
    return Prior(decay, root @ root.T, reach, noise=0.05)


def _places(side: int) -> Tensor:
    return torch.eye(side**2).view(-1, side, side).repeat_interleave(4, 1).repeat_interleave(4, 2)


@pytest.mark.parametrize("reach", [inf, 0.4])
def test_the_fit_is_bayesian_regression_on_products_and_weights_by_size(reach: float) -> None:
    prior = _prior(reach)
    every = every_coalition(PLAYERS).shown
    signs = 2 * every.double() - 1
    # One weight for each odd set; one for each player and size, correlated over both.
    sets = [kept for size in (1, 3, 5) for kept in combinations(range(PLAYERS), size)]
    features = [signs[:, list(kept)].prod(1) for kept in sets]
    features += [signs[:, k] * (every.sum(1) == size) for k in range(PLAYERS) for size in range(PLAYERS + 1)]
    phi = torch.stack(features, 1)
    share = torch.arange(PLAYERS + 1).double() / PLAYERS
    near, far = (share[:, None] - share) ** 2, (share[:, None] + share - 1) ** 2
    sizes = (torch.exp(-near / (2 * reach**2)) + torch.exp(-far / (2 * reach**2))) / 2
    variance = torch.tensor([float(prior.decay[list(kept)].prod()) for kept in sets]).double()
    covariance = torch.block_diag(torch.diag(variance / variance.sum()), torch.kron(prior.alone, sizes))
    shares = weights_of(every, torch.zeros(len(every)).double()).T @ phi

    rows = [1, 6, 11, 20, 30, 31]
    odd = torch.randn(len(rows), generator=_rng(), dtype=torch.float64)
    noise = prior.noise * torch.tensor([1, 1, 1, 1, 1, 0]).double() + 1e-8 * (1 + prior.alone.trace())
    answers = phi[rows] @ covariance @ phi[rows].T + torch.diag(noise)
    gain = torch.linalg.solve(answers, phi[rows] @ covariance).T
    left = shares @ (covariance - gain @ phi[rows] @ covariance) @ shares.T

    found = Posterior(prior, signs[rows], odd)
    assert torch.allclose(found.values, shares @ gain @ odd, atol=1e-9)
    assert torch.allclose(found.mean(signs), phi @ gain @ odd, atol=1e-9)
    assert torch.allclose(prior.before, (shares @ covariance @ shares.T).diagonal(), rtol=1e-4)
    level = float(odd @ torch.linalg.solve(answers, odd)) / len(odd)
    assert torch.allclose(found.stderr, (level * left.diagonal()).sqrt(), rtol=2e-3)


def test_products_over_many_players_stay_numbers() -> None:
    prior = Prior(torch.full((400,), 0.9).double(), torch.eye(400).double(), inf, noise=0.1)
    signs = (torch.rand(6, 400, generator=_rng()) < 0.9).double() * 2 - 1
    assert bool(prior.between(signs, signs).isfinite().all())
    assert bool(prior.towards(signs).isfinite().all())
    assert float(prior.between(signs, signs)[0, 0]) == pytest.approx(1 + 400)


def test_renamed_players_have_renamed_values() -> None:
    order = torch.tensor([3, 0, 4, 1, 8, 2, 7, 5, 6])
    game, places = torch.randn(9, 4, generator=_rng(), dtype=torch.float64), _places(3)
    signs = torch.randn(20, 9, generator=_rng(), dtype=torch.float64).sign()
    odd = torch.tanh(signs @ game).sum(1)
    values = []
    for named in (torch.arange(9), order):
        prior, choice = choose_prior(signs[:, named], odd, correlations(places[named], 9), _rng(), Choice())
        values.append(Posterior(prior, signs[:, named], odd).values)
        assert choice.alike in (0, 0.5, 0.9)
    assert torch.allclose(values[1], values[0][order], atol=1e-8)


def test_cells_are_alike_by_distance() -> None:
    alike = correlations(_places(5), 25)[1.5]
    assert torch.allclose(alike.diagonal(), torch.ones(25).double())
    assert alike[12].view(5, 5)[2].tolist() == pytest.approx(alike[12].view(5, 5)[:, 2].tolist())
    assert alike[0, 1] > alike[0, 2] > alike[0, 6 * 3] > 0
    assert float(alike[0, 1]) == pytest.approx(torch.exp(torch.tensor(-1 / (2 * 1.5**2))).item(), abs=0.02)


def test_players_without_places_are_as_players_in_one_place() -> None:
    weights = torch.randn(8, 3, generator=_rng())
    found = [
        interacting(lambda shown: torch.tanh(shown @ weights).sum(1), 8, 40, _rng(), shapes)
        for shapes in (None, torch.ones(8, 4, 4))
    ]
    assert torch.equal(found[0].values, found[1].values)
    assert list(correlations(None, 8)) == [inf]


def test_places_help_where_neighbours_act_alike() -> None:
    middle = torch.exp(-(torch.arange(6) - 2).square() / 4)
    worth = middle.outer(middle).flatten().double()

    errors = [
        sum(
            float((interacting(lambda s: s.double() @ worth, 36, 48, _rng(seed), places).values - worth).norm())
            for seed in range(2)
        )
        for places in (None, _places(6))
    ]
    assert errors[1] < 0.6 * errors[0]


def test_the_most_telling_rows_leave_least_variance() -> None:
    prior = _prior()
    asked, pool = _signs(31), _signs(*range(16, 31))
    found = most_informative(prior, asked, pool, 4)
    expected = asked

    def left(row: Tensor) -> float:
        rows = torch.cat([expected, row.unsqueeze(0)])
        found = Posterior(prior, rows, torch.ones(len(rows)).double())
        return float(found.stderr.square().sum()) / found.level

    for _ in range(4):
        best = min(range(len(pool)), key=lambda k: left(pool[k]))
        expected = torch.cat([expected, pool[best : best + 1]])
    assert torch.equal(found, expected[1:])


def test_nothing_is_asked_twice_not_even_as_a_complement() -> None:
    prior = make_prior(Choice(), torch.ones(PLAYERS).double(), correlations(None, PLAYERS))
    pool = _signs(*range(32))
    assert len(most_informative(prior, _signs(31, 4), pool, 40)) == 14
