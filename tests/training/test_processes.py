"""Runs that are killed, and runs that several processes share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from xaihub.training.loop.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@pytest.fixture(scope="module", params=[2, pytest.param(10, marks=pytest.mark.slow)], ids="{} kills".format)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A folder with the runs that `processes` makes."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "tests.training.processes", str(folder), str(images), str(request.param)]
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "plugins", "zoo"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "weights.safetensors")
    return found


def test_a_run_killed_several_times_ends_like_an_undisturbed_one_bit_for_bit(runs: Path) -> None:
    killed, undisturbed = runs / "killed", runs / "undisturbed"

    one, other = weights(killed), weights(undisturbed)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    ends = [Checkpoint.load(folder / "checkpoint.safetensors") for folder in (killed, undisturbed)]
    for kind in ("model", "ema", "optimizer", "best"):
        tables = [end.tensors[kind] for end in ends]
        assert tables[0].keys() == tables[1].keys()
        assert [name for name in tables[0] if not torch.equal(tables[0][name], tables[1][name])] == []
    records = [
        [
            {key: value for key, value in record.items() if key != "seconds"}
            for record in end.state["progress"]["history"]
        ]
        for end in ends
    ]
    assert records[0] == records[1]
    assert ends[0].state["objective"] == ends[1].state["objective"]


def test_two_processes_learn_what_one_learns(runs: Path) -> None:
    one, two = weights(runs / "one"), weights(runs / "two")
    # Batches of seven rows: one process has four of them, the other three.
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6
    histories = [
        Checkpoint.load(runs / name / "checkpoint.safetensors").state["progress"]["history"] for name in ("one", "two")
    ]
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert abs(histories[0][0][name] - histories[1][0][name]) < 1e-5
