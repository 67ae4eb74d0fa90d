"""`xaihub train`: from images to a model that the other commands take."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import Result
from PIL import Image

from xaihub.training.config import Config
from xaihub.training.loop.trainer import Trainer

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
    *epochs, best, then = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert re.fullmatch(
        r"epoch 1/2: training cross_entropy [\d.]+; validation cross_entropy [\d.]+, accuracy [\d.]+,"
        r" balanced [\d.]+; [\d.]+ s",
        epochs[0],
    )
    assert re.fullmatch(
        r"best epoch [12] of 2: accuracy [\d.]+, balanced [\d.]+; lowest of a class: [\d.]+ \((red|blue)\)", best
    )
    assert then == "explain an image with: xaihub explain IMAGE -m run/card.yaml"

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
    assert again.stderr.splitlines() == [
        "the run has completed its 2 epochs; train on with: xaihub train --resume run --epochs 4"
    ]
    assert (tmp_path / "run/weights.safetensors").exists()
    assert written > 0


def test_the_plan_is_kept_beside_the_result(run: Run, photos: Path, tmp_path: Path) -> None:
    run("train", str(photos), *SMALL, "-p", "smoothing=0.1", "--seed", "5", "-o", "run")
    plan = yaml.safe_load((tmp_path / "run/config.yaml").read_text(encoding="utf-8"))
    assert (plan["data"], plan["seed"], plan["parameters"]) == (str(photos), 5, {"smoothing": "0.1"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 2\nepoch: 3\n", "line 2 at 'epoch': there is no setting 'epoch' (did you mean 'epochs'"),
        ("lr: 1e-3\nema: 3\n", "plan 'plan.yaml', line 2 at 'ema': parameter 'ema' of the plan cannot be 3"),
        ("- epochs\n", "expected names with values, not list"),
        ("data: !!python/name:os.system\n", "plan 'plan.yaml', line 1"),
    ],
)  # fmt: skip
def test_a_file_of_settings_that_is_wrong_is_refused(run: Run, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    done = run("train", "digits", "--config", "plan.yaml", "-o", "run")
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_options_override_a_file_and_set_overrides_both(run: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(
        f"data: {photos}\nmodel: test_resnet\nscratch: true\nsize: 32\nepochs: 5\nlr: 0.5\nbatch_size: 8\n"
        "clip: 3\nema: 0.9\nparameters: {smoothing: 0.2}\n"
    )
    done = run("train", "--config", "plan.yaml", "--epochs", "1", "--lr", "1e-4", "--set", "clip=2",
               "--set", "ema=none", "-o", "run", "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    plan = yaml.safe_load((tmp_path / "run/config.yaml").read_text(encoding="utf-8"))
    assert (plan["epochs"], plan["lr"], plan["clip"], plan["ema"]) == (1, 1e-4, 2.0, None)
    assert (plan["parameters"], plan["size"], plan["model"]) == ({"smoothing": 0.2}, 32, "test_resnet")
    again = run("train", "--config", "run/config.yaml", "-o", "again", "--device", "cpu")
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "again/weights.safetensors").read_bytes() == (tmp_path / "run/weights.safetensors").read_bytes()


def test_ctrl_c_prints_how_to_continue(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_close_epoch", interrupted)
        stopped = run("train", str(photos), *SMALL, "-o", "run")
    assert stopped.exit_code == 130
    assert stopped.stderr.split("\n")[0] == "interrupted; continue with: xaihub train --resume run"
    resumed = run("train", "--resume", "run", "--device", "cpu")
    assert resumed.exit_code == 0, resumed.stderr


def test_a_run_can_be_extended(run: Run, photos: Path, tmp_path: Path) -> None:
    run("train", str(photos), *SMALL, "-o", "run")
    longer = run("train", "--resume", "run", "--epochs", "3", "--device", "cpu", "--json")
    assert longer.exit_code == 0, longer.stderr
    assert [record["epoch"] for record in json.loads(longer.stdout)["history"]] == [1, 2, 3]
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["epochs"] == 3
    shorter = run("train", "--resume", "run", "--epochs", "2", "--device", "cpu")
    assert shorter.exit_code == 2
    assert "the run has completed 3 epochs, so it cannot end after 2" in shorter.stderr


def test_the_baseline_is_trained_as_well(run: Run, photos: Path, tmp_path: Path) -> None:
    done = run("train", str(photos), *SMALL, "--size", "96", "--epochs", "1",
               "--objective", "shapley", "-p", "lambda=1", "--compare", "--val", "0.34", "-o", "run")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["figure", "baseline", "shapley"]
    assert [line.split("  ")[0].strip() for line in lines[1:6]] == [
        "accuracy", "balanced accuracy", "calibration error", "gradcam deletion", "gradcam insertion"]  # fmt: skip
    assert all(re.search(r"  [\d.e+-]+ +[\d.e+-]+$", line) for line in lines[1:6])
    assert lines[-1] == "run/card.yaml"
    plans = [yaml.safe_load((tmp_path / f"{name}/config.yaml").read_text()) for name in ("run", "run/baseline")]
    changed = {name for name in plans[0] if plans[0][name] != plans[1][name]}
    assert changed == {"objective", "parameters"}
    assert (tmp_path / "run/baseline/weights.safetensors").exists()


def test_evaluating_on_labelled_images_gives_the_models_accuracy(run: Run, photos: Path) -> None:
    trained = run("train", str(photos), *SMALL, "--val", "0.34", "--held-out", "held", "-o", "run", "--json")
    expected = json.loads(trained.stdout)["best"]["val_accuracy"]
    arguments = ("-m", "run/card.yaml", "-e", "gradcam", "-k", "sparseness", "--no-controls", "--device", "cpu")
    scored = run("evaluate", "held/images", "--labels", "held/labels.csv", *arguments, "-o", "scores", "--json")
    assert scored.exit_code == 0, scored.stderr
    (board,) = json.loads(scored.stdout)["boards"]
    assert (board["accuracy"], board["labelled"]) == (expected, 4)
    again = run("evaluate", "--resume", "scores")
    assert again.stdout.startswith(f"run, 4 images, accuracy {expected:.3f} on 4 labelled images\n")
    plain = run("evaluate", "held/images", *arguments, "-o", "unlabelled", "--json")
    assert json.loads(plain.stdout)["boards"][0]["accuracy"] is None


def test_help_has_examples_and_every_option_is_explained(run: Run) -> None:
    done = run("train", "--help")
    assert done.exit_code == 0
    for text in ("Examples:", "--objective", "--freeze", "--resume", "--dry-run", *Config.__struct_fields__[2:]):
        assert text in done.stdout or f"--{text.replace('_', '-')}" in done.stdout or text == "parameters"
    assert len(done.stdout.splitlines()) < 70  # the options that few need are settings


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
        (("--resume", "run", "--set", "ema=0.9"), 2, "remove --set"),
        (("--resume", "run", "--freeze"), 2, "remove --freeze"),
        (("digits", "--no-augment", "-o", "run"), 2, "there is no option --no-augment; use --set augment=false"),
        (("digits", "--ema", "0.9", "-o", "run"), 2, "there is no option --ema; use --set ema=VALUE"),
        (("digits", "--set", "emma=0.9", "-o", "run"), 2, "has no parameter 'emma' (did you mean 'ema'"),
        (("digits", "--set", "ema=2", "-o", "run"), 2, "parameter 'ema' of the plan cannot be '2'"),
        (("digits", "--set", "freeze_norm", "-o", "run"), 2, "'freeze_norm' is not NAME=VALUE"),
        (("digits", "--set", "randaugment=strong", "-o", "run"), 2, "randaugment cannot be 'strong'"),
        (("digits", "--freeze", "--set", "layer_decay=0.7", "-o", "run"), 2, "--freeze cannot be combined with"),
        (("digits", "--set", "mixup=0.2", "--objective", "shapley", "-o", "run"), 2, "needs one class per image"),
        (("digits", "--set", "logger=wandb", "-o", "run"), 1, "logger=wandb needs 'wandb', which is not installed"),
        (("digits", "--config", "gone.yaml", "-o", "run"), 2, "plan 'gone.yaml'"),
        (("digits", "--compare", "-o", "run"), 2, "--compare trains cross_entropy as well"),
        (("digits", "--compare", "--dry-run"), 2, "remove --compare"),
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

    skipped = run("train", "copy", *SMALL, "--set", "skip_unreadable=true", "-o", "run")
    assert skipped.exit_code == 0, skipped.stderr
    assert "note: 1 unreadable images skipped" in skipped.stderr

    for path in (tmp_path / "copy/blue").iterdir():
        path.unlink()
    empty = run("train", "copy", *SMALL, "-o", "other")
    assert "class 'blue' of" in empty.stderr
    assert "has no image" in empty.stderr
    (tmp_path / "copy/blue").rmdir()
    assert "has 1 class, 'red'" in run("train", "copy", *SMALL, "-o", "other").stderr
