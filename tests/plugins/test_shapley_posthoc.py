"""Post-hoc Shapley values: against the definition, their standard errors, groups, ways to hide, refusals."""

from __future__ import annotations

from itertools import combinations
from math import factorial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xaihub import ExplainerRefused, Hub, Model, ParameterError, Preprocessing
from xaihub.masking import every_coalition, make_features, make_removal
from xaihub_shapley.estimators import enumerated, interacting, ordered, regressed
from xaihub_shapley.gaussian_process import shapes
from xaihub_shapley.posthoc import ShapleyValues, grouped

SAMPLED = [interacting, regressed, ordered]


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _codes(shown: Tensor) -> Tensor:
    return (shown.long() * 2 ** torch.arange(shown.shape[1])).sum(1)


def _table(players: int, seed: int = 0) -> Tensor:
    """The score of each coalition, by its code: smooth with interactions of every order."""
    shown = every_coalition(players).shown.double()
    u = torch.randn(players, 6, generator=_rng(seed), dtype=torch.float64)
    return torch.tanh(shown @ u / players**0.5).sum(1)


def _game(table: Tensor) -> Any:
    return lambda shown: table[_codes(shown)]


def _definition(table: Tensor, players: int) -> Tensor:
    values = torch.zeros(players, dtype=torch.float64)
    for player in range(players):
        others = [k for k in range(players) if k != player]
        for size in range(players):
            for kept in combinations(others, size):
                code = sum(2**k for k in kept)
                share = factorial(size) * factorial(players - 1 - size) / factorial(players)
                values[player] += share * (table[code + 2**player] - table[code])
    return values


def test_enumeration_is_the_definition() -> None:
    table = _table(6)
    found = enumerated(_game(table), 6)
    assert torch.allclose(found.values, _definition(table, 6), atol=1e-12)
    assert found.stderr.tolist() == [0] * 6
    assert found.whole == pytest.approx(float(found.values.sum()))


@pytest.mark.parametrize("estimate", SAMPLED)
def test_estimates_sum_to_the_whole_and_stay_within_the_budget(estimate: Any) -> None:
    table, asked = _table(10), []

    def ask(shown: Tensor) -> Tensor:
        asked.append(len(shown))
        return table[_codes(shown)]

    found = estimate(ask, 10, 101, _rng())
    assert float(found.values.sum()) == pytest.approx(found.whole, abs=1e-5)
    assert found.whole == pytest.approx(float(table[-1] - table[0]))
    assert sum(asked) == found.evaluated <= 101


@pytest.mark.parametrize("estimate", SAMPLED)
def test_an_additive_game_is_found_exactly(estimate: Any) -> None:
    worth = torch.randn(12, generator=_rng(), dtype=torch.float64)
    found = estimate(lambda shown: 3 + shown.double() @ worth, 12, 64, _rng())
    assert torch.allclose(found.values, worth, atol=1e-3)
    assert float(found.stderr.max()) < 1e-2


@pytest.mark.parametrize("estimate", [regressed, ordered])
def test_unbiased_estimates_average_to_the_truth(estimate: Any) -> None:
    table = _table(8)
    truth = _definition(table, 8)
    values = torch.stack([estimate(_game(table), 8, 60, _rng(seed)).values for seed in range(80)])
    error = values.std(0) / len(values) ** 0.5
    assert bool(((values.mean(0) - truth).abs() < 4 * error + 1e-9).all())


@pytest.mark.parametrize("estimate", SAMPLED)
@pytest.mark.parametrize("budget", [64, 160])
def test_standard_errors_are_of_the_size_of_the_errors(estimate: Any, budget: int) -> None:
    ratios = []
    for seed in range(20):
        table = _table(9, seed % 3)
        found = estimate(_game(table), 9, budget, _rng(seed))
        ratios.append(float((found.values - enumerated(_game(table), 9).values).square().mean()
                            / found.stderr.square().mean()))  # fmt: skip
    assert 0.3 < (sum(ratios) / len(ratios)) ** 0.5 < 2


