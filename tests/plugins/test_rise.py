"""RISE: against a literal implementation of the paper, and against an expectation in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from xaihub import Model, Preprocessing, Runtime
from xaihub_rise.method import RISE


def _model(module: nn.Module, side: int, runtime: Runtime | None = None) -> Model:
    plain = Preprocessing(spatial=(), size=(1, side, side), mean=(0.5,), std=(0.25,))
    return Model(module, name="small", preprocessing=plain, runtime=runtime)


def _network(side: int) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(side * side, 12), nn.Tanh(), nn.Linear(12, 3))


def _enlarged(grid: Tensor, rows: int, columns: int) -> Tensor:
    """Bilinear upsampling with pixel centres at half, edges repeated, one pixel at a time."""
    cells = grid.shape[0]
    result = torch.zeros(rows, columns, dtype=torch.float64)
    for y in range(rows):
        for x in range(columns):
            v = min(max((y + 0.5) * cells / rows - 0.5, 0.0), cells - 1.0)
            u = min(max((x + 0.5) * cells / columns - 0.5, 0.0), cells - 1.0)
            top, left = int(v), int(u)
            below, right = min(top + 1, cells - 1), min(left + 1, cells - 1)
            a, b = v - top, u - left
            result[y, x] = (
                (1 - a) * (1 - b) * grid[top, left]
                + (1 - a) * b * grid[top, right]
                + a * (1 - b) * grid[below, left]
                + a * b * grid[below, right]
            )
    return result


@pytest.mark.parametrize(("side", "cell", "keep"), [(12, 3, 0.5), (13, 4, 0.3)])
@pytest.mark.parametrize("output", ["probability", "logit"])
def test_rise_equals_the_paper_taken_literally(side: int, cell: int, keep: float, output: str) -> None:
    model, image = _model(_network(side), side), torch.randn(1, 1, side, side)
    masks = 15
    ours = RISE(masks=masks, cell=cell, keep=keep, output=output).explain(model, image, 1, seed=3)[0]

    torch.manual_seed(3)
    grids = (torch.rand(masks, cell * cell) < keep).double().view(masks, cell, cell)
    pixels = -(-side // cell)  # CH = CW = ceil(H / s)
    shifts = [torch.randint(0, pixels, (masks,)).tolist() for _ in range(2)]
    expected = torch.zeros(side, side, dtype=torch.float64)
    for number in range(masks):
        large = _enlarged(grids[number], (cell + 1) * pixels, (cell + 1) * pixels)  # Sec. 3.2
        top, left = shifts[0][number], shifts[1][number]
        mask = large[top : top + side, left : left + side]
        with torch.no_grad():
            logits = model((image * mask).float())[0]
        score = {"probability": logits.softmax(0), "logit": logits}[output][1]
        expected += float(score) * mask / (keep * masks)  # Eq. 6
    assert torch.allclose(ours.values[0], expected.float(), atol=1e-5)
    assert ours.metadata["forward_passes"] == masks


def test_rise_is_the_same_for_every_batch_size_and_seeded() -> None:
    image = torch.randn(1, 1, 12, 12)
    one, seven, large, again, other = (
        RISE(masks=40, cell=3, baseline="noise")
        .explain(_model(_network(12), 12, Runtime(batch_size=rows)), image, 0, seed=seed)[0]
        .values
        for rows, seed in [(1, 0), (7, 0), (64, 0), (64, 0), (64, 1)]
    )
    assert torch.equal(large, again)
    assert torch.allclose(one, large, atol=1e-5)
    assert torch.allclose(seven, large, atol=1e-5)
    assert not torch.allclose(other, large, atol=1e-4)


def test_many_masks_converge_to_the_expectation_on_a_linear_model() -> None:
    side, cell, keep, pixels = 6, 2, 0.4, 3
    torch.manual_seed(0)
    linear = nn.Linear(side * side, 1)
    image = torch.randn(1, 1, side, side)
    model = _model(nn.Sequential(nn.Flatten(), linear), side).declared("multilabel")
    ours = RISE(masks=60_000, cell=cell, keep=keep, output="logit").explain(model, image, 0)[0].values[0]

    # For one shift a mask is M = sum_c a_c B_c with sum_c a_c = 1 and independent B_c ~ Bernoulli(p), so that
    # E[M(i) M(j)] = p^2 + p (1 - p) sum_c a_c(i) a_c(j), averaged over the equally likely shifts.
    units = torch.eye(cell * cell).view(-1, cell, cell)
    large = torch.stack([_enlarged(unit, (cell + 1) * pixels, (cell + 1) * pixels) for unit in units])
    second = torch.zeros(side * side, side * side, dtype=torch.float64)
    for top in range(pixels):
        for left in range(pixels):
            a = large[:, top : top + side, left : left + side].flatten(1)  # (cells, pixels)
            second += (keep**2 + keep * (1 - keep) * a.T @ a) / pixels**2
    evidence = (linear.weight[0] * image.flatten()).double().detach()
    expected = (second @ evidence + keep * linear.bias.double().detach()) / keep
    # Measured against the map's own spread, so that a flat map could not pass.
    assert float((ours.flatten() - expected).abs().max()) < 0.2 * float(expected.std())


class _Corner(nn.Module):
    """The score is the mean of one 4 x 4 block, rows 8 to 11 and columns 4 to 7."""

    def forward(self, x: Tensor) -> Tensor:
        evidence = x[:, 0, 8:12, 4:8].mean((1, 2)) * 6
        return torch.stack([evidence, torch.zeros_like(evidence), -evidence], 1)


def test_planted_evidence_is_found() -> None:
    heat = RISE(masks=800, cell=4).explain(_model(_Corner(), 16), torch.ones(1, 1, 16, 16), 0)[0].values[0]
    row, column = divmod(int(heat.argmax()), 16)
    assert 8 <= row <= 11
    assert 4 <= column <= 7


def test_a_contrast_is_the_difference_of_two_maps() -> None:
    model, image = _model(_network(12), 12), torch.randn(1, 1, 12, 12)
    first, second, contrast = (
        RISE(masks=30, cell=3).explain(model, image, target)[0].values for target in (0, 2, "0 vs 2")
    )
    assert torch.allclose(contrast, first - second, atol=1e-6)
