"""Recordings of forward passes: equal to the passes themselves, or not made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.plugins.convad_networks import close_to, randomised
from xaihub import Model, Preprocessing, Runtime
from xaihub.masking import variant_scores
from xaihub.models.recording import recorded

SIDE = 8
Network = Callable[[Tensor], Tensor]


class _Block(nn.Module):
    """A shortcut, batch norms, gates of channels, padding beforehand, and the number of rows as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4)
        self.deep, self.inner = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4, affine=False)
        self.shared = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.norm(self.stem(functional.pad(x, (0, 1, 0, 1)))), inplace=True)
        y = self.deep(x)
        y = functional.silu(self.inner(y)) + self.shared(y).tanh()  # read twice: neither can be folded
        x = x + y
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, functional.max_pool2d(right, 3, 1, 1)], 1)
        x *= x.mean((2, 3)).sigmoid().view(len(x), -1, 1, 1)
        return self.head(x.amax((2, 3)).reshape(len(x), 4))


def twice(network: Network, inputs: Tensor) -> Tensor:
    return network(inputs) - 0.5 * network(inputs.flip(-1))


def block() -> _Block:
    torch.manual_seed(0)
    network = _Block()
    randomised(network)
    return network


def pixels(rows: int = 5) -> Tensor:
    return torch.randn(rows, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def model_of(network: nn.Module) -> Model:
    plain = Preprocessing(spatial=(), size=(2, SIDE, SIDE), mean=(0.0,) * 2, std=(1.0,) * 2)
    return Model(network, name="small", preprocessing=plain, runtime=Runtime(batch_size=4, backend="eager"))


def operations(program: Any) -> list[str]:
    return [node.target.__name__ for node in program.graph.nodes if node.op == "call_function"]


@torch.inference_mode()
def test_a_recording_is_the_function_for_any_number_of_rows() -> None:
    network = block()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    program = recorded(lambda given: twice(network.forward, given), pixels(1), network)

    assert program is not None
    for rows in (1, 2, 3, 5):
        inputs = pixels(rows)
        assert close_to(program.forward(inputs.clone()), twice(network, inputs))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    # Of the three batch norms of each call, the one that follows a convolution alone is part of it.
    assert operations(program).count("batch_norm") == 4


class _ByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class _FromArray(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy().mean((2, 3)))


class _OtherTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = [torch.ones(2)]  # not a buffer, so a change of it would go unnoticed

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self.scale[0]


class _ByRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if len(x) == 2 else x.amax((2, 3))


class _Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + torch.rand(2)


@pytest.mark.parametrize("kind", [_ByValue, _FromArray, _OtherTensor, _ByRows, _Random])
@torch.inference_mode()
def test_what_a_list_of_operations_cannot_express_is_not_recorded(kind: type[nn.Module]) -> None:
    network = kind().eval()
    assert recorded(network.forward, pixels(1), network) is None


@torch.inference_mode()
def test_a_function_that_fails_fails_as_always() -> None:
    with pytest.raises(ZeroDivisionError):
        recorded(lambda x: x * (1 // 0), pixels(1), nn.Identity())


def test_a_variant_is_run_from_a_recording_while_nothing_changes() -> None:
    network = block()
    model, inputs = model_of(network), pixels()
    calls: list[int] = []

    def run(call: Network, given: Tensor) -> Tensor:
        calls.append(len(given))
        return twice(call, given)

    def passes() -> tuple[Tensor, int]:
        calls.clear()
        with torch.inference_mode(), model.executing(), model.counting() as counts:
            return variant_scores(model, "twice", run, inputs), counts.forward_passes

    expected = twice(network, inputs).detach()
    assert torch.equal(variant_scores(model, "twice", run, inputs), expected)  # with a graph: the function itself
    first, _ = passes()
    again, counted = passes()
    assert not calls  # nothing but the recording
    assert counted == len(inputs)  # one pass of it per row
    assert close_to(first, expected)
    assert close_to(again, expected)

    for change in (_scaled, _replaced, _written):
        change(network)
        found, _ = passes()
        assert calls, change
        assert not close_to(found, expected, 1e-3), change
        expected = twice(network, inputs).detach()
        assert close_to(found, expected), change

    handle = network.norm.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    assert torch.equal(passes()[0], twice(network, inputs).detach())  # the hook runs
    handle.remove()
    assert close_to(passes()[0], expected)


def _scaled(network: _Block) -> None:
    with torch.no_grad():
        network.head.weight.mul_(2)


def _replaced(network: _Block) -> None:
    network.norm = nn.BatchNorm2d(4).eval()


def _written(network: _Block) -> None:
    network.stem.weight.data += 1