def test_interactions_err_least() -> None:
    squared = dict.fromkeys(SAMPLED, 0.0)
    for seed in range(10):
        table = _table(10, seed)
        truth = enumerated(_game(table), 10).values
        for estimate in SAMPLED:
            squared[estimate] += float((estimate(_game(table), 10, 200, _rng(seed)).values - truth).square().sum())
    assert squared[interacting] < 0.5 * squared[regressed] < squared[ordered]


class _Bilinear(nn.Module):
    """Class 0 adds the cells' means; class 1 multiplies the first two and adds the third."""

    def forward(self, x: Tensor) -> Tensor:
        cells = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return torch.stack([cells.sum(1), cells[:, 0] * cells[:, 1] + cells[:, 2]], 1)


def _model(module: nn.Module | None = None, size: tuple[int, int, int] = (1, 8, 8)) -> Model:
    channels = size[0]
    plain = Preprocessing(spatial=(), size=size, mean=(0.0,) * channels, std=(1.0,) * channels)
    return Model(module or _Bilinear(), name="small", preprocessing=plain)


IMAGE = torch.tensor([[1.0, 2], [3, 4]]).repeat_interleave(4, 0).repeat_interleave(4, 1)[None, None]


def _explain(target: Any = 1, **parameters: Any) -> Any:
    values = {"features": "grid:2", "baseline": "zero", **parameters}
    return ShapleyValues(**values).explain(_model(), IMAGE, target)[0]


def test_a_map_shares_each_value_among_its_pixels() -> None:
    found = _explain()
    assert found.extras["shapley_values"][:4].tolist() == pytest.approx([1, 1, 3, 0])
    assert found.values[0, ::4, ::4].flatten().mul(16).tolist() == pytest.approx([1, 1, 3, 0])
    assert found.extras["standard_errors"].tolist() == [0] * 4
    assert found.metadata["completeness_gap"] < 1e-6
    assert found.metadata["details"]["estimator"] == "exact"
    assert found.metadata["forward_passes"] == 16
    assert torch.equal(found.extras["players"][::4, ::4], torch.tensor([[0, 1], [2, 3]]).int())


def test_a_contrast_is_the_difference_of_two_maps() -> None:
    assert torch.allclose(_explain("1 vs 0").values, _explain(1).values - _explain(0).values, atol=1e-6)


def test_players_of_a_group_join_as_one() -> None:
    found = _explain(groups="0+1")
    assert found.extras["shapley_values"].tolist() == pytest.approx([2, 3, 0])
    assert found.values[0, ::4, ::4].flatten().mul(16).tolist() == pytest.approx([1, 1, 3, 0])
    assert torch.equal(found.extras["players"][::4, ::4], torch.tensor([[0, 0], [1, 2]]).int())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("0-1", "cannot be '0-1'"),
        ("0+9", "names player 9"),
        ("0+1,1+2", "twice"),
        ("0+0", "twice"),
        ("0+", "cannot be"),
    ],
)
def test_groups_that_are_not_a_partition_are_refused(groups: str, message: str) -> None:
    model = _model()
    with pytest.raises(ParameterError, match=message.replace("+", r"\+")):
        grouped(make_features("grid:2", model, IMAGE[0]), groups)


