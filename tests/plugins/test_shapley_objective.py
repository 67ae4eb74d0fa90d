"""The Shapley objective: its coalitions, its loss against the definition, its options, and its explainer."""

from __future__ import annotations

from itertools import combinations
from math import comb, factorial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from xaihub import ExplainerRefused, Hub, Losses, Model, ParameterError, Preprocessing, Step
from xaihub.masking import every_coalition, shapley_sizes
from xaihub.training.config import checked
from xaihub.training.optimise import weight_groups
from xaihub_shapley.experiment import small_model
from xaihub_shapley.network import ShapleyVision
from xaihub_shapley.objective import ShapleyObjective, shapley_loss
from xaihub_shapley.own import SelfExplained, make_own_masking
from xaihub_shapley.sampling import sample_coalitions


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


@pytest.mark.parametrize(("head_lr", "expected"), [(1.0, 1e-2), (0.5, 5e-3)])
def test_the_patch_head_learns_at_the_rate_of_the_classifier_in_whose_place_it_stands(
    head_lr: float, expected: float
) -> None:
    model = small_model("vit", 4, seed=0)
    classifier = model.module.get_classifier()  # type: ignore[operator]
    objective = ShapleyObjective(head_lr=head_lr)
    network = objective.wrap(model).requires_grad_(True)
    config = checked({"data": "digits", "model": "x", "objective": "shapley", "lr": 1e-3, "head_lr_scale": 10})
    groups = weight_groups(network, objective.groups(network), classifier, config)
    head = {id(weight) for weight in network.head.parameters()}  # type: ignore[union-attr]
    rates = {(group["lr"], id(weight) in head) for group in groups for weight in group["params"]}
    assert rates == {(1e-3, False), (expected, True)}


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


def test_the_loss_is_least_at_the_shapley_values_of_the_game_whose_whole_is_the_sum_of_the_votes() -> None:
    players = 6
    shown = every_coalition(players).shown.double()
    sizes = shown.sum(1).long()
    inner = (sizes > 0) & (sizes < players)
    worth = torch.randn(len(shown), generator=_rng(), dtype=torch.float64)
    law = shapley_sizes(players).exp()[sizes] / torch.tensor([comb(players, int(k)) for k in sizes]).double()
    # Every coalition as often as the sampler draws it: the loss is quadratic, so its minimum solves a linear system.
    phi = torch.zeros(1, players, 1, dtype=torch.float64, requires_grad=True)

    def loss(votes: Tensor) -> Tensor:
        parts = [
            share * shapley_loss(votes, value.view(1, 1, 1), row.view(1, 1, -1))
            for row, value, share in zip(shown[inner], worth[inner], law[inner], strict=True)
        ]
        return torch.stack(parts).sum()

    flat = lambda votes: loss(votes.view(1, players, 1))  # noqa: E731 - hessian wants a function of a vector
    start = phi.detach().flatten()
    hessian = torch.autograd.functional.hessian(flat, start)
    (gradient,) = torch.autograd.grad(loss(phi), phi)
    least = start - torch.linalg.solve(hessian, gradient.flatten())
    scores = {tuple(row.nonzero().flatten().tolist()): float(value) for row, value in zip(shown, worth, strict=True)}
    scores[()], scores[tuple(range(players))] = 0.0, float(least.sum())
    assert least.tolist() == pytest.approx(_definition(scores, players), abs=1e-8)


def test_the_loss_is_the_mean_squared_error_of_summed_votes() -> None:
    network = _network()
    x, labels = _batch()
    shown = sample_coalitions(3, 2, 9, generator=_step().generator)
    with torch.no_grad():
        losses = ShapleyObjective(lambda_=2.5, ramp=0).loss(network, x, labels, _step())
        errors = []
        for row in range(3):
            phi = network.phi(x[row : row + 1])[0]
            for s in shown[row]:
                value = network.value(x[row : row + 1], s[None])[0]
                errors += [float(value[c] - sum(s[n] * phi[n, c] for n in range(9))) ** 2 for c in range(4)]
        plain = torch.nn.functional.cross_entropy(network(x), labels)
        assert torch.allclose(losses.logits, network(x), atol=1e-5)
    assert float(losses.terms["shapley"]) == pytest.approx(2.5 * sum(errors) / 24, rel=1e-4)
    assert float(losses.terms["cross_entropy"]) == pytest.approx(float(plain), rel=1e-5)


