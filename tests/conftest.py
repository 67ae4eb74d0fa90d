"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
import signal
from itertools import count

import click
import pytest
import torch

from docs.outputs import OUTPUTS
from docs.schemas import validate
from xaihub.cli import _defaults, _output

# shap would compile its loops in every process, which takes longer than the loops of small tests.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
torch.set_num_threads(1)
# Collecting garbage would walk through the libraries' many objects again and again, also while they are imported.
gc.set_threshold(20_000, 20, 20)
_numbers = count()


def pytest_configure() -> None:
    """Take Ctrl-C as usual, also where the shell started the tests in the background, which ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _published_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validate whatever a command prints with --json against its published schema."""
    as_json = _output._json

    def checked(record: object) -> str:
        text = as_json(record)
        command = click.get_current_context().command_path.partition(" ")[2]
        if command in OUTPUTS:  # plugins bring further commands
            validate(command, text)
        return text

    monkeypatch.setattr(_output, "_json", checked)


def pytest_collection_finish() -> None:
    gc.freeze()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep a developer's own settings and state out of the tests."""
    monkeypatch.setenv("XAIHUB_STATE", str(tmp_path_factory.getbasetemp() / f"state-{next(_numbers)}"))
    monkeypatch.setenv("XAIHUB_CACHE", str(tmp_path_factory.getbasetemp() / f"cache-{next(_numbers)}"))
    monkeypatch.setenv("XAIHUB_CONFIG", str(tmp_path_factory.getbasetemp() / f"config-{next(_numbers)}"))
    monkeypatch.setenv("XAIHUB_TUNING", "0")  # batch sizes, and so rounding, do not depend on the machine
    for name in (
        "XAIHUB_LOAD_PLUGINS",
        "XAIHUB_STRICT_PLUGINS",
        "XAIHUB_TRACE_PLUGINS",
        "XAIHUB_TRUST_PATHS",
        "XAIHUB_ZOO",
        *map(_defaults.variable, _defaults.KEYS),
    ):
        monkeypatch.delenv(name, raising=False)
