"""Partition SHAP: against shap itself, a literal Owen value, and analytic cases."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xaihub import Model, Preprocessing, Runtime
from xaihub_shap import method
from xaihub_shap.method import PartitionSHAP

shap = method.shap  # imported there, where the warnings of its import are dealt with
SIDE = 8


def _model(module: nn.Module, *, side: int = SIDE, channels: int = 1, runtime: Runtime | None = None) -> Model:
    plain = Preprocessing(spatial=(), size=(channels, side, side), mean=(0.5,) * channels, std=(0.25,) * channels)
    return Model(module, name="small", preprocessing=plain, runtime=runtime)


def _linear() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3))


def _curved() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.Tanh(), nn.Linear(16, 3))


def _image() -> Tensor:
    return torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


def _cells(values: Tensor, cells: int) -> Tensor:
    """Sum an (H, W) map over a grid of cells."""
    step = SIDE // cells
    return values.unfold(0, step, step).unfold(1, step, step).sum((2, 3)).flatten()


@pytest.mark.parametrize("evaluations", [60, 4000])
def test_partition_equals_shap_with_its_own_image_masker(evaluations: int) -> None:
    model, image = _model(_curved()), _image()
    ours = PartitionSHAP(evaluations=evaluations, features="pixels", baseline="zero").explain(model, image, 1)[0]

    def scores(pixels: Any) -> Any:
        with torch.no_grad():
            return model(torch.from_numpy(pixels).float().permute(0, 3, 1, 2))[:, 1].double().numpy()

    masker = shap.maskers.Image(np.zeros((SIDE, SIDE, 1)))
    explainer = shap.PartitionExplainer(scores, masker)
    theirs = explainer(image.permute(0, 2, 3, 1).numpy(), max_evals=evaluations, batch_size=32, silent=True)
    assert np.allclose(ours.values.squeeze().numpy(), theirs.values.squeeze(), atol=1e-6)


def test_partition_is_the_owen_value_of_the_halved_grid() -> None:
    model, image = _model(_curved()), _image()
    ours = PartitionSHAP(evaluations=200, features="grid:2", baseline="zero").explain(model, image, 0)[0]

    def game(present: set[int]) -> float:
        shown = torch.zeros(SIDE, SIDE)
        for cell in present:
            row, column = divmod(cell, 2)
            shown[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1
        with torch.no_grad():
            return float(model(image * shown)[0, 0])

    # Every order of the four cells in which the two cells of a half (top 0 1, bottom 2 3) follow one another.
    orders = [
        (*first, *second)
        for halves in [((0, 1), (2, 3)), ((2, 3), (0, 1))]
        for first in (halves[0], halves[0][::-1])
        for second in (halves[1], halves[1][::-1])
    ]
    expected = [0.0] * 4
    for order in orders:
        for place, cell in enumerate(order):
            expected[cell] += (game({*order[: place + 1]}) - game({*order[:place]})) / len(orders)
    assert torch.allclose(_cells(ours.values.squeeze(), 2), torch.tensor(expected), atol=1e-6)
    assert ours.metadata["completeness_gap"] < 1e-5


def test_partition_is_the_shapley_value_of_two_players() -> None:
    # With two players the tree forbids no order, so that Owen and Shapley values agree in any game.
    model, image = _model(_curved()), _image()
    wide = image.clone()
    wide[..., 4:, :] = 0  # the lower half equals the baseline: two players are left
    ours = PartitionSHAP(evaluations=200, features="grid:2", baseline="zero").explain(model, wide, 0)[0]

    def game(present: tuple[int, ...]) -> float:
        shown = torch.zeros(SIDE, SIDE)
        for cell in present:
            shown[:4, 4 * cell : 4 * cell + 4] = 1
        with torch.no_grad():
            return float(model(wide * shown)[0, 0])

    expected = []
    for player in (0, 1):
        others = [other for other in (0, 1) if other != player]
        value = 0.0
        for size in (0, 1):
            weight = factorial(size) * factorial(1 - size) / factorial(2)
            value += sum(weight * (game((*s, player)) - game(s)) for s in combinations(others, size))
        expected.append(value)
    assert torch.allclose(_cells(ours.values.squeeze(), 2), torch.tensor([*expected, 0.0, 0.0]), atol=1e-6)


def test_partition_shares_out_the_probability_on_request() -> None:
    model, image = _model(_curved()), _image()
    ours = PartitionSHAP(evaluations=50, features="grid:4", baseline="zero", output="probability")
    with torch.no_grad():
        difference = float((model(image).softmax(1) - model(torch.zeros_like(image)).softmax(1))[0, 2])
    assert float(ours.explain(model, image, 2)[0].values.sum()) == pytest.approx(difference, abs=1e-6)


def test_partition_agrees_with_kernel_shap_on_an_additive_game() -> None:
    model, image = _model(_linear()), _image()
    ours = PartitionSHAP(evaluations=400, features="grid:2", baseline="zero").explain(model, image, 2)[0]

    def scores(coalitions: Any) -> Any:
        shown = torch.from_numpy(np.asarray(coalitions)).float().view(-1, 1, 2, 2)
        with torch.no_grad():
            logits = model(image * shown.repeat_interleave(4, 2).repeat_interleave(4, 3))
        return logits[:, 2].double().numpy()

    nothing, everything = np.zeros((1, 4)), np.ones((1, 4))
    # Four players are few enough for KernelSHAP to ask for every coalition, and so to be exact.
    kernel = shap.KernelExplainer(scores, nothing).shap_values(everything, silent=True)[0]
    assert np.allclose(_cells(ours.values.squeeze(), 2).numpy(), kernel, atol=1e-5)


def test_partition_of_a_linear_model_is_weight_times_difference() -> None:
    module = _linear()
    model, image = _model(module), _image()
    ours = PartitionSHAP(evaluations=300, features="grid:4", baseline="constant:0.9").explain(model, image, 2)[0]
    baseline = (0.9 - 0.5) / 0.25
    expected = (module[1].weight[2].view(SIDE, SIDE) * (image[0, 0] - baseline)).detach()
    assert torch.allclose(_cells(ours.values.squeeze(), 4), _cells(expected, 4), atol=1e-5)


def test_partition_explains_a_contrast() -> None:
    model, image = _model(_linear()), _image()
    partition = PartitionSHAP(evaluations=300, features="grid:4", baseline="zero")
    first, second, contrast = (partition.explain(model, image, target)[0].values for target in (0, 1, "0 vs 1"))
    assert torch.allclose(contrast, first - second, atol=1e-5)


@pytest.mark.parametrize("evaluations", [4, 5, 37, 100])
def test_partition_keeps_to_its_budget_and_stays_complete(evaluations: int) -> None:
    model, image = _model(_curved()), _image()
    ours = PartitionSHAP(evaluations=evaluations, features="grid:8", baseline="zero").explain(model, image, 1)[0]
    assert evaluations - 1 <= ours.metadata["forward_passes"] <= evaluations
    assert ours.metadata["details"]["evaluations"] == ours.metadata["forward_passes"]
    assert ours.metadata["completeness_gap"] < 1e-5
    with torch.no_grad():
        difference = float((model(image) - model(torch.zeros_like(image)))[0, 1])
    assert float(ours.values.sum()) == pytest.approx(difference, abs=1e-5)


def test_partition_gives_one_region_everything() -> None:
    model, image = _model(_curved()), _image()
    ours = PartitionSHAP(features="grid:1", baseline="zero").explain(model, image, 1)[0]
    with torch.no_grad():
        difference = float((model(image) - model(torch.zeros_like(image)))[0, 1])
    assert ours.values.squeeze().numpy() == pytest.approx(difference / SIDE**2, abs=1e-6)


def test_partition_works_on_superpixels_and_reports_progress_once() -> None:
    seen: list[tuple[int, int]] = []
    runtime = Runtime(progress=lambda done, total: seen.append((done, total)))
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    model = _model(module, side=32, channels=3, runtime=runtime)
    image = torch.rand(1, 3, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    ours = PartitionSHAP(evaluations=50, features="superpixels:12").explain(model, image, 0)[0]
    assert ours.metadata["completeness_gap"] < 1e-4
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert {total for _, total in seen} == {50}


def test_partition_is_the_same_for_every_batch_size_and_seeded() -> None:
    image = _image()
    partition = PartitionSHAP(evaluations=80, features="grid:8", baseline="noise")
    small, large, again = (
        partition.explain(_model(_curved(), runtime=Runtime(batch_size=rows)), image, 1, seed=5)[0].values
        for rows in (3, 64, 64)
    )
    assert torch.equal(large, again)
    assert torch.allclose(small, large, atol=1e-5)


def test_planted_evidence_gets_the_highest_value() -> None:
    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            evidence = (x[:, 0, 4:6, 2:4].mean((1, 2)) * 4).tanh()
            return torch.stack([evidence, -evidence], 1)

    image = torch.ones(1, 1, SIDE, SIDE)
    ours = PartitionSHAP(evaluations=60, features="grid:4", baseline="zero").explain(_model(Corner()), image, 0)[0]
    assert _cells(ours.values.squeeze(), 4).argmax() == 2 * 4 + 1


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = _model(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3)), side=32, channels=3)
    explanation = PartitionSHAP(evaluations=20).explain(model, torch.rand(1, 3, 32, 32), 0)[0]
    assert capfd.readouterr() == ("", "")
    assert explanation.metadata["warnings"] == []


def test_the_hooks_import_nothing_heavy() -> None:
    code = (
        "import sys, xaihub_shap; xaihub_shap.xaihub_register_explainers(); print({'shap', 'torch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