def test_the_full_vote_pays_for_what_it_says_of_nothing() -> None:
    network = _network(value="full")
    with torch.no_grad():
        losses = ShapleyObjective(value="full").loss(network, *_batch(), _step())
        empty = network(torch.zeros(1, 1, 24, 24))
    assert float(losses.terms["empty"]) == pytest.approx(float(empty.square().sum()), rel=1e-4)


def test_lambda_rises_and_has_a_default_by_the_number_of_patches() -> None:
    assert ShapleyObjective().weight(9) == 4.5
    assert ShapleyObjective().weight(49) == 10
    assert ShapleyObjective(lambda_=0).weight(49) == 0
    notes = [_loss(ShapleyObjective(ramp=0.2), number).notes["lambda"] for number in (0, 9, 19, 60)]
    assert notes == pytest.approx([4.5 / 20, 2.25, 4.5, 4.5])
    assert "shapley" not in _loss(ShapleyObjective(lambda_=0)).terms


def test_gradients_reach_the_masked_copies_only_where_asked() -> None:
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
        ({"lambda_": -1}, "lambda cannot be -1"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        ShapleyObjective(**options).wrap(small_model("vit", 4, seed=0))


def test_the_command_line_says_lambda() -> None:
    assert Hub().get_objective("shapley", **{"lambda": "1"}).parameters["lambda_"] == 1.0


def _model(**options: Any) -> Model:
    model = small_model("resnet", 4, seed=0)
    return model.around(ShapleyObjective(**options).wrap(model))


def test_one_pass_explains_every_class() -> None:
    model, (x, _) = _model(), _batch()
    found = SelfExplained().explain(model, x, 2)
    phi = model.module.phi(x)
    centred = phi - phi.mean(2, keepdim=True)
    for row, explanation in enumerate(found):
        assert explanation.metadata["forwards"] == 1
        assert torch.allclose(explanation.extras["votes"], centred[row].T.reshape(4, 3, 3), atol=1e-6)
        assert torch.allclose(explanation.values[0, ::8, ::8] * 64, centred[row, :, 2].view(3, 3), atol=1e-5)
        assert explanation.metadata["completeness_gap"] < 1e-5
    versus = SelfExplained().explain(model, x, "2 vs 0")[0]
    assert torch.allclose(versus.values[0, ::8, ::8] * 64, (phi[0, :, 2] - phi[0, :, 0]).view(3, 3), atol=1e-5)
    plain = SelfExplained(centre=False).explain(model, x, 1)[0]
    assert float(plain.values.sum()) == pytest.approx(float(model.predict(x)[0, 1]), abs=1e-5)


def _outspoken(**options: Any) -> Model:
    """A network whose votes are so large that a wrong one shows."""
    model = _model(**options)
    with torch.no_grad():
        model.module.head.linear.weight.mul_(300)
    return model


def _exact(model: Model, x: Tensor, label: int) -> Tensor:
    """Shapley values of one picture by their definition, player by player; scores less their mean over classes."""
    network, n = model.module, 9
    with torch.no_grad():
        v = {s: network.value(x[None], torch.tensor([[float(i in s) for i in range(n)]]))[0]
             for k in range(n + 1) for s in map(frozenset, combinations(range(n), k))}  # fmt: skip
    worth = {s: float(value[label] - value.mean()) for s, value in v.items()}
    values = torch.zeros(n)
    for i in range(n):
        for s in v:
            if i not in s:
                share = factorial(len(s)) * factorial(n - len(s) - 1) / factorial(n)
                values[i] += share * (worth[s | {i}] - worth[s])
    return values


def _cell_sums(explanation: Any) -> Tensor:
    return torch.nn.functional.avg_pool2d(explanation.values, 8).flatten() * 64


@pytest.mark.parametrize("value", ["visible", "full"])
def test_votes_that_are_refined_by_all_coalitions_are_exact_shapley_values(value: str) -> None:
    model, (x, _) = _outspoken(value=value), _batch(2)
    votes = SelfExplained().explain(model, x, 2)
    found = SelfExplained(refine=512).explain(model, x, 2)
    for row in range(2):
        exact = _exact(model, x[row], 2)
        torch.testing.assert_close(_cell_sums(found[row]), exact, rtol=1e-4, atol=1e-4)
        assert float((_cell_sums(votes[row]) - exact).abs().max()) > 0.1
        assert found[row].metadata["completeness_gap"] < 1e-4
        assert found[row].metadata["forwards"] == 1 + 512
        assert not bool(found[row].extras["standard_errors"].any())


def test_a_few_coalitions_bring_votes_nearer_to_shapley_values_whatever_shares_the_batch() -> None:
    model, (x, _) = _outspoken(), _batch(3)
    votes = SelfExplained().explain(model, x, 1)
    found = SelfExplained(refine=100).explain(model, x, 1, seed=3)
    alone = SelfExplained(refine=100).explain(model, x[1:2], 1, seed=3)[0]
    torch.testing.assert_close(found[1].values, alone.values, rtol=1e-4, atol=1e-7)
    for row in range(3):
        exact = _exact(model, x[row], 1)
        before, after = (float((_cell_sums(part[row]) - exact).norm()) for part in (votes, found))
        assert after < 0.5 * before
        assert found[row].extras["standard_errors"].shape == (3, 3)
        assert float(found[row].extras["standard_errors"].min()) > 0
        assert 1 < found[row].metadata["forwards"] <= 101


def test_too_few_coalitions_to_refine_with_are_refused() -> None:
    with pytest.raises(ParameterError, match="refine"):
        SelfExplained(refine=7).explain(_model(), _batch()[0])


def test_other_models_and_other_sizes_are_refused_with_what_to_do() -> None:
    plain = small_model("resnet", 4, seed=0)
    with pytest.raises(ExplainerRefused, match="not trained to explain itself") as refused:
        SelfExplained().explain(plain, _batch()[0])
    assert "--objective shapley" in refused.value.hint
    with pytest.raises(ExplainerRefused, match="not trained to explain itself"):
        make_own_masking(plain, _batch()[0][0])
    with pytest.raises(ExplainerRefused, match="another grid"):
        SelfExplained().explain(_model(), torch.randn(1, 1, 32, 32))


def test_own_masking_asks_for_the_value_of_the_cells_that_are_half_there() -> None:
    model, (x, _) = _model(), _batch()
    removal = make_own_masking(model, x[0])
    masks = torch.zeros(2, 1, 24, 24)
    masks[0, :, :8, :4] = 1  # half of the first cell
    masks[1, :, :8, :3] = 1
    with torch.no_grad():
        values = removal(model, x[0], masks)
        expected = model.module.value(x[:1], torch.eye(9)[:1])
    assert torch.allclose(values[0], expected[0], atol=1e-6)
    assert torch.equal(values[1], torch.zeros(4))


def test_a_card_builds_the_network_again(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    objective = Hub().get_objective("shapley", value="full")
    module = timm.create_model("test_resnet", num_classes=3, in_chans=3)
    size = (3, 96, 96)
    model = Model(module, name="small", preprocessing=Preprocessing(spatial=(), size=size, mean=(0,) * 3, std=(1,) * 3))
    network = objective.wrap(model).eval()
    torch.nn.init.normal_(network.head.linear.bias)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, tmp_path / "w.safetensors")
    (tmp_path / "card.yaml").write_text(
        "name: small\nadapter: timm\narchitecture: test_resnet\nclasses: [a, b, c]\nobjective: shapley\n"
        "objective_options: {value: full}\ninput: {size: 96}\nweights: {source: file, path: w.safetensors}\n"
    )
    loaded = Hub().load_model(str(tmp_path / "card.yaml"), device="cpu")
    x = torch.randn(2, *size, generator=_rng())
    with torch.no_grad():
        assert torch.allclose(loaded(x), network(x), atol=1e-5)
    assert SelfExplained().explain(loaded, x)[0].metadata["details"]["value"] == "full"
