"""`xaihub sweep`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Run = Callable[..., Result]
SMALL = ("-m", "test_resnet", "--scratch", "--size", "32", "--epochs", "2", "--batch-size", "200", "--device", "cpu")


def test_a_sweep_prints_a_table_and_the_value_to_take(run: Run) -> None:
    words = (
        "digits",
        "c=0,0.2",
        "--objective",
        "expo-stability",
        "-p",
        "every=2",
        *SMALL,
        "-o",
        "found",
        "--images",
        "2",
    )
    done = run("sweep", *words, "-e", "saliency", "-k", "saliency_stability", "-q")
    assert done.exit_code == 0, done.stderr
    assert "| saliency saliency_stability | " in done.stdout
    assert "Recommended: **c=0" in done.stdout
    assert "found/before-after-1.png" in done.stdout

    again = run("sweep", *words, "-e", "saliency", "-q", "--json")
    assert [trial["value"] for trial in json.loads(again.stdout)["trials"]] == ["0", "0.2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["c=1"], "two or more different values"),
        (["smooth=0,1"], "no parameter 'smooth'"),
        (["smoothing=0,0.1", "-k", "nosuch"], "no metric is named 'nosuch'"),
        (["smoothing=0,0.1", "-e", "nosuch"], "no explainer is named 'nosuch'"),
        (["smoothing=0,0.1", "--dry-run"], "No such option"),
        ([], "Missing argument 'NAME=V1,V2,...'"),
    ],
)
def test_wrong_input_is_one_clear_line(run: Run, words: list[str], said: str, tmp_path: Path) -> None:
    done = run("sweep", "digits", *words, *SMALL, "-o", "run")

    assert done.exit_code != 0
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not Path("run").exists()