@pytest.mark.parametrize("estimator", ["interactions", "kernel", "permutation"])
def test_estimators_agree_with_enumeration_on_a_network(estimator: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 8 * 8, 3))
    model, image = _model(network, (1, 12, 12)), torch.randn(1, 1, 12, 12, generator=_rng())
    values = {"features": "grid:4", "baseline": "zero"}
    truth = ShapleyValues(**values, budget=2**16).explain(model, image, 0)[0]
    found = ShapleyValues(**values, budget=400, estimator=estimator).explain(model, image, 0)[0]
    assert found.metadata["details"]["estimator"] == estimator
    error = (found.extras["shapley_values"] - truth.extras["shapley_values"]).abs()
    assert bool((error < 6 * found.extras["standard_errors"] + 1e-3).all())
    assert float(error.norm() / truth.extras["shapley_values"].norm()) < 0.1


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_regions_can_be_switched_off_inside_the_network(name: str) -> None:
    hub = Hub()
    torch.manual_seed(0)
    model = hub.load_model(name, device="cpu", options={"num_classes": 3}, scratch=True)
    for weight in model.module.parameters():
        nn.init.normal_(weight, 0.5 if weight.ndim == 1 else 0, 0.2)
    image = torch.randn(3, *model.input_size[1:], generator=_rng())
    explainer = hub.get_explainer("shapley_values", features="grid:2", baseline="deactivate")
    found = explainer.explain(model, image[None], 1)[0]
    players = make_features("grid:2", model, image)
    removal, shown = make_removal("deactivate", model, image), every_coalition(4).shown
    with torch.inference_mode():
        table = removal(model, image, players.masks(shown))[:, 1].double()
    expected = _definition(table[torch.argsort(_codes(shown))], 4)
    assert torch.allclose(found.extras["shapley_values"], expected, atol=1e-4 * float(expected.abs().max()))


def test_shapes_count_pixels_around_points() -> None:
    found = shapes(grouped(make_features("grid:2", _model(), IMAGE[0]), "0+1"))
    assert found.shape == (3, 32, 32)
    assert found.sum((1, 2)).tolist() == [32, 16, 16]
    assert found[0, :16].sum() == 32
    assert found[1, 16:, :16].sum() == 16


def test_superpixels_are_players_too() -> None:
    image = torch.rand(1, 1, 24, 24, generator=_rng())
    found = ShapleyValues(features="superpixels:6", baseline="zero").explain(_model(size=(1, 24, 24)), image, 0)[0]
    assert found.values.sum() == pytest.approx(float(found.extras["shapley_values"].sum()), abs=1e-5)


def test_budgets_that_cannot_serve_are_refused_with_one_that_can() -> None:
    with pytest.raises(ParameterError, match=r"2\^16 forward passes") as refused:
        _explain(features="grid:4", estimator="exact")
    assert refused.value.hint == "use budget=65536"
    with pytest.raises(ParameterError, match="too small to fit 16 players"):
        _explain(features="grid:4", estimator="kernel", budget=20)
    with pytest.raises(ParameterError, match="too small for orders of 16 players"):
        _explain(features="grid:4", estimator="permutation", budget=40)
    big = _model(size=(1, 32, 32))
    with pytest.raises(ParameterError, match="interactions of 1024 players"):
        ShapleyValues(features="pixels", baseline="zero").explain(big, torch.ones(1, 1, 32, 32), 0)
    with pytest.raises(ParameterError, match="interactions cannot be fitted to 20000 coalitions"):
        _explain(features="grid:4", estimator="interactions", budget=20000)


def test_budgets_beyond_a_fit_go_to_kernel_shap() -> None:
    assert _explain(features="grid:4", budget=20000).metadata["details"]["estimator"] == "kernel"


def test_a_budget_too_small_for_the_players_is_warned_about() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 2))
    torch.manual_seed(0)
    nn.init.normal_(network[1].weight, 0, 2)
    image = torch.randn(1, 1, 8, 8, generator=_rng())
    found = ShapleyValues(features="pixels", baseline="zero", budget=40).explain(_model(network), image, 0)[0]
    assert any("too few to separate 64 players" in warning for warning in found.warnings)


def test_own_masking_is_refused_on_other_models() -> None:
    hub = Hub()
    model = hub.load_model("test_resnet", device="cpu", options={"num_classes": 3}, scratch=True)
    explainer = hub.get_explainer("shapley_values", features="grid:2", baseline="own_masking")
    with pytest.raises(ExplainerRefused, match="not trained to explain itself"):
        explainer.explain(model, torch.ones(1, *model.input_size), 0)
