"""`xaihub tune` and `xaihub.tune`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import xaihub
from xaihub.evaluation.search import Cost

from .conftest import Run

MODEL = "from xaihub.testing import tiny_cnn\ndef build(): return tiny_cnn()\n"
SEARCH = "-m model.py:build -e rise -p cell=2,4 -p keep=0.5 -p baseline=zero -p output=probability -p estimator=plain"
QUICK = f"{SEARCH} -p insertion.steps=2 --budget 8 -q"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL, "utf-8")
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_the_search_ends_with_a_command_that_works(run: Run, photos: Path) -> None:
    done = run("tune", "photos", *QUICK.split(), "-o", "out")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "rise on tiny_cnn: 3 settings on 2 development images"
    assert lines[1].split() == ["insertion", "^", "passes", "setting"]
    assert {line.split("  ")[-1].strip() for line in lines[2:5]} == {
        "estimator=plain *",
        "estimator=plain cell=2",
        "estimator=plain cell=4",
    }
    command = shlex.split(lines[-1].replace("IMAGE", "photos/0.png"))
    assert run(*command[1:], "-q").exit_code == 0

    again = run("tune", "photos", *QUICK.split(), "-o", "out", "--json")
    found = json.loads(again.stdout)
    assert found == json.loads(Path("out/tuning.json").read_text("utf-8"))
    assert [one["passes"] for one in found["tried"]] == [8, 8, 8]
    assert found["command"] == lines[-1]
    assert found["verdict"] == lines[-2]


def test_a_dry_run_measures_one_image_and_stores_nothing(run: Run, photos: Path) -> None:
    done = run("tune", "photos", *QUICK.split(), "--dry-run", "-o", "out", "--json")
    cost = json.loads(done.stdout)
    assert (cost["settings"], cost["images"]) == (3, [2, 2])
    assert not Path("out").exists()
    found = xaihub.tune(
        "photos", model="model.py:build", params={"cell": [2, 4], "keep": 0.5, "insertion.steps": 2}, explainer="rise",
        trials=3, budget=8, dry_run=True,
    )  # fmt: skip
    assert isinstance(found, Cost)
    assert found.forward_passes == cost["forward_passes"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("-e rise -e lime", "tune takes one -e, but there are 2: rise, lime"),
        ("-e rise -p cell=0", "parameter 'cell' of rise cannot be '0'"),
        ("-e guided_backprop", "guided_backprop has no parameter to search"),
    ],
)
def test_what_cannot_be_searched_costs_one_line(run: Run, photos: Path, words: str, reason: str) -> None:
    done = run("tune", "photos", *words.split())
    assert done.exit_code != 0
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
