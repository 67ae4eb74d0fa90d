"""Coalition designs: expected numbers of draws, certain coalitions, and weights of Shapley values."""

from __future__ import annotations

from itertools import combinations, permutations
from math import comb, factorial

import pytest
import torch
from torch import Tensor

from xaihub import ParameterError
from xaihub.masking import (
    CERTAIN,
    balanced_coalitions,
    binomial_sizes,
    block_of,
    draw_coalitions,
    draw_orders,
    every_coalition,
    shapley_sizes,
    shapley_weights,
)

UNIFORM = torch.full((7,), 1 / 7, dtype=torch.float64).log()


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _codes(shown: Tensor) -> Tensor:
    return (shown.long() * 2 ** torch.arange(shown.shape[1])).sum(1)


def _game(players: int, seed: int = 0) -> Tensor:
    """The score of each coalition, by its code: smooth with interactions of every order."""
    shown = every_coalition(players).shown.double()
    u = torch.randn(players, 6, generator=_rng(seed), dtype=torch.float64)
    return torch.tanh(shown @ u / players**0.5).sum(1)


def _definition(scores: Tensor, players: int) -> list[float]:
    values = []
    for player in range(players):
        total = 0.0
        others = [k for k in range(players) if k != player]
        for size in range(players):
            for kept in combinations(others, size):
                code = sum(2**k for k in kept)
                share = factorial(size) * factorial(players - 1 - size) / factorial(players)
                total += share * float(scores[code + 2**player] - scores[code])
        values.append(total)
    return values


def test_every_coalition_is_there_once_for_each_copy() -> None:
    found = every_coalition(4, copies=3)
    assert sorted(zip(_codes(found.shown).tolist(), found.copy.tolist(), strict=True)) == [
        (code, copy) for code in range(16) for copy in range(3)
    ]
    assert found.draw.unique().tolist() == [CERTAIN]
    assert torch.allclose(found.log_expected.exp(), torch.tensor(3.0).double())


@pytest.mark.parametrize("law", [binomial_sizes(6, 0.5), binomial_sizes(6, 0.3), shapley_sizes(6), UNIFORM])
@pytest.mark.parametrize("count", [12, 43])
@pytest.mark.parametrize(("ends", "copies"), [(False, 1), (True, 2)])
def test_each_coalition_is_drawn_as_often_as_is_said(law: Tensor, count: int, ends: bool, copies: int) -> None:
    runs, seen, told = 80, torch.zeros(64), torch.zeros(64).double()
    generator = _rng()
    for _ in range(runs):
        found = draw_coalitions(6, count, law, ends=ends, copies=copies, generator=generator)
        codes = _codes(found.shown)
        seen += torch.bincount(codes, minlength=64)
        told[codes] = found.log_expected.exp()
        assert count - 1 <= len(found) <= count
    often = seen / runs
    tolerance = 5 * (told / runs).sqrt() + 1e-6
    assert bool(((often - told).abs() <= tolerance).all())


def test_coalitions_are_not_repeated_before_all_others_of_the_size_had_their_turn() -> None:
    for seed in range(20):
        found = draw_coalitions(8, 140, shapley_sizes(8), ends=True, generator=_rng(seed))
        assert len(_codes(found.shown).unique()) == len(found) == 140
    several = draw_coalitions(6, 100, shapley_sizes(6), ends=True, copies=2, generator=_rng())
    pairs = set(zip(_codes(several.shown).tolist(), several.copy.tolist(), strict=True))
    assert len(pairs) == len(several)


def test_sizes_that_are_due_as_a_whole_are_certain() -> None:
    found = draw_coalitions(10, 200, shapley_sizes(10), ends=True, generator=_rng())
    certain = found.draw == CERTAIN
    sizes = found.shown.sum(1)
    assert sizes[certain].unique().tolist() == [0, 1, 9, 10]
    assert int(certain.sum()) == 22
    assert bool((found.log_expected[certain] == 0).all())
    everything = draw_coalitions(5, 1000, shapley_sizes(5), ends=True, generator=_rng())
    assert sorted(_codes(everything.shown).tolist()) == list(range(32))
    assert everything.draw.unique().tolist() == [CERTAIN]


