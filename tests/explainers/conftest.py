"""A small network and a batch for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.toy_explainers import make_model
from xaihub import Model


@pytest.fixture
def model() -> Model:
    return make_model()


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
