"""The objectives on images: rows, statistics, dropout, precision, calibration, and their effect on digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.plugins.expo_networks import Counted, batch, begun, resnet, step, vit, wrapped
from xaihub.masking import make_features
from xaihub_expo.base import selection
from xaihub_expo.neighbourhoods import baselines, cell_opacities, faded, line_opacities, mask_opacities, noisy
from xaihub_expo.objectives import Fidelity, LineFidelity, Stability
from xaihub_expo.penalties import line_fit

ALL: list[Any] = [
    Stability(weight=1.0),
    Stability(weight=1.0, neighbourhood="patches"),
    LineFidelity(weight=1.0, penalty_batch=2),
    Fidelity(weight=1.0, grid=2, penalty_batch=2),
    Fidelity(weight=1.0, grid=2, penalty_batch=2, opacities="uniform"),
    Stability(weight=1.0, relative=True),
    LineFidelity(weight=1.0, penalty_batch=2, relative=True),
    Fidelity(weight=1.0, grid=2, penalty_batch=2, relative=True),
]
IDS = ["stability", "stability-patches", "1d", "fidelity", "fidelity-uniform",
       "stability-relative", "1d-relative", "fidelity-relative"]  # fmt: skip


def statistics(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.named_buffers()}


@pytest.mark.parametrize("make", [resnet, vit])
@pytest.mark.parametrize("objective", ALL, ids=IDS)
def test_one_step_gives_every_weight_a_gradient(objective: Any, make: Any) -> None:
    model = wrapped(make())
    network = begun(objective, model)

    losses = objective.loss(network, *batch(), step())
    losses.total.backward()

    assert set(losses.terms) == {"cross_entropy", "expo"}
    assert float(losses.terms["expo"].detach()) > 0
    assert all(w.grad is not None and bool(w.grad.isfinite().all()) for w in network.parameters())
    assert all(bool(w.grad.abs().max() > 0) for name, w in network.named_parameters() if "key" not in name)


@pytest.mark.parametrize("objective", ALL, ids=IDS)
def test_the_penalty_itself_reaches_every_weight(objective: Any) -> None:
    network = begun(objective, wrapped(resnet()))

    objective.loss(network, *batch(), step()).terms["expo"].backward()

    missing = [name for name, w in network.named_parameters() if w.grad is None or float(w.grad.abs().max()) == 0]
    assert [name for name in missing if name != "fc.bias"] == []


@pytest.mark.parametrize("objective", ALL, ids=IDS)
def test_changed_images_leave_batch_statistics_alone(objective: Any) -> None:
    network, plain = begun(objective, wrapped(resnet())), resnet().train()
    inputs, labels = batch()

    objective.loss(network, inputs, labels, step())
    plain(inputs)

    for name, value in statistics(plain).items():
        torch.testing.assert_close(statistics(network)[name], value, msg=name)
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("objective", ALL, ids=IDS)
def test_dropout_and_dropped_paths_are_off_inside_the_penalty(objective: Any) -> None:
    network = begun(objective, wrapped(vit(drop_rate=0.5, drop_path_rate=0.5, proj_drop_rate=0.3)))
    inputs, labels = batch()

    torch.manual_seed(1)
    first = objective.loss(network, inputs, labels, step())
    torch.manual_seed(2)
    second = objective.loss(network, inputs, labels, step())

    assert float(first.terms["cross_entropy"].detach()) != float(second.terms["cross_entropy"].detach())
    torch.testing.assert_close(first.terms["expo"], second.terms["expo"])


@pytest.mark.parametrize(
    ("objective", "rows"),
    [
        (Stability(weight=1.0), [16, 16]),
        (Stability(weight=1.0, penalty_batch=4), [16, 4]),
        (LineFidelity(weight=1.0), [16, 4 * 8]),
        (LineFidelity(weight=1.0, penalty_batch=3, samples=5), [16, 15]),
        (Fidelity(weight=1.0), [16, 51]),
        (Fidelity(weight=1.0, grid=2, penalty_batch=2, samples=9), [16, 18]),
    ],
    ids=repr,
)
def test_a_step_takes_the_rows_that_are_documented(objective: Any, rows: list[int]) -> None:
    network = begun(objective, wrapped(vit()))
    seen = Counted(network)

    objective.loss(network, *batch(16), step())

    assert seen.rows == rows


def test_with_batch_statistics_the_clean_side_of_stability_is_evaluated_once_more() -> None:
    objective = Stability(weight=1.0)
    network = begun(objective, wrapped(resnet()))
    seen = Counted(network)

    objective.loss(network, *batch(), step())
    for module in network.modules():
        module.training = not isinstance(module, nn.BatchNorm2d)
    objective.loss(network, *batch(), step())

    assert seen.rows == [4, 4, 4, 4, 4]


def test_every_kth_step_is_penalised_that_many_times_as_much() -> None:
    objective, often = LineFidelity(weight=1.0, every=3), LineFidelity(weight=1.0)
    model = wrapped(vit())
    network = begun(objective, model)
    begun(often, model)

    terms = [objective.loss(network, *batch(), step(number)).terms for number in range(4)]

    assert ["expo" in term for term in terms] == [True, False, False, True]
    torch.testing.assert_close(terms[0]["expo"], 3 * often.loss(network, *batch(), step()).terms["expo"])
    with torch.no_grad():
        assert "expo" in objective.loss(network.eval(), *batch(), step(1)).terms


def test_binary_opacities_of_one_cell_cost_nothing_and_continuous_ones_do() -> None:
    model = wrapped(vit())
    inputs, _ = batch()
    cells = make_features("grid:4", model, inputs[0])
    hidden = baselines("mean", model, inputs)

    def residual(binary: bool) -> float:
        opacity, levels = line_opacities(4, 8, cells.count, torch.Generator().manual_seed(0))
        opacity, levels = (opacity.round(), levels.round()) if binary else (opacity, levels)
        with torch.no_grad():
            found = model(faded(inputs, hidden, opacity, cells).flatten(0, 1)).unflatten(0, (4, 8))
        return float(line_fit(levels, found).residuals.square().mean())

    assert residual(binary=True) < 1e-10
    assert residual(binary=False) > 1e-6


def test_a_faded_cell_is_between_the_image_and_its_mean_colour() -> None:
    model = wrapped(vit())
    inputs, _ = batch(2)
    cells = make_features("grid:2", model, inputs[0])
    opacity = torch.ones(2, 1, 4)
    opacity[0, 0, 3] = 0.25

    found = faded(inputs, baselines("mean", model, inputs), opacity, cells)[:, 0]

    torch.testing.assert_close(found[1], inputs[1])
    torch.testing.assert_close(found[0, :, :16], inputs[0, :, :16])
    mean = inputs[0].mean((1, 2), keepdim=True)
    torch.testing.assert_close(found[0, :, 16:, 16:], mean + 0.25 * (inputs[0, :, 16:, 16:] - mean))


def test_draws_are_as_documented() -> None:
    g = torch.Generator().manual_seed(0)
    masks, opacities = mask_opacities(50, 40, 9, 0.8, g), cell_opacities(50, 40, 9, 0.8, g)
    line, levels = line_opacities(50, 40, 9, g)
    noise = noisy(torch.zeros(8, 3, 16, 16), 0.05, (0.5, 0.25, 0.1), g)

    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert float(masks.mean()) == pytest.approx(0.8, abs=0.01)
    assert float((opacities == 1).float().mean()) == pytest.approx(0.8, abs=0.01)
    assert float(opacities[opacities < 1].mean()) == pytest.approx(0.5, abs=0.02)
    assert bool(((line < 1).any(1).sum(1) == 1).all())
    torch.testing.assert_close(line.min(2).values, levels)
    assert len((line < 1).any(1).long().argmax(1).unique()) > 5
    torch.testing.assert_close(noise.abs().amax((0, 2, 3)), torch.tensor([0.1, 0.2, 0.5]), rtol=0.02, atol=0)


def test_masks_that_draw_their_own_chance_show_all_numbers_of_cells_alike() -> None:
    masks = mask_opacities(100, 200, 9, None, torch.Generator().manual_seed(0))

    shown_cells = torch.bincount(masks.sum(2).long().flatten(), minlength=10)
    torch.testing.assert_close(shown_cells / shown_cells.sum(), torch.full((10,), 0.1), rtol=0, atol=0.01)
    assert float(masks.mean((0, 1)).std()) < 0.01


@pytest.mark.parametrize("objective", ALL, ids=IDS)
def test_under_autocast_the_penalty_is_float32_and_close_to_that_of_full_precision(objective: Any) -> None:
    network = begun(objective, wrapped(vit()))
    full = objective.loss(network, *batch(), step()).terms["expo"].detach()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = objective.loss(network, *batch(), step()).terms["expo"].detach()

    assert half.dtype == torch.float32
    assert 0.2 * float(full) < float(half) < 5 * float(full) + 1e-4


def test_of_many_classes_the_true_one_and_its_four_best_rivals_are_penalised() -> None:
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 5, 19])

    found = selection(labels, logits)(logits.unsqueeze(1))[:, 0]

    for row, label in enumerate(labels.tolist()):
        centred = logits[row] - logits[row].mean()
        rivals = sorted((float(v) for i, v in enumerate(centred) if i != label), reverse=True)[:4]
        torch.testing.assert_close(found[row], torch.tensor([float(centred[label]), *rivals]))
    few = logits[:, :10].unsqueeze(1)
    assert torch.equal(selection(labels.clamp(max=9), logits[:, :10])(few), few)


def test_holding_the_clean_side_constant_changes_the_gradient_of_stability_and_not_its_value() -> None:
    terms, gradients = [], []
    for stop in (False, True):
        objective = Stability(weight=1.0, stop_gradient=stop)
        network = begun(objective, wrapped(vit()))
        terms.append(objective.loss(network, *batch(), step()).terms["expo"])
        terms[-1].backward()
        gradients.append(next(network.parameters()).grad)

    assert float(terms[0].detach()) == float(terms[1].detach())
    assert not torch.allclose(*gradients, rtol=1e-3)


# Calibration
