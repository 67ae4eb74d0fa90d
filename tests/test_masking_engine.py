"""The masking engine: order, batches, memory, counting, and refused outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from xaihub import Model, ModelError, Preprocessing, Runtime
from xaihub.masking import Fill, MaskedBatch, batch_rows, coalition_scores, make_features, masked_forward_passes

SIDE = 6


class Recorder(nn.Module):
    """Flattens, and remembers the rows of every call; may fail above a number of rows."""

    def __init__(self, limit: int = 10**9, error: Callable[[], Exception] = RuntimeError) -> None:
        super().__init__()
        self.limit, self.error = limit, error
        self.tried: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.tried.append(len(x))
        if len(x) > self.limit:
            raise self.error()
        return x.flatten(1)


def _model(module: nn.Module | None = None, **runtime: object) -> Model:
    plain = Preprocessing(spatial=(), size=(1, SIDE, SIDE), mean=(0.5,), std=(0.25,))
    return Model(module or Recorder(), name="small", preprocessing=plain, runtime=Runtime(**runtime))  # type: ignore[arg-type]


def _image() -> Tensor:
    return torch.randn(1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def _masks(rows: int) -> Tensor:
    return torch.rand(rows, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def _run(model: Model, draws: Tensor | Iterable[Tensor]) -> list[MaskedBatch]:
    return list(masked_forward_passes(model, _image(), draws, removal=Fill(torch.zeros(1, SIDE, SIDE))))


def _gpu_full() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory")


def _cpu_full() -> Exception:
    return RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("lengths", [[10], [1, 0, 7, 2], [3, 3, 3, 1], [0, 10, 0]])
@pytest.mark.parametrize("rows", [1, 4, 10, 64])
def test_answers_come_in_order_in_batches_of_the_size_asked_for(lengths: list[int], rows: int) -> None:
    module, masks = Recorder(), _masks(10)
    batches = _run(_model(module, batch_size=rows), iter(masks.split(lengths)))
    expected = (masks * _image()).flatten(1)
    assert torch.equal(torch.cat([batch.outputs for batch in batches]), expected)
    assert torch.equal(torch.cat([batch.draws for batch in batches]), masks)
    assert module.tried == [rows] * (10 // rows) + [10 % rows] * (10 % rows > 0)


@pytest.mark.parametrize("draws", [torch.zeros(0, 1, SIDE, SIDE), []])
def test_no_mask_costs_no_forward(draws: Tensor | list[Tensor]) -> None:
    module = Recorder()
    assert _run(_model(module, batch_size=4), draws) == []
    assert module.tried == []


def test_an_iterable_is_read_no_further_than_needed() -> None:
    given: list[int] = []

    def endless() -> Iterable[Tensor]:
        while True:
            given.append(3)
            yield _masks(3)

    stream = masked_forward_passes(_model(batch_size=4), _image(), endless(), removal=Fill(torch.zeros(1, SIDE, SIDE)))
    next(stream)
    assert sum(given) == 6


@pytest.mark.parametrize("error", [_gpu_full, _cpu_full, MemoryError])
def test_out_of_memory_halves_the_batch_and_loses_nothing(error: Callable[[], Exception]) -> None:
    module, masks = Recorder(limit=3, error=error), _masks(20)
    model = _model(module, batch_size=16)
    with model.counting() as counts:
        batches = _run(model, iter(masks.split([11, 9])))
    assert torch.equal(torch.cat([batch.outputs for batch in batches]), (masks * _image()).flatten(1))
    assert module.tried == [16, 8, 4] + [2] * 10
    assert counts.forward_passes == 20


def test_the_failed_pass_is_freed_before_the_next() -> None:
    alive: list[int] = []

    class Token:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    class Hungry(Recorder):
        def forward(self, x: Tensor) -> Tensor:
            self.before = len(alive)
            token = Token()  # as an activation would be, it is held by the frame that the exception keeps
            assert token
            return super().forward(x)

    module = Hungry(limit=2, error=_gpu_full)
    _run(_model(module, batch_size=4), _masks(4))
    assert module.before == 0


def test_one_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match="single row of 'small'"):
        _run(_model(Recorder(limit=0, error=_gpu_full), batch_size=4), _masks(4))


def test_other_errors_of_the_model_pass_through() -> None:
    module = Recorder(limit=0, error=lambda: RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        _run(_model(module, batch_size=4), _masks(4))
    assert module.tried == [4]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    class Bad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) * bad

    with pytest.raises(ModelError, match="NaN or infinite"):
        _run(_model(Bad()), _masks(2))


def test_the_caller_stays_out_of_inference_mode_between_batches() -> None:
    for _ in masked_forward_passes(_model(batch_size=2), _image(), _masks(6), removal=Fill(torch.zeros(1, SIDE, SIDE))):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        weight = torch.ones(3, requires_grad=True)
        (weight**2).sum().backward()
        assert weight.grad is not None


def test_progress_counts_rows_up_to_the_total() -> None:
    seen: list[tuple[int, int]] = []
    model = _model(batch_size=4, progress=lambda done, total: seen.append((done, total)))
    _run(model, _masks(10))
    assert seen == [(4, 10), (8, 10), (10, 10)]
    seen.clear()
    removal = Fill(torch.zeros(1, SIDE, SIDE))
    list(masked_forward_passes(model, _image(), _masks(6), removal=removal, done=10, total=20))
    assert seen == [(14, 20), (16, 20)]


def test_a_memory_budget_bounds_the_rows_and_costs_no_counted_forward() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 5))
    row = 4 * SIDE * SIDE * (1 + 3 * 4) + 4 * 5  # input; convolution, activation, flattening; logits
    for rows, budget in [(3, 3 * row + row // 2), (1, 1), (7, 7 * row)]:
        model = _model(module, memory_budget=budget)
        with model.counting() as counts:
            assert batch_rows(model) == rows
            batches = _run(model, _masks(10))
        assert counts.forward_passes == 10
        assert len(batches[0].outputs) == rows


def test_the_batch_size_asked_for_goes_before_the_budget() -> None:
    assert batch_rows(_model(batch_size=50, memory_budget=1)) == 50


def test_smaller_images_get_larger_batches_on_a_cpu() -> None:
    sizes = (56, 112, 224, 448)
    rows = [
        batch_rows(
            Model(
                nn.Flatten(),
                name="x",
                preprocessing=Preprocessing(spatial=(), size=(3, side, side), mean=(0.5,) * 3, std=(0.25,) * 3),
            )
        )
        for side in sizes
    ]
    assert all(small > large for small, large in pairwise(rows))
    assert min(rows) >= 1


def test_coalition_scores_do_not_depend_on_the_batch_size() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    image = _image()
    coalitions = (torch.rand(17, 9) < 0.5).float()
    every = [
        coalition_scores(
            model,
            image,
            make_features("grid:3", model, image),
            coalitions,
            removal=Fill(torch.ones(1, SIDE, SIDE)),
            score=lambda logits: logits[:, 1],
        )
        for model in (_model(module, batch_size=rows) for rows in (1, 5, 17))
    ]
    slow = []
    for coalition in coalitions:
        mask = coalition.view(3, 3).repeat_interleave(2, 0).repeat_interleave(2, 1)
        with torch.no_grad():
            slow.append(module((mask * image + (1 - mask)).unsqueeze(0))[0, 1])
    for scores in every:
        assert torch.allclose(scores, torch.stack(slow), atol=1e-5)
