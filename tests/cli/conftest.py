"""A command line under test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from xaihub import sample_photo
from xaihub.cli import cli

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run `xaihub ARGS` in an empty folder; one thread, no colour, a fixed width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def invoke(*args: str, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(cli, list(args), input=stdin, prog_name="xaihub")

    return invoke


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    """A small copy of the sample photo."""
    path = tmp_path / "cat.png"
    with Image.open(sample_photo()) as image:
        image.resize((225, 150)).save(path)
    return path
