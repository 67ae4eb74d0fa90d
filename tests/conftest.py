"""Fixtures that every test may use."""

from __future__ import annotations

import os

import pytest
import torch

# shap would compile its loops in every process, which takes longer than the loops of small tests.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a developer's own settings out of the tests."""
    for name in (
        "XAIHUB_LOAD_PLUGINS",
        "XAIHUB_STRICT_PLUGINS",
        "XAIHUB_TRACE_PLUGINS",
        "XAIHUB_TRUST_PATHS",
        "XAIHUB_ZOO",
    ):
        monkeypatch.delenv(name, raising=False)
