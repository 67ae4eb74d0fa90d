"""ScoresActivation, the layer: definition, gradient, one vector for all samples, folding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from xaihub import ParameterError
from xaihub_scores_activation.gate import (
    ScoresActivation,
    fold_,
    gates,
    param_groups,
    warn_of_batch_norm,
)
from xaihub_scores_activation.reproduction.networks import Recipe, make_mlp, train, train_alone
from xaihub_scores_activation.reproduction.tables import make_table

SHAPES = [((4, 6), -1), ((4, 6), 1), ((4, 6, 3), 1), ((4, 3, 6), -1), ((4, 6, 2, 3), 1), ((4, 2, 3, 6), -1)]


def gate_with(scores: Tensor, **options: object) -> ScoresActivation:
    gate = ScoresActivation(len(scores), **options).to(scores.dtype)  # type: ignore[arg-type]
    with torch.no_grad():
        gate.scores.copy_(scores)
    return gate


def literal(x: Tensor, scores: Tensor, dim: int) -> Tensor:
    """Equations 1 and 2, entry by entry: w_i = exp(s_i) / sum_j exp(s_j), y = w * x along one axis."""
    total = sum(float(score.double().exp()) for score in scores)
    y = x.clone().double()
    for i, score in enumerate(scores):
        y.select(dim, i).mul_(float(score.double().exp()) / total)
    return y


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_the_output_is_the_input_times_the_softmax_of_the_scores(shape: tuple[int, ...], dim: int) -> None:
    torch.manual_seed(0)
    x, scores = torch.randn(shape), torch.randn(6)

    y = gate_with(scores, dim=dim)(x)

    assert (y.double() - literal(x, scores, dim)).abs().max() < 1e-6


def test_weights_are_positive_and_sum_to_one() -> None:
    weights = gate_with(torch.linspace(-20, 20, 41)).weights()

    assert bool((weights > 0).all())
    assert abs(float(weights.sum()) - 1) < 1e-6


def test_at_first_all_features_are_equal_and_gain_d_changes_nothing() -> None:
    x = torch.randn(5, 7)
    gate = ScoresActivation(7, gain="d")

    assert torch.allclose(gate.weights(), torch.full((7,), 1 / 7), atol=1e-6)
    assert torch.allclose(gate(x), x, atol=1e-6)
    assert sum(weight.numel() for weight in gate.parameters()) == 7


def test_a_constant_added_to_every_score_changes_nothing() -> None:
    scores = torch.randn(9)

    assert torch.allclose(gate_with(scores).weights(), gate_with(scores + 3.5).weights(), atol=1e-6)


def test_extreme_scores_stay_finite() -> None:
    gate = gate_with(torch.tensor([-1e4, 0.0, 1e4]))
    out = gate(torch.ones(2, 3, requires_grad=True))
    out.sum().backward()

    assert bool(out.isfinite().all())
    assert gate.scores.grad is not None
    assert bool(gate.scores.grad.isfinite().all())


def test_a_temperature_divides_the_scores() -> None:
    scores = torch.randn(5)

    assert torch.allclose(gate_with(scores, temperature=2.0).weights(), (scores / 2).softmax(0))


def test_the_softmax_is_computed_in_float32_under_autocast() -> None:
    scores = torch.randn(3000)
    gate = gate_with(scores, gain="d")

    with torch.autocast("cpu", dtype=torch.bfloat16):
        factors = gate.factors()
        out = gate(torch.ones(2, 3000, dtype=torch.bfloat16))

    assert factors.dtype is torch.float32
    assert torch.allclose(factors, 3000 * scores.softmax(0), rtol=1e-5)
    assert out.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_features": 0}, "num_features cannot be 0"),
        ({"num_features": 3, "gain": 0.0}, "gain cannot be 0.0"),
        ({"num_features": 3, "gain": "c"}, "gain cannot be 'c'"),
        ({"num_features": 3, "temperature": 0.0}, "temperature cannot be 0.0"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        ScoresActivation(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 5), (4,), ()])
def test_a_wrong_width_is_a_clear_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError, match="gates 6 features along axis 1"):
        ScoresActivation(6, dim=1)(torch.zeros(shape))


def test_the_gradient_is_right_and_sums_to_zero() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    gate = gate_with(torch.randn(5, dtype=torch.float64), gain=3.0)
    upstream = torch.randn(6, 5, dtype=torch.float64)

    gate(x).backward(upstream)

    w = gate.weights()
    g = 3.0 * (x.detach() * upstream).sum(0)  # g_i = sum_k x_ki dL/dy_ki, times the gain
    assert gate.scores.grad is not None
    assert (gate.scores.grad - w * (g - (w * g).sum())).abs().max() < 1e-12
    assert abs(float(gate.scores.grad.sum())) < 1e-12
    assert x.grad is not None
    assert (x.grad - 3.0 * w * upstream).abs().max() < 1e-12
    assert torch.autograd.gradcheck(
        lambda s, z: torch.func.functional_call(gate, {"scores": s}, (z,)), (gate.scores.detach().requires_grad_(), x)
    )


def test_the_sum_of_the_scores_stays_under_plain_sgd() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(ScoresActivation(8), nn.Linear(8, 3))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(500):
        x = torch.randn(16, 8)
        loss = nn.functional.cross_entropy(network(x), (x[:, 0] > 0).long() + (x[:, 1] > 1).long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    scores = network[0].scores.detach()  # type: ignore[union-attr]
    assert scores.abs().max() > 0.01
    assert abs(float(scores.sum())) < 1e-4


def test_one_vector_serves_all_samples_in_training_and_evaluation() -> None:
    torch.manual_seed(0)
    gate, x = gate_with(torch.randn(6)), torch.randn(10, 6)
    before, order = gate.weights(), torch.randperm(10)

    permuted = gate(x[order])
    gate.eval()

    assert torch.equal(permuted, gate(x)[order])
    assert torch.equal(gate.weights(), before)


def test_a_state_dict_restores_the_weights_bit_for_bit() -> None:
    gate, other = gate_with(torch.randn(6)), ScoresActivation(6)
    other.load_state_dict(gate.state_dict())

    assert torch.equal(other.weights(), gate.weights())


def test_a_ranking_breaks_ties_by_the_lower_index() -> None:
    gate = gate_with(torch.tensor([0.0, 2.0, 1.0, 2.0]))

    assert gate.ranking().tolist() == [1, 3, 2, 0]
    assert gate.top_k(2).tolist() == [1, 3]
    with pytest.raises(ParameterError, match="k cannot be 5"):
        gate.top_k(5)


def test_the_layer_has_a_readable_form() -> None:
    assert repr(ScoresActivation(3)) == "ScoresActivation(3, dim=-1, gain=1.0, temperature=1.0)"


def test_scores_are_a_group_of_their_own_without_decay() -> None:
    network = nn.Sequential(ScoresActivation(4), nn.Linear(4, 2))
    rest, scores = param_groups(network, 0.01, score_lr_mult=10, weight_decay=0.3)

    assert [name for name, _ in gates(network)] == ["0"]
    assert len(rest["params"]) == 2
    assert scores["params"] == [network[0].scores]
    assert (scores["lr"], scores["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("gain", [1.0, "d"])
def test_a_trained_gate_folds_into_the_next_layer(gain: float | str) -> None:
    table = make_table("wine", 0)
    recipe = Recipe(gain=gain, score_lr_mult=10, epochs=30)  # type: ignore[arg-type]
    (trained,) = train([table], [recipe], [0])
    before = trained(table.test_x)

    gate, following = trained[0], trained[1]
    assert isinstance(gate, ScoresActivation)
    fold_(gate, following)
    after = trained[1:](table.test_x)

    assert trained.weights.shape == (13,)
    assert (before - after).abs().max() < 1e-5
    assert torch.equal(before.argmax(1), after.argmax(1))


def test_a_gate_on_channels_folds_into_a_convolution() -> None:
    torch.manual_seed(0)
    gate, conv = gate_with(torch.randn(3), dim=1, gain="d"), nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 5, 5)
    before = conv(gate(x))

    fold_(gate, conv)

    assert torch.allclose(conv(x), before, atol=1e-6)


@pytest.mark.parametrize(
    ("following", "message"), [(nn.ReLU(), "folded into ReLU"), (nn.Linear(5, 2), "4 features cannot be folded")]
)
def test_a_gate_that_cannot_be_folded_says_why(following: nn.Module, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        fold_(ScoresActivation(4), following)


def test_a_batch_norm_right_behind_the_gate_is_warned_about() -> None:
    spoilt = nn.Sequential(ScoresActivation(4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    sound = nn.Sequential(ScoresActivation(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    example = torch.randn(3, 4)

    with pytest.warns(UserWarning, match="the batch norm '1' directly follows the gate '0'"):
        warn_of_batch_norm(spoilt, example)
    warn_of_batch_norm(sound, example)  # a warning would be an error
    assert spoilt.training


def test_behind_a_batch_norm_the_scores_hardly_learn() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    sizes = []
    for norm in (nn.BatchNorm1d(4, eps=1e-12), nn.Identity()):
        network = nn.Sequential(ScoresActivation(4), norm, nn.Linear(4, 2))
        nn.functional.cross_entropy(network(x), (x[:, 0] > 0).long()).backward()
        sizes.append(float(network[0].scores.grad.abs().max()))  # type: ignore[union-attr]

    assert sizes[0] < 1e-5 * sizes[1]


@pytest.mark.parametrize("recipe", [Recipe(epochs=3), Recipe(score_lr_mult=10, gain="d", epochs=3)])
def test_networks_trained_side_by_side_are_those_trained_alone(recipe: Recipe) -> None:
    tables = [make_table("wine", seed) for seed in (0, 1)]
    together = train(tables, [recipe] * 2, [0, 1])

    for table, seed, found in zip(tables, (0, 1), together, strict=True):
        alone = make_mlp(table.columns, table.classes, recipe, seed)
        train_alone(alone, table, recipe, seed)
        assert torch.allclose(found(table.test_x), alone(table.test_x), atol=2e-4)
        assert torch.allclose(found.weights, alone.weights, atol=1e-5)