def test_symmetric_designs_come_in_pairs_with_complements() -> None:
    found = draw_coalitions(9, 60, binomial_sizes(9, 0.5), ends=True, generator=_rng())
    assert found.shown[0].sum() == 0
    assert found.shown[1].sum() == 9
    drawn = found.draw != CERTAIN
    shown, draw = found.shown[drawn], found.draw[drawn]
    assert torch.equal(shown[::2], 1 - shown[1::2])
    assert torch.equal(draw[::2], draw[1::2])
    alone = draw_coalitions(9, 60, binomial_sizes(9, 0.3), ends=False, generator=_rng())
    assert len(alone.draw[alone.draw != CERTAIN].unique()) == int((alone.draw != CERTAIN).sum())


@pytest.mark.parametrize("players", [40, 196])
def test_many_players_have_their_sizes_stratified(players: int) -> None:
    law = shapley_sizes(players)
    found = draw_coalitions(players, 2 * players + 3000, law, ends=True, generator=_rng())
    sizes = found.shown.sum(1).long()
    assert int((sizes == 1).sum()) == players  # due as a whole
    drawn = found.draw != CERTAIN
    rest = law.exp()
    rest[sizes[~drawn].unique()] = 0
    expected = rest / rest.sum() * int(drawn.sum())
    counts = torch.bincount(sizes[drawn], minlength=players + 1)
    assert bool(((counts - expected).abs() < 2.01).all())  # both of a pair have the middle size


def test_copies_take_turns() -> None:
    found = draw_coalitions(12, 602, shapley_sizes(12), ends=True, copies=3, generator=_rng())
    assert bool((torch.bincount(found.copy) - 200).abs().max() <= 6)


@pytest.mark.parametrize("adjust", [False, True])
def test_weights_over_every_coalition_give_the_definition(adjust: bool) -> None:
    found, scores = every_coalition(6), _game(6)
    values = shapley_weights(found.shown, found.log_expected, adjust=adjust).T @ scores
    assert values.tolist() == pytest.approx(_definition(scores, 6), abs=1e-12)


def _estimates(count: int, *, adjust: bool) -> tuple[Tensor, Tensor]:
    """Return (200, 8) estimates from `count` rows, and the (8,) exact values."""
    scores = _game(8)
    runs = []
    for seed in range(200):
        found = draw_coalitions(8, count, shapley_sizes(8), ends=True, generator=_rng(seed))
        runs.append(shapley_weights(found.shown, found.log_expected, adjust=adjust).T @ scores[_codes(found.shown)])
    return torch.stack(runs), torch.tensor(_definition(scores, 8)).double()


@pytest.mark.parametrize("count", [40, 120, 200])
def test_estimates_without_regression_are_unbiased(count: int) -> None:
    values, exact = _estimates(count, adjust=False)
    assert bool(((values.mean(0) - exact).abs() < 5 * values.std(0) / 200**0.5).all())


def test_the_bias_of_regression_is_below_the_spread_and_falls_faster() -> None:
    shares, biases = [], []
    for count in (40, 120, 200):
        values, exact = _estimates(count, adjust=True)
        biases.append(float((values.mean(0) - exact).norm()))
        shares.append(biases[-1] / float(values.std(0).norm()))
    assert shares[0] < 0.4
    assert max(shares[1:]) < shares[0] / 2
    assert biases[2] < biases[1] < biases[0]


def test_regression_takes_most_of_the_variance_away() -> None:
    scores, errors = _game(10), {}
    exact = torch.tensor(_definition(scores, 10)).double()
    for adjust in (False, True):
        total = 0.0
        for seed in range(30):
            found = draw_coalitions(10, 100, shapley_sizes(10), ends=True, generator=_rng(seed))
            weights = shapley_weights(found.shown, found.log_expected, adjust=adjust)
            total += float((weights.T @ scores[_codes(found.shown)] - exact).square().mean())
        errors[adjust] = total
    assert errors[True] < errors[False] / 4


