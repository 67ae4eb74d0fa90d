"""Fixtures that every test may use."""

from __future__ import annotations

import pytest
import torch

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
