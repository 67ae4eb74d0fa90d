"""`xaihub evaluate`, `export` and `merge` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

Run = Callable[..., Result]
SMALL = ("-e", "gradcam", "-k", "insertion", "-k", "sparseness", "-p", "insertion.steps=4", "-q")


@pytest.fixture
def photos(tmp_path: Path, cat: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open(cat) as image:
        image.save(folder / "a.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "b.png")
    return folder


def test_a_run_prints_a_board_and_leaves_a_store(run: Run, photos: Path) -> None:
    result = run("evaluate", "photos", *SMALL, "-o", "runs/first")
    assert result.exit_code == 0, result.stderr
    assert "efficientnet_lite0, 2 images" in result.stdout
    assert "gradcam" in result.stdout
    assert "control_random" in result.stdout
    assert Path("runs/first/run.sqlite").is_file()
    assert list(Path("runs/first/charts").glob("*.png"))


def test_resuming_adds_and_repeats_nothing(run: Run, photos: Path) -> None:
    first = json.loads(run("evaluate", "photos", *SMALL, "--no-controls", "-o", "runs/first", "--json").stdout)
    assert first["totals"]["scores"] == 4
    second = json.loads(run("evaluate", "--resume", "runs/first", "-e", "saliency", "--json").stdout)
    assert second["totals"]["scores"] == 4
    assert second["totals"]["kept"] == 4
    third = json.loads(run("evaluate", "--resume", "runs/first", "--json").stdout)
    assert third["totals"]["scores"] == third["totals"]["forward_passes"] == 0


def test_a_file_says_the_same_as_options(run: Run, photos: Path) -> None:
    Path("bench.yaml").write_text(
        "images: [photos]\nexplainers: [gradcam]\ncontrols: false\noutput: runs/file\n"
        "metrics:\n  - {name: insertion, params: {steps: 4}}\n  - sparseness\n"
    )
    from_file = json.loads(run("evaluate", "--config", "bench.yaml", "--json", "-q").stdout)
    from_options = json.loads(run("evaluate", "photos", *SMALL, "--no-controls", "-o", "runs/options", "--json").stdout)
    assert from_file["boards"] == from_options["boards"]


def test_a_dry_run_prints_the_cost_and_stores_nothing(run: Run, photos: Path) -> None:
    result = run("evaluate", "photos", *SMALL, "--no-controls", "-o", "runs/first", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "2 images, 1 explainers, 2 metrics, 1 models: about" in result.stdout
    assert not Path("runs").exists()


def test_export_and_merge(run: Run, photos: Path) -> None:
    run("evaluate", "photos/a.png", *SMALL, "--no-controls", "-o", "runs/a")
    run("evaluate", "photos/b.png", *SMALL, "--no-controls", "-o", "runs/b")
    assert run("merge", "runs/a", "runs/b", "-o", "runs/ab").exit_code == 0
    lines = run("export", "runs/ab", "--format", "csv").stdout.splitlines()
    assert lines[0].startswith("image,model,explainer")
    assert len(lines) == 1 + 4
    resumed = json.loads(run("evaluate", "--resume", "runs/ab", "--json").stdout)
    assert resumed["totals"]["kept"] == 4


def test_a_run_of_relative_paths_is_resumed_from_any_folder(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("labels.csv").write_text("file,class_index\na.png,281\nb.png,282\n")
    Path("bench.yaml").write_text(
        "images: [photos]\nlabels: labels.csv\nexplainers: [gradcam]\nmetrics: [sparseness]\n"
    )
    assert run("evaluate", "--config", "bench.yaml", "--no-controls", "-o", "first", "-q").exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resumed = json.loads(run("evaluate", "--resume", "../first", "--json").stdout)
    assert (resumed["totals"]["kept"], resumed["totals"]["scores"]) == (2, 0)


def test_the_reasons_of_failures_are_told_once(run: Run, photos: Path) -> None:
    result = run("evaluate", "photos", "-e", "gradcam", "-k", "grid_pointing", "--no-controls", "-o", "r", "-q")
    assert result.exit_code == 1
    told = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert "grid_pointing" in told[0]
    assert "(2 maps, the first of " in told[0]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("photos", "-k", "insertion"), 2, "no output folder for the run"),
        ((), 2, "no images to evaluate on"),
        (("photos", "-k", "insertio", "-o", "r"), 2, "did you mean 'insertion'"),
        (("photos", "-m", "efficientnet_lite", "-o", "r"), 2, "no model is named 'efficientnet_lite'"),
        (("photos", "-t", "tabbi", "-e", "gradcam", "-o", "r"), 1, "no class is named 'tabbi'"),
        (("photos", "-p", "rise.baseline=purple", "-e", "rise", "-o", "r"), 2, "no baseline is named 'purple'"),
        (("photos", "-k", "pointing_game", "-o", "r"), 2, "needs masks or boxes"),
        (
            ("photos", "-p", "rise.masks=3", "-e", "gradcam", "-k", "insertion", "-o", "r"),
            2,
            "nothing named 'rise' is selected",
        ),
        (("photos", "--seed", "99999999999999999999", "-o", "r"), 2, "is not a 64-bit integer"),
        (("--resume", "nowhere"), 1, "there is no run in 'nowhere'"),
        (("photos", "--only-missing", "-o", "r"), 2, "requires --resume"),
        (("photos", "-k", "insertion", "-o", "photos/a.png"), 1, "cannot write"),
    ],
)
def test_wrong_usage_is_one_line_and_leaves_nothing(
    run: Run, photos: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    result = run("evaluate", *arguments)
    assert result.exit_code == code
    assert len(result.stderr.strip().splitlines()) == 1
    assert says in result.stderr
    assert not Path("r").exists()
