"""`xaihub explain --jobs`: several images at once, with the results of one after the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xaihub import get_explainer, sample_photo
from xaihub.api import jobs
from xaihub.api.check import Check
from xaihub.api.explain import Outcome
from xaihub.evaluation.engine import Engine, Lost, Start
from xaihub.testing import tiny_cnn

from .conftest import Run

MODEL = "from xaihub.testing import tiny_cnn\ndef build(): return tiny_cnn()\n"
FRAGILE = """
import os
import xaihub

class Fragile(xaihub.Explainer):
    '''Ends the process for a dark image, refuses a bright one.'''

    def attribute(self, model, inputs, target):
        if inputs.mean() < -1.5:
            os._exit(7)
        if inputs.mean() > 1.5:
            raise xaihub.errors.ExplainerRefused("it is too bright")
        return inputs
"""
COMMAND = "explain photos -m model.py:build -e rise -p masks=20 -e control_random -o out --json -q"


class Backwards(Engine):
    """Works here, in batches whose answers come last first; loses the images whose names begin with "lost"."""

    def run(self, start: Start, tasks: Iterable[bytes]) -> Generator[tuple[bytes, bytes | Lost]]:
        do = start()
        for task in reversed(list(tasks)):
            yield task, Lost("crashed") if b"/lost" in task else do(task)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL, "utf-8")
    (tmp_path / "fragile.py").write_text(FRAGILE, "utf-8")
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def results(text: str) -> list[dict[str, Any]]:
    """The records, without times."""
    return [{name: value for name, value in one.items() if name != "seconds"} for one in json.loads(text)]


def test_the_results_are_those_of_one_after_the_other(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "1.5.png").write_bytes(b"not an image")
    alone = run(*COMMAND.split(), "--html")
    files = {path.name: path.read_bytes() for path in Path("out").glob("*.safetensors")}
    page = Path("out/1.html").read_text("utf-8")
    for path in Path("out").iterdir():
        path.unlink()
    monkeypatch.setattr(jobs, "LocalEngine", Backwards)
    together = run(*COMMAND.split(), "--html", "--jobs", "3")
    assert results(together.stdout) == results(alone.stdout)
    assert together.exit_code == alone.exit_code == 1
    assert together.stderr == alone.stderr
    assert len(files) == 8
    assert {path.name: path.read_bytes() for path in Path("out").glob("*.safetensors")} == files
    assert len(Path("out/1.html").read_text("utf-8")) == pytest.approx(len(page), rel=0.01)


def test_what_ends_a_process_costs_one_image(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "lost.png").write_bytes((photos / "0.png").read_bytes())
    monkeypatch.setattr(jobs, "LocalEngine", Backwards)
    done = run(*COMMAND.split(), "--jobs", "2")
    assert done.exit_code == 1
    found = results(done.stdout)
    assert [Path(one["source"]).name for one in found] == [
        *(f"{n}.png" for n in range(4) for _ in range(2)),
        "lost.png",
    ]
    assert found[-1]["error"] == "lost.png: the process that explained it crashed"
    assert "1 of 9 explanations failed" in done.stderr


def test_a_check_comes_back() -> None:
    check = Check(insertion=0.5, random=(0.1, 0.2), reasons={"randomised": "no weights"})
    explanation = get_explainer("saliency").explain(tiny_cnn(), torch.zeros(1, 3, 32, 32))[0]
    made = Outcome(source=str(sample_photo()), model="m", explainer="saliency", explanation=explanation, check=check)
    (found,) = jobs.unpack_outcomes(made.source, jobs.pack_outcomes([made]), [tiny_cnn()], 1, None)
    assert found.check == check
    assert found.explanation is not None
    assert torch.equal(found.explanation.values, explanation.values)


def test_what_no_image_can_be_explained_with_is_refused_at_once(run: Run, photos: Path) -> None:
    words = "explain photos -m model.py:build -e control_random --jobs 2"
    assert "class 99" in run(*words.split(), "-t", "99").stderr
    assert "workers cannot read standard input" in run(*words.split(), "-").stderr


@pytest.mark.slow
def test_processes_of_their_own(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "black").save(photos / "dark.png")
    Image.new("RGB", (20, 20), "white").save(photos / "light.png")
    command = [
        sys.executable,
        "-m",
        "xaihub",
        "--plugin",
        "fragile.py",
        *COMMAND.split(),
        "-e",
        "fragile",
        "--timeout",
        "0",
    ]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*command, "--jobs", "2"], capture_output=True, cwd=tmp_path, env=environ, check=False)
    found = results(done.stdout.decode())
    errors = {Path(one["source"]).name: one["error"] for one in found if "error" in one}
    assert set(errors) == {"dark.png", "light.png"}
    assert "ended the process with exit status 7" in errors["dark.png"]
    assert "it is too bright" in errors["light.png"]
    assert len(found) == 4 * 3 + 1 + 3

    begun = subprocess.Popen(
        [*command, "--jobs", "2", "-p", "masks=100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=tmp_path, env=environ, start_new_session=True,
    )  # fmt: skip
    time.sleep(15)
    begun.send_signal(signal.SIGINT)
    out, err = begun.communicate(timeout=60)
    assert begun.returncode == 130
    assert err.decode().splitlines()[-1] == "stopped"
    json.loads(out)
