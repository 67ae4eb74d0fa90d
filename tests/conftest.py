"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os

import pytest
import torch

# shap would compile its loops in every process, which takes longer than the loops of small tests.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
torch.set_num_threads(1)
# Collecting garbage would walk through the libraries' many objects again and again, also while they are imported.
gc.set_threshold(20_000, 20, 20)


def pytest_collection_finish() -> None:
    gc.freeze()


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
