"""The Shapley objective: its coalitions, its loss against the definition, and its options."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import combinations
from math import comb, factorial
from typing import Any

import pytest
import torch
from torch import Tensor

from xaihub import Hub, Losses, ParameterError, Step
from xaihub.masking import every_coalition, shapley_sizes
from xaihub.training.config import checked
from xaihub.training.loop.optimizer import weight_groups
from xaihub_shapley.losses import sample_coalitions
from xaihub_shapley.network import ShapleyVision
from xaihub_shapley.objective import ShapleyObjective, patch_score_loss, shapley_loss
from xaihub_shapley.reproduction.experiment import small_model


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _step(number: int = 50) -> Step:
    return Step(number=number, total=100, generator=_rng())


def _network(**options: Any) -> ShapleyVision:
    return ShapleyVision(small_model("vit", 4, seed=0).module, size=(1, 24, 24), **options).eval()


def _batch(rows: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 1, 24, 24, generator=_rng(1)), torch.arange(rows) % 4


def _loss(objective: ShapleyObjective, number: int = 50) -> Losses:
    torch.manual_seed(0)
    network = objective.wrap(small_model("vit", 4, seed=0))
    return objective.loss(network.requires_grad_(True), *_batch(), _step(number))


def test_the_patch_head_learns_at_the_rate_of_the_classifier_that_it_replaces() -> None:
    model = small_model("vit", 4, seed=0)
    classifier = model.module.get_classifier()  # type: ignore[operator]
    objective = ShapleyObjective()
    network = objective.wrap(model).requires_grad_(True)
    config = checked({"data": "digits", "model": "x", "objective": "shapley", "lr": 1e-3, "head_lr_scale": 10})
    groups = weight_groups(network, objective.groups(network), classifier, config)
    head = {id(weight) for weight in network.head.parameters()}  # type: ignore[union-attr]
    rates = {(group["lr"], id(weight) in head) for group in groups for weight in group["params"]}
    assert rates == {(1e-3, False), (1e-2, True)}


def test_sizes_follow_the_kernel_and_coalitions_come_with_their_complements() -> None:
    players, draws = 9, 20_000
    shown = sample_coalitions(draws // 2, 2, players, generator=_rng())
    assert torch.equal(shown[:, 0], 1 - shown[:, 1])
    sizes = shown[:, 0].sum(1).long()
    counts = torch.bincount(sizes, minlength=players + 1)
    assert int(counts[0]) == int(counts[players]) == 0
    k = torch.arange(1, players)
    law = 1.0 / (k * (players - k))
    expected = law / law.sum() * (draws // 2)
    statistic = float(((counts[1:players] - expected) ** 2 / expected).sum())
    assert 0.5 < statistic < 24.3  # chi-square with 7 degrees of freedom: 0.05 % and 99.9 %


def test_coalitions_are_uniform_within_a_size() -> None:
    shown = sample_coalitions(20_000, 2, 5, generator=_rng()).flatten(0, 1)
    pairs = shown[shown.sum(1) == 2]
    counts = torch.bincount((pairs.long() * 2 ** torch.arange(5)).sum(1))
    counts = counts[counts > 0]
    expected = len(pairs) / comb(5, 2)
    assert len(counts) == comb(5, 2)
    assert float(((counts - expected) ** 2 / expected).sum()) < 27.9  # 9 degrees of freedom, 99.9 %


def test_coalitions_that_are_alike_have_one_size_an_image() -> None:
    shown = sample_coalitions(2000, 6, 5, generator=_rng(), alike=True)
    assert torch.equal(shown[:, ::2], 1 - shown[:, 1::2])
    sizes = shown[:, ::2].sum(2)
    assert torch.equal(sizes, sizes[:, :1].expand(-1, 3))
    law = shapley_sizes(5).exp()[1:5].float()
    assert torch.allclose(torch.bincount(sizes[:, 0].long())[1:5] / 2000, law / law.sum(), atol=0.04)  # 3.6 deviations
    assert torch.allclose(shown[:, ::2].mean((0, 1)), torch.full((5,), 0.5), atol=0.03)


def test_coalitions_must_come_in_pairs() -> None:
    with pytest.raises(ParameterError, match="3 coalitions cannot be paired"):
        sample_coalitions(1, 3, 4, generator=_rng())
    with pytest.raises(ParameterError, match="1 player"):
        sample_coalitions(1, 2, 1, generator=_rng())


def _definition(scores: dict[tuple[int, ...], float], players: int) -> list[float]:
    values = []
    for player in range(players):
        others = [k for k in range(players) if k != player]
        total = 0.0
        for size in range(players):
            for kept in combinations(others, size):
                share = factorial(size) * factorial(players - size - 1) / factorial(players)
                total += share * (scores[tuple(sorted((*kept, player)))] - scores[kept])
        values.append(total)
    return values


def _least(loss: Callable[[Tensor], Tensor], players: int) -> Tensor:
    """Return the votes that make a quadratic loss least: they solve a linear system."""
    start = torch.zeros(players, dtype=torch.float64, requires_grad=True)
    flat = lambda votes: loss(votes.view(1, players, 1))  # noqa: E731 - hessian wants a function of a vector
    hessian = torch.autograd.functional.hessian(flat, start)
    (gradient,) = torch.autograd.grad(flat(start), start)
    return -(torch.linalg.pinv(hessian) @ gradient)


def _game(players: int) -> tuple[Tensor, Tensor, Tensor, dict[tuple[int, ...], float]]:
    shown = every_coalition(players).shown.double()
    worth = torch.randn(len(shown), generator=_rng(), dtype=torch.float64)
    scores = {tuple(row.nonzero().flatten().tolist()): float(value) for row, value in zip(shown, worth, strict=True)}
    return shown, shown.sum(1).long(), worth, scores | {(): 0.0}


def test_the_loss_is_minimal_at_the_shapley_values_of_the_game_whose_whole_is_the_sum_of_the_patch_scores() -> None:
    players = 6
    shown, sizes, worth, scores = _game(players)
    inner = (sizes > 0) & (sizes < players)
    law = shapley_sizes(players).exp()[sizes] / torch.tensor([comb(players, int(k)) for k in sizes]).double()

    def loss(votes: Tensor) -> Tensor:  # every coalition as often as the sampler draws it
        parts = [
            share * shapley_loss(votes, value.view(1, 1, 1), row.view(1, 1, -1))
            for row, value, share in zip(shown[inner], worth[inner], law[inner], strict=True)
        ]
        return torch.stack(parts).sum()

    least = _least(loss, players)
    scores[tuple(range(players))] = float(least.sum())
    assert least.tolist() == pytest.approx(_definition(scores, players), abs=1e-8)


def test_within_a_size_the_loss_is_minimal_at_the_shapley_values_up_to_what_all_patches_share() -> None:
    players = 6
    shown, sizes, worth, scores = _game(players)

    def loss(votes: Tensor) -> Tensor:
        parts = []
        for size in range(1, players):
            rows = (sizes == size).nonzero().flatten()
            pairs = torch.stack([rows, 2**players - 1 - rows], 1).flatten()  # a coalition and its complement
            spread = patch_score_loss(votes, worth[pairs].view(1, -1, 1), shown[pairs].unsqueeze(0))
            # All of them are one draw each here, so nothing is lost by taking the mean from them.
            parts.append(shapley_sizes(players).exp()[size] * spread * (1 - 1 / len(rows)))
        return torch.stack(parts).sum()

    least = _least(loss, players)
    truth = torch.tensor(_definition(scores, players), dtype=torch.float64)
    assert (least - least.mean()).tolist() == pytest.approx((truth - truth.mean()).tolist(), abs=1e-8)
    assert float(loss(least.view(1, -1, 1) + 3)) == pytest.approx(float(loss(least.view(1, -1, 1))))


def test_the_spread_within_a_size_does_not_depend_on_how_many_are_drawn() -> None:
    _, _, worth, _ = _game(6)
    phi = torch.randn(1, 6, 1, generator=_rng(), dtype=torch.float64).expand(20_000, -1, -1)

    def mean(drawn: int) -> float:
        found = sample_coalitions(20_000, drawn, 6, generator=_rng(), alike=True).double()
        return float(patch_score_loss(phi, worth[(found @ 2.0 ** torch.arange(6).double()).long()].unsqueeze(2), found))

    assert mean(4) == pytest.approx(mean(16), rel=0.03)


def test_the_loss_is_the_mean_squared_error_of_summed_patch_scores() -> None:
    network = _network()
    x, labels = _batch()
    shown = sample_coalitions(3, 2, 9, generator=_step().generator)
    with torch.no_grad():
        losses = ShapleyObjective(lambda_=2.5, ramp=0).loss(network, x, labels, _step())
        errors = []
        for row in range(3):
            phi = network.phi(x[row : row + 1])[0]
            for s in shown[row]:
                value = network(x[row : row + 1], s[None])[0]
                errors += [float(value[c] - sum(s[n] * phi[n, c] for n in range(9))) ** 2 for c in range(4)]
        plain = torch.nn.functional.cross_entropy(network(x), labels)
        assert torch.allclose(losses.logits, network(x), atol=1e-5)
    assert float(losses.terms["shapley"]) == pytest.approx(2.5 * sum(errors) / 24, rel=1e-4)
    assert float(losses.terms["cross_entropy"]) == pytest.approx(float(plain), rel=1e-5)


def test_the_loss_of_the_patch_scores_is_the_spread_within_a_size_and_leaves_the_values_alone() -> None:
    network = _network().requires_grad_(True)
    x, labels = _batch()
    step = _step()
    sample_coalitions(3, 2, 9, generator=step.generator)
    shown = sample_coalitions(3, 6, 9, generator=step.generator, alike=True)
    errors = []
    for row in range(3):
        phi = network.phi(x[row : row + 1])[0]  # (9, 4)
        with torch.no_grad():
            values = network(x[row : row + 1].expand(6, -1, -1, -1), shown[row])
        left = values - values.mean(1, keepdim=True) - shown[row] @ (phi - phi.mean(1, keepdim=True))
        errors += [left[part::2, c].var() for part in (0, 1) for c in range(4)]  # complements have a size of their own
    expected = 7 * torch.stack(errors).mean()
    losses = ShapleyObjective(lambda_=0, ramp=0, votes_lambda=7, votes_coalitions=6).loss(network, x, labels, _step())
    assert float(losses.terms["votes"].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert losses.notes["votes_error"] == pytest.approx(float(expected.detach()) / 7, rel=1e-4)
    weights = list(network.parameters())
    found, literal = (
        torch.autograd.grad(total, weights, allow_unused=True) for total in (losses.terms["votes"], expected)
    )
    for one, other in zip(found, literal, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=1e-3, atol=1e-6)
    assert "votes" not in _loss(ShapleyObjective()).terms


def test_the_loss_of_the_patch_scores_leaves_statistics_and_frozen_norms_as_they_are() -> None:
    network = ShapleyObjective().wrap(small_model("resnet", 4, seed=0)).requires_grad_(True)

    def statistics(**options: Any) -> list[Tensor]:
        twin = deepcopy(network).train()
        norms = [module for module in twin.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        norms[0].eval()
        ShapleyObjective(lambda_=0, **options).loss(twin, *_batch(), _step())
        assert [norm.training for norm in norms] == [False] + [True] * (len(norms) - 1)
        return [norm.running_mean for norm in norms if norm.running_mean is not None]

    plain, voting = statistics(), statistics(votes_lambda=1)
    assert all(torch.equal(one, other) for one, other in zip(plain, voting, strict=True))


def test_patch_scores_can_be_trained_in_half_precision() -> None:
    terms = [_loss(ShapleyObjective(votes_lambda=1, votes_half=half)).terms["votes"] for half in (False, True)]
    assert terms[0].dtype == terms[1].dtype == torch.float32
    assert terms[0] != terms[1]
    assert float(terms[1].detach()) == pytest.approx(float(terms[0].detach()), rel=0.15)


@pytest.mark.parametrize("value", ["visible", "full"])
def test_validation_reports_how_much_of_the_variance_of_masked_outputs_the_patch_scores_predict(value: str) -> None:
    network, (x, labels) = _network(value=value), _batch()
    objective, step = ShapleyObjective(value=value), _step()
    sample_coalitions(3, 2, 9, generator=step.generator)
    shown = sample_coalitions(3, 8, 9, generator=step.generator)
    errors, spreads = [], []
    with torch.no_grad():
        notes = objective.loss(network, x, labels, _step()).notes
        nothing = network(x[:1], torch.zeros(1, 9))[0]
        for row in range(3):
            phi = network.phi(x[row : row + 1])[0]
            values = torch.stack([network(x[row : row + 1], s[None])[0] - nothing for s in shown[row]])
            values, phi = values - values.mean(1, keepdim=True), phi - phi.mean(1, keepdim=True)
            errors += [
                (float(values[k, c]) - float(shown[row, k] @ phi[:, c])) ** 2 for k in range(8) for c in range(4)
            ]
            spreads += (values - values.mean(0)).square().flatten().tolist()
    record = {f"val/{name}": number for name, number in notes.items()}
    expected = 1 - sum(errors) / sum(spreads)
    assert objective.figures(network, record)["patch_score_r2"] == pytest.approx(expected, rel=1e-4)
    assert objective.figures(network, {"train/lambda": 1.0}) == {}
    assert "masked_error" not in objective.loss(network.requires_grad_(True), x, labels, _step()).notes


def test_patch_scores_that_predict_little_are_a_warning_that_names_the_correction() -> None:
    assert ShapleyObjective().advice({"patch_score_r2": 0.5}) == []
    assert ShapleyObjective().advice({}) == []
    (found,) = ShapleyObjective().advice({"patch_score_r2": 0.02})
    assert "R2 0.02" in found
    assert "refine=128" in found


def test_the_full_value_penalises_the_scores_of_the_empty_coalition() -> None:
    network = _network(value="full")
    with torch.no_grad():
        losses = ShapleyObjective(value="full").loss(network, *_batch(), _step())
        empty = network(torch.zeros(1, 1, 24, 24))
    assert float(losses.terms["empty"]) == pytest.approx(float(empty.square().sum()), rel=1e-4)


def test_lambda_rises_to_1_by_default() -> None:
    notes = [_loss(ShapleyObjective(ramp=0.2), number).notes["lambda"] for number in (0, 9, 19, 60)]
    assert notes == pytest.approx([1 / 20, 0.5, 1, 1])
    assert "shapley" not in _loss(ShapleyObjective(lambda_=0)).terms


def test_gradients_reach_the_masked_copies_only_with_target_grad() -> None:
    def pixels(**options: Any) -> Tensor:
        objective = ShapleyObjective(ramp=0, **options)
        network = objective.wrap(small_model("vit", 4, seed=0))
        votes: list[Tensor] = []
        network.head.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), votes.append(out))[0])
        losses = objective.loss(network.requires_grad_(True), *_batch(), _step())
        losses.terms["shapley"].backward()
        return votes[0].grad[3:]

    assert float(pixels().abs().sum()) > 0
    assert float(pixels(target_grad=False).abs().sum()) == 0
    assert "masked_cross_entropy" in _loss(ShapleyObjective(target_grad=False)).terms
    assert "masked_cross_entropy" not in _loss(ShapleyObjective()).terms


def test_centring_ignores_what_all_classes_share() -> None:
    phi = torch.randn(2, 9, 4, generator=_rng())
    values, shown = torch.randn(2, 2, 4, generator=_rng(1)), sample_coalitions(2, 2, 9, generator=_rng())
    objective = ShapleyObjective(centre=True)
    args = (shown, torch.zeros(4), torch.tensor([0, 1]))
    assert torch.allclose(objective._error(phi, values, *args), objective._error(phi + 3, values - 2, *args), atol=1e-4)


def test_some_classes_are_the_label_and_the_best() -> None:
    phi = torch.randn(1, 9, 6, generator=_rng())
    values, shown = torch.randn(1, 2, 6, generator=_rng(1)), sample_coalitions(1, 2, 9, generator=_rng())
    order = phi.sum(1)[0].argsort(descending=True)
    label = int(order[-1])
    found = ShapleyObjective(classes=2)._error(phi, values, shown, torch.zeros(6), torch.tensor([label]))
    kept = [label, int(order[0]), int(order[1])]
    assert float(found) == pytest.approx(float(shapley_loss(phi[..., kept], values[..., kept], shown)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_grad": False, "gamma": 0}, "can diverge"),
        ({"coalitions": 3}, "cannot be paired"),
        ({"lambda_": -1}, "'lambda' of ShapleyObjective cannot be -1"),
        ({"lambda_": float("nan")}, "cannot be nan"),
        ({"votes_coalitions": 8}, "'votes_coalitions' of ShapleyObjective has no effect with votes_lambda=0.0"),
        ({"votes_half": True}, "'votes_half' of ShapleyObjective has no effect with votes_lambda=0.0"),
        ({"mask": "blur"}, "'mask' of ShapleyObjective cannot be 'blur'"),
        ({"votes_coalitions": 2}, "'votes_coalitions' of ShapleyObjective cannot be 2"),
        ({"votes_lambda": 1, "votes_coalitions": 5}, "5 coalitions cannot be paired"),
        ({"votes_lambda": float("inf")}, "votes_lambda cannot be inf"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        ShapleyObjective(**options).wrap(small_model("vit", 4, seed=0))


def test_the_command_line_says_lambda() -> None:
    assert Hub().get_objective("shapley", **{"lambda": "1"}).parameters["lambda_"] == 1.0


def test_validation_uses_the_final_weight_in_every_epoch() -> None:
    objective = ShapleyObjective(lambda_=8, ramp=1, votes_lambda=2)
    network = objective.wrap(small_model("resnet", 4, seed=0))
    early = Step(number=0, total=100, generator=torch.Generator().manual_seed(0))
    assert objective.loss(network, *_batch(), early).notes["lambda"] == pytest.approx(0.08)
    with torch.no_grad():
        held = objective.loss(network, *_batch(), early)
    assert held.notes["lambda"] == 8
    assert float(held.terms["votes"]) == pytest.approx(2 * held.notes["votes_error"])
