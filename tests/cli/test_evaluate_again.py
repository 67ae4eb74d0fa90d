"""Runs that are killed, resumed with something changed, merged: nothing lost, nothing twice, nothing mixed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from tests.forked import started
from xaihub.cli import cli
from xaihub.evaluation.store import RunStore

Run = Callable[..., Result]

TOYS = '''
import os
import time

import torch
from torch import nn

from xaihub import Explainer, Metric, MetricRefused, Model, ModelAdapter, Preprocessing


class ToyAdapter(ModelAdapter):
    """Offers "toy", a small network with fixed weights."""

    def knows(self, name):
        return name == "toy"

    def build(self, request, device):
        generator = torch.Generator().manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        for weight in module.parameters():
            weight.data = torch.randn(weight.shape, generator=generator)
        preprocessing = Preprocessing(
            spatial=[lambda image: image.resize((16, 16))], size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3
        )
        return Model(module, name="toy", preprocessing=preprocessing, classes=("a", "b", "c"), device=device)


class ToyNoise(Explainer):
    """Noise."""

    stochastic = True

    def attribute(self, model, inputs, target):
        return torch.randn(len(inputs), 1, *inputs.shape[2:])


class MapMean(Metric):
    """The mean of the map; slow enough to be killed in between where TOY_SECONDS says so."""

    def score(self, case):
        time.sleep(float(os.environ.get("TOY_SECONDS", 0)))
        return float(case.heat.mean()) + 0


class TruthShare(Metric):
    """How much of the image is marked."""

    needs_truth = True

    def score(self, case):
        return float(case.scene.truth.float().mean())


class PoolSum(Metric):
    """The sum of the other images."""

    needs_pool = True

    def score(self, case):
        if not len(case.scene.pool):
            raise MetricRefused("there is no other image")
        return float(sum(float(image.double().sum()) for image, _ in case.scene.pool))


class Nosy(Metric):
    """Looks at the other images and does not say so."""

    def score(self, case):
        return float(len(case.scene.pool))


class Peeping(Metric):
    """Looks at the masks and does not say so."""

    def score(self, case):
        return float(case.heat[case.scene.truth].mean())
'''
TOY = ("-m", "toy", "-e", "toy_noise", "--no-controls")


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    file = tmp_path / "toys.py"
    file.write_text(TOYS)
    return file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        add_photo(folder, number)
    return folder


def add_photo(folder: Path, number: int) -> None:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def evaluate(run: Run, toys: Path, photos: Path) -> Callable[..., dict[str, Any]]:
    """Run `xaihub evaluate ... --json` with the toys in this process, and return what it printed."""

    def invoke(*arguments: str, code: int = 0) -> dict[str, Any]:
        result = run("--plugin", str(toys), "evaluate", *arguments, "--timeout", "0", "--json", "-q")
        assert result.exit_code == code, result.stderr
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    return invoke


def scores(folder: str | Path, *metrics: str) -> dict[tuple[str, str, str], float | None]:
    """Return the shown values; fails where an image has two."""
    with RunStore(folder) as store:
        rows = [row for row in store.rows() if not metrics or row.metric in metrics]
    found = {(Path(row.image).name, row.explainer, row.metric): row.value for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize(
    "options",
    [("--timeout", "0"), *(pytest.param(some, marks=pytest.mark.slow) for some in ((), ("--jobs", "2")))],
    ids=" ".join,
)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_command_that_is_killed_and_resumed_ends_with_the_rows_of_an_undisturbed_one(
    evaluate: Callable[..., dict[str, Any]],
    toys: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    status: int,
    options: tuple[str, ...],
) -> None:
    for photo in range(4, 12):
        add_photo(photos, photo)
    wanted = ("photos", "-m", "toy", "-e", "toy_noise", "-k", "map_mean", "-k", "pool_sum")
    whole = evaluate(*wanted, "-o", "whole")
    command = ["--plugin", str(toys), "evaluate", *wanted, "-o", "killed", "-q", *options]
    monkeypatch.setenv("TOY_SECONDS", "0.2")
    with started(lambda: cli(command), output=tmp_path / "printed") as process:
        wait_for_rows(Path("killed"), process)
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(600)
        assert process.exitcode == status
    monkeypatch.delenv("TOY_SECONDS")

    before = len(scores("killed"))
    assert 0 < before < whole["totals"]["scores"]
    resumed = evaluate("--resume", "killed")
    assert resumed["totals"]["kept"] == before
    assert resumed["totals"]["scores"] == whole["totals"]["scores"] - before
    assert scores("killed") == scores("whole")
    assert evaluate("--resume", "killed")["totals"]["scores"] == 0


def wait_for_rows(folder: Path, process: BaseProcess) -> None:
    deadline = time.monotonic() + 600
    while not (folder / "run.sqlite").is_file() or not stored(folder):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def stored(folder: Path) -> int:
    try:
        return len(scores(folder))
    except Exception:  # the tables are not there yet
        return 0


def masks(folder: Path, share: float) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(4):
        mask = Image.new("L", (24, 20))
        mask.paste(255, (0, 0, round(24 * share), 20))
        mask.save(folder / f"{number}.png")


def test_other_masks_measure_anew_what_looks_at_them_and_nothing_else(evaluate: Callable[..., dict[str, Any]]) -> None:
    masks(Path("left"), 0.5)
    masks(Path("all"), 1)
    metrics = ("-k", "truth_share", "-k", "map_mean")
    first = evaluate("photos", *TOY, *metrics, "--masks", "left", "-o", "r")
    assert first["totals"]["scores"] == 8
    assert set(scores("r", "truth_share").values()) == {0.5}

    second = evaluate("--resume", "r", "--masks", "all")
    assert (second["totals"]["scores"], second["totals"]["kept"], second["totals"]["explanations"]) == (4, 4, 0)
    assert set(scores("r", "truth_share").values()) == {1.0}
    (row,) = [row for row in second["boards"][0]["rows"] if row["metric"] == "truth_share"]
    assert (row["mean"], row["count"]) == (1.0, 4)

    masks(Path("all"), 0.5)  # the same folder with other contents
    assert evaluate("--resume", "r")["totals"]["scores"] == 0  # known from the first run
    assert set(scores("r", "truth_share").values()) == {0.5}


def test_boxes_are_compared_by_their_numbers(evaluate: Callable[..., dict[str, Any]]) -> None:
    for name, right in (("half", 11), ("same", 11), ("most", 17)):
        rows = "".join(f"{number}.png,0,0,{right},19\n" for number in range(4))
        Path(f"{name}.csv").write_text("file,left,top,right,bottom\n" + rows)
    evaluate("photos", *TOY, "-k", "truth_share", "--boxes", "half.csv", "-o", "r")
    assert evaluate("--resume", "r", "--boxes", "same.csv")["totals"]["scores"] == 0
    assert evaluate("--resume", "r", "--boxes", "most.csv")["totals"]["scores"] == 4


def test_more_photos_measure_anew_what_looks_at_the_others(
    evaluate: Callable[..., dict[str, Any]], photos: Path
) -> None:
    metrics = ("-k", "pool_sum", "-k", "map_mean")
    evaluate("photos", *TOY, *metrics, "-o", "r")
    add_photo(photos, 4)
    again = evaluate("--resume", "r")
    assert (again["totals"]["scores"], again["totals"]["kept"], again["totals"]["explanations"]) == (5 + 1, 4, 1)
    evaluate("photos", *TOY, *metrics, "-o", "whole")
    assert scores("r") == scores("whole")


def test_until_it_is_measured_anew_an_outdated_score_is_not_shown(
    evaluate: Callable[..., dict[str, Any]], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate("photos", *TOY, "-k", "pool_sum", "-k", "map_mean", "-o", "r")
    add_photo(photos, 4)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("xaihub.evaluation.run.Run.work", stop)
        with pytest.raises(AssertionError):
            evaluate("--resume", "r")
    assert {metric for _, _, metric in scores("r")} == {"map_mean"}


def test_a_metric_whose_file_was_edited_is_measured_anew(evaluate: Callable[..., dict[str, Any]], toys: Path) -> None:
    evaluate("photos", *TOY, "-k", "map_mean", "-o", "r")
    before = scores("r")
    toys.write_text(TOYS.replace("case.heat.mean()) + 0", "case.heat.mean()) + 1"))
    for name in [name for name in sys.modules if name.startswith("xaihub_file_toys")]:
        del sys.modules[name]  # as a new process would
    evaluate("--resume", "r")
    assert scores("r") == {key: pytest.approx(value + 1) for key, value in before.items() if value is not None}


def test_another_seed_shows_its_own_rows_only_and_going_back_shows_the_first(
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    evaluate("photos", *TOY, "-k", "map_mean", "-o", "r")
    first = scores("r")
    other = evaluate("--resume", "r", "--seed", "1")
    assert other["totals"]["scores"] == len(scores("r")) == 4
    assert scores("r") != first
    back = evaluate("--resume", "r", "--seed", "0")
    assert back["totals"]["scores"] == back["totals"]["explanations"] == 0
    assert scores("r") == first


def test_a_photo_that_is_there_twice_settles(evaluate: Callable[..., dict[str, Any]], photos: Path) -> None:
    (photos / "3b.png").write_bytes((photos / "3.png").read_bytes())
    evaluate("photos", *TOY, "-k", "pool_sum", "-o", "r")
    assert len(scores("r")) == 4
    assert evaluate("--resume", "r")["totals"]["scores"] == 0
    (photos / "0a.png").write_bytes((photos / "3.png").read_bytes())  # now the first of the three
    evaluate("--resume", "r")
    assert {name for name, _, _ in scores("r")} == {"0.png", "0a.png", "1.png", "2.png"}
    assert evaluate("--resume", "r")["totals"]["scores"] == 0


@pytest.mark.parametrize(("metric", "what"), [("nosy", "pool"), ("peeping", "truth")])
def test_a_metric_that_looks_at_what_it_does_not_declare_is_refused(
    evaluate: Callable[..., dict[str, Any]], metric: str, what: str
) -> None:
    evaluate("photos", *TOY, "-k", metric, "-o", "r", code=1)
    with RunStore("r") as store:
        (reason,) = {row.error for row in store.rows()}
    assert reason == f"{metric} reads scene.{what} without declaring it (write needs_{what} = True in its class)"


def test_merged_runs_of_other_photos_are_completed_by_resuming(
    evaluate: Callable[..., dict[str, Any]], run: Run
) -> None:
    metrics = ("-k", "pool_sum", "-k", "map_mean")
    evaluate("photos", *TOY, *metrics, "-o", "whole")
    evaluate("photos/0.png", "photos/1.png", *TOY, *metrics, "-o", "a")
    evaluate("photos/2.png", "photos/3.png", *TOY, *metrics, "-o", "b")
    merged = run("merge", "a", "b", "-o", "ab")
    assert "note: 4 conflicting scores are hidden" in merged.stderr
    assert "xaihub evaluate --resume ab" in merged.stderr
    assert len(scores("ab")) == 4
    assert evaluate("--resume", "ab")["totals"]["explanations"] == 0
    assert scores("ab") == scores("whole")


@pytest.mark.parametrize("form", ["json", "csv", "parquet"])
@pytest.mark.parametrize(("images", "expected"), [("photos", 5), ("photos/broken.png", 1)])
def test_an_image_that_failed_is_in_every_export_with_its_reason(
    evaluate: Callable[..., dict[str, Any]], run: Run, photos: Path, form: str, images: str, expected: int
) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    (photos / "broken.png").write_text("no image")
    evaluate(images, *TOY, "-k", "map_mean", "-o", "r", code=1)
    assert run("export", "r", "--format", form, "-o", "out").exit_code == 0
    readers = {"json": pandas.read_json, "csv": pandas.read_csv, "parquet": pandas.read_parquet}
    rows = readers[form]("out")
    assert len(rows) == expected
    (failed,) = rows[rows["metric"].isna()].to_dict("records")
    assert Path(failed["image"]).name == "broken.png"
    assert "is not an image" in failed["error"]
    assert set(rows["target"].dropna()) <= {0, 1, 2}


def test_a_dry_run_names_what_it_could_not_count(
    run: Run, toys: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xaihub.evaluation.isolation.SUPPORTED", False)  # without starting a process for the toys
    arguments = ("photos/0.png", *TOY, "-k", "pool_sum", "-k", "map_mean", "--dry-run")
    result = run("--plugin", str(toys), "evaluate", *arguments)
    assert result.exit_code == 0, result.stderr
    assert "pool_sum" not in result.stdout
    assert "map_mean of toy_noise" in result.stdout
    assert "note: pool_sum is not included: there is no other image" in result.stderr
    assert json.loads(run("--plugin", str(toys), "evaluate", *arguments, "--json").stdout)["not_counted"] == {
        "pool_sum": "there is no other image"
    }
