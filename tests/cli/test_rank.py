"""`xaihub rank`, from training to a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from xaihub import GlobalExplanation, Hub, load_image
from xaihub.api.contact_sheet import channel_views
from xaihub.api.rank import Photos, labels_of, rank_models
from xaihub.cli import cli

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos of two colours, and two gated models trained on them from different seeds."""
    folder = tmp_path_factory.mktemp("global")
    generator = np.random.default_rng(0)
    lines = ["file,label"]
    for number in range(12):
        label = ("red", "blue")[number % 2]
        pixels = generator.integers(0, 90, (40, 48, 3), dtype=np.uint8)
        pixels[:, :, (0, 2)[number % 2]] += 150
        file = folder / "photos" / f"{label}_{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(file)
        lines.append(f"{file},{label}")
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    for seed in ("0", "1"):
        done = CliRunner().invoke(
            cli,
            ["train", str(folder / "labels.csv"), "-m", "test_resnet", "--scratch", "--freeze", "--epochs", "3",
             "--objective", "scores_activation", "--lr", "0.01", "--seed", seed, "--device", "cpu", "--quiet",
             "-o", str(folder / f"run{seed}")],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
    return folder


def test_a_trained_gate_is_printed_and_drawn(run: Run, work: Path, tmp_path: Path) -> None:
    result = run("rank", str(work / "photos"), "-m", str(work / "run0" / "card.yaml"), "--top", "4")

    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("scores: channel importance in run0 (96 features)\nrank  name")
    names = {"run0__scores.json", "run0__scores.png", "run0__scores__channels.png"}
    assert {file.name for file in (tmp_path / "xaihub-out").iterdir()} == names
    saved = GlobalExplanation.load(tmp_path / "xaihub-out" / "run0__scores.json")
    assert f"1     {saved.ranking[0].name}" in result.stdout
    assert saved.history is not None
    assert saved.history.shape == (3, 96)
    with Image.open(tmp_path / "xaihub-out" / "run0__scores__channels.png") as sheet:
        assert sheet.height > 4 * 200


def test_without_images_a_gate_is_read_and_estimates_are_refused(run: Run, work: Path) -> None:
    card = str(work / "run0" / "card.yaml")
    result = run("rank", "-m", card, "-e", "scores", "-e", "shap_global", "--json")

    assert result.exit_code == 1
    scores, shap = json.loads(result.stdout)
    assert [Path(file).name for file in scores["files"]] == ["run0__scores.png", "run0__scores.json"]
    assert len(scores["ranking"]) == 96
    assert "give a folder of images" in shap["error"]
    assert "error: shap_global on run0" in result.stderr


def test_three_rankings_come_in_one_form(run: Run, work: Path) -> None:
    names = ["scores", "shap_global", "permutation_importance"]
    result = run(
        "rank", str(work / "photos"), "-m", str(work / "run0" / "card.yaml"),
        *(word for name in names for word in ("-e", name)), "-p", "shap_global.rows=2", "-p", "background=3",
        "-p", "repeats=1", "--labels", str(work / "labels.csv"), "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    records = json.loads(result.stdout)
    assert [record["method"] for record in records] == names
    assert [set(record) for record in records] == [set(records[0])] * 3
    assert records[2]["metadata"]["details"]["labels"] == "given"
    assert records[1]["metadata"]["parameters"]["rows"] == 2


def test_one_ranking_may_be_given_a_file_name(run: Run, work: Path, tmp_path: Path) -> None:
    card = str(work / "run0" / "card.yaml")
    result = run("rank", str(work / "photos"), "-m", card, "-o", "charts/gate.png", "--json")

    assert result.exit_code == 0, result.stderr
    written = ["charts/gate.png", "charts/gate.json", "charts/gate__channels.png"]
    assert json.loads(result.stdout)[0]["files"] == written
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("gate*")) == sorted(written)


def test_models_of_several_seeds_are_joined_with_intervals(run: Run, work: Path, tmp_path: Path) -> None:
    cards = [word for seed in "01" for word in ("-m", str(work / f"run{seed}" / "card.yaml"))]
    result = run("rank", *cards, "--combine", "--top", "2")

    assert result.exit_code == 0, result.stderr
    assert "95 % interval" in result.stdout
    joined = GlobalExplanation.load(tmp_path / "xaihub-out" / "combined__scores.json")
    assert joined.runs.shape == (2, 96)
    assert [part["model"] for part in joined.metadata["parts"]] == ["run0", "run1"]


def test_an_image_that_cannot_be_read_costs_only_itself(run: Run, work: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    photos = [str(work / "photos" / "red_0.png"), str(tmp_path / "bad.png"), str(work / "photos" / "blue_1.png")]
    result = run("rank", *photos, "-m", str(work / "run0" / "card.yaml"))

    assert result.exit_code == 0
    assert "note: skipped: " in result.stderr
    assert "bad.png" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("-e", "gradcam"), 2, "no global explainer is named 'gradcam'"),
        (("-p", "rows=3"), 2, "scores has no parameter 'rows'"),
        (("-t", "cat"), 2, "No such option"),
        (("nowhere/",), 1, "there is no file or folder 'nowhere/'"),
        (
            ("-e", "scores", "-e", "shap_global", "-o", "one.png"),
            2,
            "-o 'one.png' is one file, but there are 2 results",
        ),
    ],
)
def test_a_wrong_question_is_one_line(run: Run, arguments: tuple[str, ...], code: int, message: str) -> None:
    result = run("rank", *arguments)

    assert result.exit_code == code
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_model_without_a_gate_says_how_to_get_one(run: Run, tmp_path: Path) -> None:
    card = tmp_path / "plain.yaml"
    card.write_text("name: plain\narchitecture: test_resnet\nweights: {source: none}\n", encoding="utf-8")
    result = run("rank", "-m", str(card))

    assert result.exit_code == 1
    assert "model 'plain' has no gate" in result.stderr
    assert "xaihub train DATA --objective scores_activation" in result.stderr
    assert not (tmp_path / "xaihub-out").exists()


