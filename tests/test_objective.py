"""What objectives share: asking a network as it is used, in the middle of training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xaihub import evaluation_mode


def network() -> nn.Sequential:
    """Return a network in training mode whose second norm is frozen."""
    made = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    made[2].eval()
    return made


def test_inside_the_network_answers_as_it_is_used_and_gradients_pass() -> None:
    asked, inputs = network(), torch.randn(8, 4, requires_grad=True)

    with evaluation_mode(asked):
        first, second = asked(inputs), asked(inputs)
    first.square().sum().backward()

    torch.testing.assert_close(first, second)
    torch.testing.assert_close(asked[0].running_mean, torch.zeros(4))
    assert inputs.grad is not None


def test_each_module_returns_to_its_own_mode_after_an_error_too() -> None:
    asked = network()
    before = [module.training for module in asked.modules()]

    def fail() -> None:
        with evaluation_mode(asked):
            raise ValueError(str([module.training for module in asked.modules()].count(True)))

    with pytest.raises(ValueError, match="^0$"):
        fail()
    assert [module.training for module in asked.modules()] == before == [True, True, True, False]
