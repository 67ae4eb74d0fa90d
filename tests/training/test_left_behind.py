"""What a run that could not go on leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from xaihub.errors import OutputError, ParameterError
from xaihub.models import saving as checkpoints
from xaihub.training import run as service

Train = Callable[..., service.Outcome]


def test_a_disk_that_is_full_at_the_end_is_one_line_and_the_run_goes_on_from_its_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoints.save_file

    def full(tensors: Any, path: Path, **options: Any) -> None:
        if "weights" in path.name:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(tensors, path, **options)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OutputError, match=r"cannot write '.*weights\.safetensors': No space left on device"):
        train(epochs=1)
    monkeypatch.undo()

    assert not (tmp_path / "run/card.yaml").exists()
    assert train(epochs=1, resume=True).card.exists()


def test_an_objective_that_refuses_leaves_nothing_that_bars_the_next_attempt(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="these images do not suit"):
        train(objective="unready")
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name != ".lock"] == []
    assert train(epochs=1).card.exists()
