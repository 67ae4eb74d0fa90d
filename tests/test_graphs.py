"""Recordings of passes take over for shapes that repeat, and only if they return the network's scores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from xaihub.models.graphs import REPEATS, SHAPES, Graphed

Replay = Callable[[Tensor], Tensor]
NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval().requires_grad_(False)


def images(rows: int = 2) -> Tensor:
    return torch.rand(rows, 3, 2, 2, generator=torch.Generator().manual_seed(rows))


def recorder(calls: list[tuple[int, ...]], offset: float = 0.0) -> Callable[[nn.Module, Tensor], Replay]:
    """As on a GPU, but the recording is a call."""

    def record(network: nn.Module, inputs: Tensor) -> Replay:
        calls.append(tuple(inputs.shape))
        return lambda values: network(values) + offset

    return record


def test_shapes_that_repeat_are_recorded_once() -> None:
    calls: list[tuple[int, ...]] = []
    graphed = Graphed(NETWORK, recorder(calls))
    for rows in (2, 2, 1, *[2] * REPEATS, 1):
        assert torch.equal(graphed(images(rows)), NETWORK(images(rows)))
    assert calls == [(2, 3, 2, 2)]
    for rows in range(3, 10):
        for _ in range(REPEATS):
            graphed(images(rows))
    assert len(calls) == SHAPES


def test_a_recording_with_other_scores_is_not_used() -> None:
    calls: list[tuple[int, ...]] = []
    graphed = Graphed(NETWORK, recorder(calls, offset=0.01))
    for _ in range(2 * REPEATS):
        assert torch.equal(graphed(images()), NETWORK(images()))
    assert len(calls) == 1


def test_a_network_that_cannot_be_recorded_runs_as_it_is() -> None:
    def fails(_network: nn.Module, _inputs: Tensor) -> Replay:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    graphed = Graphed(NETWORK, fails)
    for _ in range(REPEATS - 1):
        graphed(images())
    with pytest.warns(UserWarning, match="CUDA graphs are not used: operation not permitted when stream is capturing"):
        graphed(images())
    assert torch.equal(graphed(images()), NETWORK(images()))  # and no other warning


def test_each_precision_has_its_own_recording() -> None:
    calls: list[tuple[int, ...]] = []
    graphed = Graphed(NETWORK, recorder(calls))
    for _ in range(REPEATS):
        graphed(images())
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(REPEATS):
            assert graphed(images()).dtype == torch.bfloat16
    assert len(calls) == 2
    assert graphed(images()).dtype == torch.float32
