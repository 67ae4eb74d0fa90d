"""RISE: against a literal implementation of the paper, and against an expectation in closed form."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from xaihub import Model, Preprocessing, Runtime
from xaihub_rise.estimators import controlled, plain
from xaihub_rise.masks import RandomMasks
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
    explainer = RISE(masks=masks, cell=cell, keep=keep, output=output, estimator="plain")
    ours = explainer.explain(model, image, 1, seed=3)[0]

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


@pytest.mark.parametrize(("estimator", "masks"), [("plain", 60_000), ("controlled", 2000)])
def test_many_masks_converge_to_the_expectation_on_a_linear_model(estimator: str, masks: int) -> None:
    side, cell, keep, pixels = 6, 2, 0.4, 3
    torch.manual_seed(0)
    linear = nn.Linear(side * side, 1)
    image = torch.randn(1, 1, side, side)
    model = _model(nn.Sequential(nn.Flatten(), linear), side).declared("multilabel")
    early = {"tolerance": 0.0} if estimator == "controlled" else {}
    explainer = RISE(masks=masks, cell=cell, keep=keep, output="logit", estimator=estimator, **early)
    ours = explainer.explain(model, image, 0)[0].values[0]

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


def _score(masks: Tensor) -> Tensor:
    """A score that is far from linear in the mask."""
    weights = torch.linspace(-1, 2, masks[0].numel(), dtype=torch.float64)
    return (3 * masks.double().flatten(1) @ weights).sin() + masks.double().flatten(1).amin(1)


@pytest.mark.parametrize("estimate", [controlled, plain])
def test_estimates_are_unbiased_over_every_design_of_a_tiny_grid(estimate: object) -> None:
    law = RandomMasks(size=(2, 2), cell=2, keep=0.5)
    grids = torch.tensor(list(product([0.0, 1.0], repeat=4)))
    single = torch.cat([torch.zeros(16, 2), grids], 1)
    opposite = torch.cat([single[:, :2], 1 - single[:, 2:]], 1)
    pairs = torch.stack([single, opposite], 1)  # (16, 2, 6): all that one draw can be
    masks = law.expand(single).double()
    exact = (_score(masks)[:, None, None] * masks[:, 0]).mean(0) / law.keep
    total, count = torch.zeros(2, 2, dtype=torch.float64), 0
    for first, second in product(pairs, pairs):
        draws = torch.cat([first, second])
        total += estimate(law, draws, _score(law.expand(draws)), centred=False).values  # type: ignore[operator]
        count += 1
    assert torch.allclose(total / count, exact, atol=1e-5)


def test_masks_by_factors_equal_masks_by_sampling_and_their_covariance_is_exact() -> None:
    law = RandomMasks(size=(7, 5), cell=3, keep=0.3)
    draws = law.draw(20_000, torch.Generator().manual_seed(0), paired=True)
    masks = law.expand(draws).double().squeeze(1)
    weights = torch.randn(len(draws), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(law.weighted_sum(draws, weights), (weights[:, None, None] * masks).sum(0), atol=1e-3)
    coefficients = torch.randn(9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    at_points = law.at_points(draws).double() @ coefficients
    observed = ((at_points - at_points.mean())[:, None, None] * masks).mean(0)
    assert torch.allclose(law.covariance_with(coefficients), observed, atol=0.02)
    assert masks.mean() == pytest.approx(law.keep, abs=0.01)


def test_the_default_needs_less_than_half_of_plain_sampling_and_knows_its_error() -> None:
    model, image = _model(_network(16), 16), torch.randn(1, 1, 16, 16)

    def maps(masks: int, estimator: str) -> tuple[Tensor, list[float]]:
        explainer = RISE(
            masks=masks, cell=4, estimator=estimator, **({"tolerance": 0.0} if estimator == "controlled" else {})
        )
        found = [explainer.explain(model, image, 1, seed=seed)[0] for seed in range(12)]
        values = torch.stack([one.values[0] for one in found]).double()
        noise = [one.metadata["details"].get("stderr_to_spread", 0.0) for one in found]
        return values - values.mean((1, 2), keepdim=True), noise

    ours, noise = maps(100, "controlled")
    theirs, _ = maps(200, "plain")
    assert float(ours.var(0).mean()) < float(theirs.var(0).mean())
    error = float(ours.var(0).mean().sqrt() / ours.std((1, 2)).mean())
    assert sum(noise) / len(noise) == pytest.approx(error, rel=0.35)


def test_a_run_stops_once_the_standard_error_is_small() -> None:
    model, image = _model(_Corner(), 16), torch.ones(1, 1, 16, 16)
    short, long = (RISE(masks=400, cell=4, tolerance=t).explain(model, image, 0)[0].metadata for t in (0.5, 0.0))
    assert short["forward_passes"] < long["forward_passes"] == 400
    assert short["details"]["stderr_to_spread"] < 0.5