def test_labels_must_cover_the_images(run: Run, work: Path, tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text(f"file,label\n{work / 'photos' / 'red_0.png'},red\n", encoding="utf-8")
    card, photos = str(work / "run0" / "card.yaml"), str(work / "photos")
    result = run("rank", photos, "-m", card, "--labels", str(tmp_path / "few.csv"))

    assert result.exit_code == 1
    assert "has no label for" in result.stderr


def test_labels_are_found_by_path_or_by_name(work: Path, tmp_path: Path) -> None:
    copy = tmp_path / "red_0.png"
    copy.write_bytes((work / "photos" / "red_0.png").read_bytes())
    found = labels_of([str(copy), str(work / "photos" / "blue_1.png")], ("blue", "red"), str(work / "labels.csv"))

    assert found.tolist() == [1, 0]


@pytest.mark.parametrize("kept", [2**30, 0])
def test_the_most_activating_images_are_those(work: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr("xaihub.api.rank.KEPT_BYTES", kept)
    hub = Hub()
    model = hub.load_model(str(work / "run0" / "card.yaml"), device="cpu")
    sources = sorted(map(str, (work / "photos").iterdir()))
    (outcome,) = rank_models([model], [hub.get_global_explainer()], sources)
    assert outcome.explanation is not None
    rows, how = channel_views(model, outcome.explanation, outcome.photos, top=3, across=2)

    # A second way: each image by itself, through the network's own functions.
    network = model.module
    maps = [
        network.forward_features(model.prepare(load_image(source).rgb)[0].unsqueeze(0))[0]  # type: ignore[operator]
        for source in sources
    ]
    assert "before average pooling" in how
    for item, views in rows:
        values = torch.stack([each[item.index].mean() for each in maps])
        order = values.argsort(descending=True)[:2].tolist()
        assert [view.source for view in views] == [sources[number] for number in order]
        assert views[0].activation == pytest.approx(float(values[order[0]]), rel=1e-4)
        peak = maps[order[0]][item.index]
        assert float(views[0].heat.max()) <= float(peak.max()) + 1e-4


def test_a_channel_without_a_map_of_its_own_is_shown_by_gradient(work: Path, tmp_path: Path) -> None:
    card = tmp_path / "vit.yaml"
    card.write_text("name: vit\narchitecture: test_vit\nweights: {source: none}\n", encoding="utf-8")
    hub = Hub()
    model = hub.load_model(str(card), device="cpu")
    photos = Photos.read(model, sorted(map(str, (work / "photos").iterdir())))
    found = hub.get_global_explainer("permutation_importance", repeats=1).explain(model, photos)
    rows, how = channel_views(model, found, photos, top=2, across=1)

    assert "gradient of the channel" in how
    assert all(views[0].heat.shape == model.input_size[1:] for _, views in rows)
    assert all(bool(views[0].heat.isfinite().all()) for _, views in rows)


def test_global_explainers_are_listed_and_shown(run: Run) -> None:
    listed = json.loads(run("list", "global_explainers", "--json").stdout)
    shown = run("show", "shap_global")

    assert {row["name"] for row in listed} >= {"scores", "shap_global", "permutation_importance"}
    assert all(row["summary"] and row["cost"] and row["needs"] for row in listed)
    assert "shap_global (global explainer)" in shown.stdout
    assert "background" in shown.stdout
