"""Quick gradients of depthwise convolutions are those that PyTorch takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from xaihub.training.loop.depthwise import quick_depthwise

CPU = torch.device("cpu")


def _gradients(layer: nn.Conv2d, x: Tensor, *, precision: str) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    answer = layer(x)
    upstream = torch.randn(answer.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    with quick_depthwise(CPU, precision):
        answer.backward(upstream)
    found: dict[str, Tensor] = {"x": x.grad, **{name: part.grad for name, part in layer.named_parameters()}}  # type: ignore[dict-item]
    return {name: part.double() for name, part in found.items()}


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2, (1, 2)])
@pytest.mark.parametrize("kernel", [3, 5, (5, 3), (2, 4), 7])
def test_gradients_are_those_of_double_precision(kernel: object, stride: object, padding: int) -> None:
    """Every size of weights, stride and padding; all numbers are exact in bfloat16, so only sums are rounded."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(6, 6, kernel, stride=stride, padding=padding, groups=6)  # type: ignore[arg-type]
    with torch.no_grad():
        for part in layer.parameters():
            part.copy_(torch.randn(part.shape, generator=generator).bfloat16())
    x = torch.randn(3, 6, 12, 15, generator=generator).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    quick = _gradients(layer.bfloat16(), x, precision="bf16")

    double = _reference(layer, x)

    assert quick.keys() == double.keys()
    for name, part in quick.items():
        torch.testing.assert_close(part, double[name], rtol=0, atol=float(double[name].abs().max()) * 2**-7)


def _reference(layer: nn.Conv2d, x: Tensor) -> dict[str, Tensor]:
    copied = nn.Conv2d(6, 6, layer.kernel_size, stride=layer.stride, padding=layer.padding, groups=6).double()  # type: ignore[arg-type]
    copied.load_state_dict({name: part.double() for name, part in layer.state_dict().items()})
    x = x.double().requires_grad_()
    answer = copied(x)
    upstream = torch.randn(answer.shape, generator=torch.Generator().manual_seed(1)).bfloat16().double()
    answer.backward(upstream)
    return {"x": x.grad, **{name: part.grad for name, part in copied.named_parameters()}}  # type: ignore[dict-item]


@pytest.mark.parametrize("groups", [1, 3])
def test_other_convolutions_are_left_alone(groups: int) -> None:
    """What is not depthwise has the very gradients that it has without."""
    layer = nn.Conv2d(6, 12, 5, stride=2, groups=groups).bfloat16()
    x = torch.randn(2, 6, 11, 11).bfloat16()
    for name, part in _gradients(layer, x, precision="bf16").items():
        assert torch.equal(part, _gradients(layer, x, precision="fp32")[name])


def test_only_half_precision_on_a_cpu_is_taken_over() -> None:
    """Elsewhere PyTorch is fast, and a mode would cost time."""
    for device, precision in (("cpu", "fp32"), ("cuda", "bf16"), ("cuda", "fp16")):
        with quick_depthwise(torch.device(device), precision) as entered:
            assert entered is None
    with quick_depthwise(CPU, "bf16") as entered:
        assert entered is not None