def test_orders_are_walked_one_player_at_a_time_and_back() -> None:
    found, weights = draw_orders(5, 2 + 2 * 4 * 3, generator=_rng())
    assert len(found) == 26
    shown = found.shown[2:].view(6, 4, 5)
    assert torch.equal(shown.sum(2), torch.arange(1.0, 5).expand(6, 4))
    assert bool((shown.diff(dim=1) >= 0).all())
    assert torch.equal(shown[::2], 1 - shown[1::2].flip(1))
    assert torch.allclose(weights.sum(0), torch.zeros(5).double(), atol=1e-12)
    scores = _game(5)[_codes(found.shown)]
    assert float((weights.T @ scores).sum()) == pytest.approx(float(scores[1] - scores[0]), abs=1e-12)


def test_orders_give_the_mean_of_marginal_contributions() -> None:
    scores = _game(4)
    found, weights = draw_orders(4, 2 + 2 * 3 * 3000, generator=_rng())
    by_hand = torch.zeros(4).double()
    for order in permutations(range(4)):
        code = 0
        for player in order:
            by_hand[player] += (scores[code + 2**player] - scores[code]) / factorial(4)
            code += 2**player
    assert by_hand.tolist() == pytest.approx(_definition(scores, 4), abs=1e-12)
    assert torch.allclose(weights.T @ scores[_codes(found.shown)], by_hand, atol=0.01)


def test_size_laws_are_laws() -> None:
    assert float(binomial_sizes(7, 0.3).exp().sum()) == pytest.approx(1)
    assert float(binomial_sizes(7, 0.3)[2].exp()) == pytest.approx(comb(7, 2) * 0.3**2 * 0.7**5)
    law = shapley_sizes(7).exp()
    assert float(law.sum()) == pytest.approx(1)
    assert float(law[1] / law[3]) == pytest.approx((3 * 4) / (1 * 6))
    assert (float(law[0]), float(law[7])) == (0, 0)


def test_too_small_a_budget_says_how_much_is_needed() -> None:
    with pytest.raises(ParameterError, match="a budget of 5 masks") as caught:
        draw_coalitions(9, 5, shapley_sizes(9), ends=True, generator=_rng())
    assert "6" in caught.value.hint
    with pytest.raises(ParameterError, match="an order of 9 players") as caught:
        draw_orders(9, 17, generator=_rng())
    assert "18" in caught.value.hint


def test_one_player_has_nothing_to_draw() -> None:
    found = draw_coalitions(1, 10, shapley_sizes(1), ends=True, generator=_rng())
    assert found.shown.tolist() == [[0], [1]]


@pytest.mark.parametrize("players", [1, 7, 16, 49])
def test_balanced_coalitions_are_pairs_and_uncorrelated_within_a_block(players: int) -> None:
    block = 2 * block_of(players)
    found = balanced_coalitions(players, 3 * block + 4, copies=2, generator=_rng())
    assert len(found) == 3 * block + 4
    assert torch.equal(found.shown[::2], 1 - found.shown[1::2])
    assert torch.equal(found.draw[::2], found.draw[1::2])
    assert torch.equal(found.copy[::2], found.copy[1::2])
    assert found.copy.bincount().tolist() in ([len(found) // 2] * 2, [len(found) // 2 + 1, len(found) // 2 - 1])
    for number in range(3):
        signs = 2 * found.shown[number * block : (number + 1) * block] - 1
        assert torch.equal(signs.T @ signs, block * torch.eye(players))


def test_each_coalition_is_equally_likely_in_a_balanced_design() -> None:
    drawn = [_codes(balanced_coalitions(3, 8, generator=_rng(seed)).shown) for seed in range(500)]
    counts = torch.cat(drawn).bincount(minlength=8)
    assert bool((counts - 500).abs().max() < 100)
    one = balanced_coalitions(3, 8, generator=_rng())
    assert torch.allclose(one.log_expected.exp(), torch.ones(8, dtype=torch.float64))
