"""`xaihub train`: from images to a model that the other commands take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import Result
from PIL import Image

Run = Callable[..., Result]
SMALL = ("-m", "test_resnet", "--scratch", "--size", "32", "--epochs", "2", "--batch-size", "8", "--device", "cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six images each."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        (folder / name).mkdir()
        for index in range(6):
            pixels = random.integers(0, 120, (40, 40, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def test_the_result_is_a_model_like_any_other(run: Run, photos: Path) -> None:
    done = run("train", str(photos), *SMALL, "-o", "run")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "run/card.yaml\n"
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["epoch 1/2", "epoch 2/2"]

    image = str(photos / "red/0.png")
    explained = run("explain", image, "-m", "run/card.yaml", "-e", "gradcam", "--json")
    assert explained.exit_code == 0, explained.stderr
    (record,) = json.loads(explained.stdout)
    assert record["target"]["name"] in ("red", "blue")

    before = run("train", str(photos), *SMALL[:-4], "--epochs", "1", "--lr", "1e-12", "-o", "before", "-q")
    assert before.exit_code == 0, before.stderr
    judged = run("evaluate", str(photos / "red"), "-m", "before/card.yaml", "-m", "run/card.yaml", "-e", "gradcam",
                 "-k", "sparseness", "--limit", "2", "--no-controls", "-o", "compared", "--json")  # fmt: skip
    assert judged.exit_code == 0, judged.stderr
    assert len(json.loads(judged.stdout)["boards"]) == 2


def test_a_dry_run_says_what_would_be_done_and_stores_nothing(run: Run, photos: Path, tmp_path: Path) -> None:
    done = run("train", str(photos), *SMALL, "--val", "0.34", "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert f"{photos}: 8 images for training, 4 held out" in done.stdout
    assert "2: blue, red" in done.stdout
    assert "cross_entropy: 1 rows per image" in done.stdout
    assert "steps       2," in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_as_json(run: Run, photos: Path) -> None:
    record = json.loads(run("train", str(photos), *SMALL, "--dry-run", "--json").stdout)
    assert (record["train"], record["held_out"], record["steps"], record["rows_per_image"]) == (10, 2, 2, 1.0)
    assert record["classes"] == ["blue", "red"]


def test_a_finished_run_is_not_trained_again(run: Run, photos: Path, tmp_path: Path) -> None:
    first = run("train", str(photos), *SMALL, "-o", "run", "--json")
    written = (tmp_path / "run/checkpoint.safetensors").stat().st_mtime_ns
    again = run("train", "--resume", "run", "--device", "cpu", "--json")

    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["history"] == json.loads(first.stdout)["history"]
    assert again.stderr == ""
    assert (tmp_path / "run/weights.safetensors").exists()
    assert written > 0


def test_the_plan_is_kept_beside_the_result(run: Run, photos: Path, tmp_path: Path) -> None:
    run("train", str(photos), *SMALL, "-p", "smoothing=0.1", "--seed", "5", "-o", "run")
    plan = yaml.safe_load((tmp_path / "run/config.yaml").read_text(encoding="utf-8"))
    assert (plan["data"], plan["seed"], plan["parameters"]) == (str(photos), 5, {"smoothing": "0.1"})


def test_help_has_examples_and_every_option_is_explained(run: Run) -> None:
    done = run("train", "--help")
    assert done.exit_code == 0
    for text in ("Examples:", "--objective", "--freeze", "--resume", "--dry-run"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "no data to train on"),
        (("nowhere", "-o", "run"), 1, "there are no data 'nowhere'"),
        (("digits",), 2, "no output folder for the run; add -o FOLDER"),
        (("digits", "--objective", "cross_entropie", "-o", "run"), 2, "did you mean 'cross_entropy'?"),
        (("digits", "-p", "smooth=1", "-o", "run"), 2, "cross_entropy has no parameter 'smooth'"),
        (("digits", "-p", "smoothing=1.5", "-o", "run"), 2, "parameter 'smoothing' of cross_entropy cannot be '1.5'"),
        (("digits", "-m", "resnet5", "-o", "run"), 2, "no model is named 'resnet5'"),
        (("digits", "--val", "2", "-o", "run"), 2, "'val' cannot be 2.0"),
        (("digits", "--device", "cuda:9", "-o", "run"), 1, "device 'cuda:9' is not available here"),
        (("--resume", "nowhere"), 1, "there is no run in 'nowhere'"),
        (("--resume", "run", "--lr", "1"), 2, "remove --lr"),
        (("digits", "--resume", "run"), 2, "remove DATA"),
        (("--resume", "run", "-p", "smoothing=0.1"), 2, "remove --param"),
        (("--resume", "run", "-o", "other"), 2, "remove --output"),
        (("--resume", "run", "--no-augment"), 2, "remove --augment"),
    ],
)
def test_wrong_input_is_one_clear_line(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = run("train", *arguments)
    assert done.exit_code == code, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bad_images_are_refused_before_anything_is_written(run: Run, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "copy")
    (tmp_path / "copy/red/3.png").write_bytes(b"no image")
    refused = run("train", "copy", *SMALL, "-o", "run")
    assert refused.exit_code == 1
    assert "3.png' is not an image" in refused.stderr
    assert not (tmp_path / "run").exists()

    skipped = run("train", "copy", *SMALL, "--skip-unreadable", "-o", "run")
    assert skipped.exit_code == 0, skipped.stderr
    assert "note: 1 unreadable images skipped" in skipped.stderr

    for path in (tmp_path / "copy/blue").iterdir():
        path.unlink()
    empty = run("train", "copy", *SMALL, "-o", "other")
    assert "class 'blue' of" in empty.stderr
    assert "has no image" in empty.stderr
    (tmp_path / "copy/blue").rmdir()
    assert "has 1 class, 'red'" in run("train", "copy", *SMALL, "-o", "other").stderr
