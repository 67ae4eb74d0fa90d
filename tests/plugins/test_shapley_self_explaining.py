"""The explainer `shapley`: votes of a trained network, refined ones against the definition, refusals, cards."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import factorial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from xaihub import ExplainerRefused, Hub, Model, ParameterError, Preprocessing
from xaihub_shapley.objective import ShapleyObjective
from xaihub_shapley.reproduction.experiment import small_model
from xaihub_shapley.self_explaining import SelfExplained, make_own_masking


def _batch(rows: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 1, 24, 24, generator=torch.Generator().manual_seed(1)), torch.arange(rows) % 4


def _model(**options: Any) -> Model:
    model = small_model("resnet", 4, seed=0)
    return model.around(ShapleyObjective(**options).wrap(model))


def test_one_pass_explains_every_class() -> None:
    model, (x, _) = _model(), _batch()
    found = SelfExplained().explain(model, x, 2)
    phi = model.module.phi(x)
    centred = phi - phi.mean(2, keepdim=True)
    for row, explanation in enumerate(found):
        assert explanation.metadata["forward_passes"] == 1
        assert torch.allclose(explanation.extras["patch_scores"], centred[row].T.reshape(4, 3, 3), atol=1e-6)
        assert torch.allclose(explanation.values[0, ::8, ::8] * 64, centred[row, :, 2].view(3, 3), atol=1e-5)
        assert explanation.metadata["completeness_gap"] < 1e-5
    versus = SelfExplained().explain(model, x, "2 vs 0")[0]
    assert torch.allclose(versus.values[0, ::8, ::8] * 64, (phi[0, :, 2] - phi[0, :, 0]).view(3, 3), atol=1e-5)
    plain = SelfExplained(centre=False).explain(model, x, 1)[0]
    assert float(plain.values.sum()) == pytest.approx(float(model.predict(x)[0, 1]), abs=1e-5)


@pytest.mark.parametrize(("r2", "advised"), [(0.02, True), (0.93, False)])
def test_every_map_repeats_the_figure_of_the_card_without_a_further_pass(r2: float, advised: bool) -> None:
    model, (x, _) = _model(), _batch()
    model = model.around(model.module, card=replace(model.card, measured={"patch_score_r2": r2}))
    for explanation in SelfExplained().explain(model, x):
        assert explanation.metadata["forward_passes"] == 1
        assert explanation.metadata["details"]["patch_score_r2"] == r2
        (note,) = explanation.warnings
        assert f"R2 {r2:.2f}" in note
        assert ("refine=128" in note) == advised
    (refined,) = SelfExplained(refine=8).explain(model, x[:1])
    assert refined.metadata["details"]["patch_score_r2"] == r2
    assert refined.warnings == []


def _outspoken(**options: Any) -> Model:
    """A network whose votes are so large that a wrong one shows."""
    model = _model(**options)
    with torch.no_grad():
        model.module.head.linear.weight.mul_(300)
    return model


def _exact(model: Model, x: Tensor, label: int) -> Tensor:
    """Shapley values of one image by their definition, player by player; scores less their mean over classes."""
    network, n = model.module, 9
    with torch.no_grad():
        v = {s: network(x[None], torch.tensor([[float(i in s) for i in range(n)]]))[0]
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
        assert found[row].metadata["forward_passes"] == 1 + 512
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
        assert 1 < found[row].metadata["forward_passes"] <= 101


@pytest.mark.parametrize("refine", ["0", "7"])
def test_too_few_coalitions_to_refine_with_are_refused_before_any_work(refine: str) -> None:
    with pytest.raises(ParameterError, match=f"'refine' of shapley cannot be '{refine}'"):
        Hub().get_explainer("shapley", refine=refine)
    assert Hub().get_explainer("shapley", refine="none").parameters["refine"] is None


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
        expected = model.module(x[:1], torch.eye(9)[:1])
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
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(loaded(x), network(x), atol=1e-5)
    assert SelfExplained().explain(loaded, x)[0].metadata["details"]["value"] == "full"
