"""The report of a run: everything that it must show, and nothing that it must not."""

from __future__ import annotations

import html
import json
import re
import shutil
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.evaluate.toys import Toys, config
from tests.test_html_pages import blocks, elsewhere, scripts
from xaihub import ExplainerSpec, MetricSpec, hookimpl
from xaihub.cli import cli
from xaihub.cli._app import App
from xaihub.errors import OutputError, ParameterError
from xaihub.evaluation.config import Choice
from xaihub.evaluation.leaderboard import boards
from xaihub.evaluation.plan import make_plan
from xaihub.evaluation.report.commands import evaluate_command
from xaihub.evaluation.report.contents import display_names
from xaihub.evaluation.report.write import write_report
from xaihub.evaluation.run import evaluate
from xaihub.evaluation.store import RunStore
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost

HOSTILE = "<script>alert(1)&<img src=x onerror=alert(2)>"


class Summarised(Toys):
    """The toys, with summaries that look like markup."""

    @hookimpl
    def xaihub_register_explainers(self) -> list[ExplainerSpec]:
        return [replace(spec, summary=HOSTILE) for spec in super().xaihub_register_explainers()]

    @hookimpl
    def xaihub_register_metrics(self) -> list[MetricSpec]:
        return [replace(spec, summary=HOSTILE, higher_is_better=True) for spec in super().xaihub_register_metrics()]


@dataclass(frozen=True)
class Made:
    """A run over four images of two models, one named like a script and one that is not an image."""

    hub: Hub
    run: Path
    photos: Path

    def report(self, file: Path, **options: Any) -> str:
        with RunStore(self.run) as store:
            write_report(store, self.hub, file, **options)
        return file.read_text("utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    host = PluginHost(entry_points=[])
    host.register(Summarised(), name="toys")
    hub, folder = Hub(host), tmp_path_factory.mktemp("a person's secret")
    photos = folder / "photos"
    photos.mkdir()
    for number, name in enumerate((f"{HOSTILE}.png", "b.png", "c.png", "d.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / name)
    (photos / "broken.png").write_bytes(b"not an image")
    (folder / "labels.csv").write_text("file,class_index\nb.png,0\nc.png,1\nd.png,2\n")
    chosen = config(
        photos, models=["toy", "toy2"], explainers=["toy_gradient", "toy_filled", "toy_refusing"],
        labels=str(folder / "labels.csv"),
    )  # fmt: skip
    with RunStore(folder / "run", create=True) as store:
        evaluate(hub, make_plan(hub, chosen), store)
    return Made(hub, folder / "run", photos)


@pytest.fixture(scope="module")
def page(made: Made, tmp_path_factory: pytest.TempPathFactory) -> str:
    return made.report(tmp_path_factory.mktemp("report") / "report.html")


def cells(page: str, model: str) -> dict[str, list[str]]:
    (table,) = re.findall(rf'<table class="board sortable" data-model="{model}">(.*?)</table>', page, re.DOTALL)
    rows = re.findall(r'<tr data-explainer="(\w+)".*?</tr>', table, re.DOTALL)
    parts = re.split(r"<tr data-explainer=", table)[1:]
    return {
        name: re.findall(r'data-metric="\d" data-value="([^"]*)"', part) for name, part in zip(rows, parts, strict=True)
    }


def test_the_leaderboard_of_a_report_is_that_of_the_run(made: Made, page: str) -> None:
    with RunStore(made.run) as store:
        found = boards(store.rows(), made.hub)
    for board in found:
        shown = cells(page, board.model)
        assert list(shown) == board.explainers
        for name, values in shown.items():
            wanted = [board.entries.get((name, metric)) for metric in board.metrics]
            assert values == ["" if entry is None else str(entry.mean) for entry in wanted]
    assert page.count("<caption>") >= len(found) + 2
    assert '<span class="tag">control</span>' in page


def test_the_scores_curves_and_maps_of_every_image_are_in_the_page(made: Made, page: str) -> None:
    with RunStore(made.run) as store:
        rows = store.rows()
    data, *details = blocks(page)
    names = [metric["name"] for metric in data["metrics"]]
    for row in rows:
        if row.record and row.value is not None:
            image = [item["name"] for item in data["images"]].index(Path(row.image).name)
            (part,) = [part for part in details[image]["models"] if part["model"] == row.model]
            (view,) = [view for view in part["views"] if view["explainer"] == row.explainer]
            assert view["scores"][names.index(row.metric)] == pytest.approx(row.value, rel=1e-3)
            assert view["map"].startswith("data:image/png;base64,")
            if row.curve:
                (curve,) = [curve for curve in view["curves"] if names[curve["metric"]] == row.metric]
                assert curve["y"] == pytest.approx(row.curve[1], rel=1e-3)
    assert len(data["records"]) == 4 * 2 * 3  # the refusing explainer has none
    assert {len(record) for record in data["records"]} == {3 + len(names)}


def test_predictions_are_judged_by_the_labels(page: str) -> None:
    data = blocks(page)[0]
    by_name = {image["name"]: image["cases"] for image in data["images"]}
    for name, label in (("b.png", "a"), ("c.png", "b"), ("d.png", "c")):
        for _model, predicted, explained, correct in by_name[name]:
            assert explained == label
            assert correct == (predicted == label)
    assert {case[3] for case in by_name[f"{HOSTILE}.png"]} == {None}


def test_failures_are_listed_with_reasons(page: str) -> None:
    (table,) = re.findall(r'<section id="failures".*?</section>', page, re.DOTALL)
    assert "this network is too small" in table
    assert "broken.png" in table
    assert "there is no explanation to score" not in table


def test_what_others_wrote_is_text(page: str) -> None:
    assert "alert(1)" in page
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    assert len(scripts(page)) == 1
    assert "onerror" not in re.sub(r"&lt;.*?&gt;|\\u003c.*?\\u003e", "", page)


def test_nothing_is_loaded_and_no_folder_is_named(made: Made, page: str) -> None:
    assert not elsewhere(page)
    assert "secret" not in page
    assert str(made.photos.parent.parent) not in page


def test_the_command_of_a_report_repeats_the_run(made: Made, page: str) -> None:
    with RunStore(made.run) as store:
        command = evaluate_command(store.config)
    assert command == (
        "xaihub evaluate photos -m toy -m toy2 -e toy_gradient -e toy_filled -e toy_refusing -k toy_mean -k toy_drawn"
        " -k toy_pool --labels labels.csv --seed 0 -o RUN"
    )
    assert command in page
    assert "explain b.png -m toy -e toy_filled -p baseline=mean" in page


def test_commands_have_every_setting() -> None:
    chosen = config(
        Path("/x/photos"), images=["/x/a b.png", "/x/c.png"], models=["/y/card.yaml"], controls=False, seed=3, limit=7,
        explainers=[Choice("toy_filled", {"baseline": "image:/y/z w.png"})], metrics=["toy_mean"], target="top2",
        budget=200, shard="1/2", text=["a cat"], threads=2, precision="bf16", maps="none",
    )  # fmt: skip
    assert evaluate_command(chosen) == (
        "xaihub evaluate 'x/a b.png' x/c.png -m card.yaml --text 'a cat' -e toy_filled -k toy_mean"
        " -p 'toy_filled.baseline=image:z w.png' --target top2 --threads 2 --budget 200 --precision bf16 --limit 7"
        " --shard 1/2 --maps none --no-controls --seed 3 -o RUN"
    )
    assert "IMAGE..." in evaluate_command(chosen, images=False)


def test_names_have_as_many_folders_as_tell_images_apart() -> None:
    found = display_names(["/home/x/1/a.png", "/home/x/2/a.png", "/home/x/2/b.png"])
    assert [*found.values()] == ["1/a.png", "2/a.png", "b.png"]


def test_without_images_neither_pixels_nor_names_are_in_the_page(made: Made, tmp_path: Path) -> None:
    page = made.report(tmp_path / "plain.html", images=False)
    assert "data:image/" not in page.partition("<body>")[2].partition("<script>")[0]
    for name in ("b.png", "c.png", "d.png", "broken", f"{html.escape(HOSTILE)}.png"):
        assert name not in page
    data, first, *_ = blocks(page)
    assert [image["name"] for image in data["images"]] == ["image 1", "image 2", "image 4", "image 5"]
    assert first["models"][0]["views"][0]["scores"]


def test_images_that_are_gone_or_changed_leave_the_scores(made: Made, tmp_path: Path) -> None:
    moved = made.photos / "b.png"
    content = moved.read_bytes()
    try:
        moved.unlink()
        gone = blocks(made.report(tmp_path / "gone.html"))
        moved.write_bytes((made.photos / "c.png").read_bytes())
        changed = blocks(made.report(tmp_path / "changed.html"))
    finally:
        moved.write_bytes(content)
    for found, reason in ((gone, "there is no file"), (changed, "its file has changed since the run")):
        place = [image["name"] for image in found[0]["images"]].index("b.png")
        detail = found[1 + place]
        assert reason in detail["note"]
        assert not detail["base"]
        assert detail["models"][0]["views"][0]["map"]


def test_a_report_that_would_be_too_large_gets_a_folder_of_pages(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "split.html"
    whole, page = made.report(tmp_path / "whole.html"), made.report(file, largest=20_000)
    assert len(page) < 0.8 * len(whole)
    (data,) = blocks(page)
    assert [image["href"] for image in data["images"]] == [f"split-images/{n:05d}.html" for n in (1, 2, 3, 4)]
    for image in data["images"]:
        own = (tmp_path / image["href"]).read_text("utf-8")
        detail = blocks(own)[1]
        assert detail["name"] == image["name"]
        assert "../split.html#images" in own
        assert (tmp_path / image["thumb"]).is_file()
        assert not elsewhere(own)
    assert sorted(part.name for part in tmp_path.iterdir()) == ["split-images", "split.html", "whole.html"]
    assert "<img src=x" not in "".join(file.read_text("utf-8") for file in tmp_path.glob("*/*.html"))


def test_an_existing_report_is_kept_unless_forced(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        made.report(file)
    assert file.read_text() == "mine"
    made.report(file, force=True, largest=20_000)
    assert (tmp_path / "report-images").is_dir()
    made.report(file, force=True)
    assert not (tmp_path / "report-images").exists()  # the folder of the report that was replaced
    (tmp_path / "report-images").mkdir()
    (tmp_path / "report-images" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not the folder of a report"):
        made.report(file, force=True)
    assert (tmp_path / "report-images" / "thesis.txt").read_text() == "mine"


def test_a_report_that_cannot_be_written_leaves_nothing(made: Made, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        made.report(tmp_path / "file" / "report.html")
    with pytest.raises(ParameterError, match="no colour map"):
        made.report(tmp_path / "report.html", colormap="nothing")
    assert [part.name for part in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("change", [{"versions": 5}, {"parameters": "x"}, {"preprocessing": [1]}, {"seconds": "long"}])
def test_a_damaged_run_is_one_error_and_no_file(made: Made, tmp_path: Path, change: dict[str, Any]) -> None:
    run = shutil.copytree(made.run, tmp_path / "run")
    with sqlite3.connect(run / "run.sqlite") as database:
        for key, record in database.execute("SELECT key, record FROM explanations WHERE record NOTNULL").fetchall():
            text = json.dumps({**json.loads(record), **change})
            database.execute("UPDATE explanations SET record = ? WHERE key = ?", (text, key))
    database.close()
    with RunStore(run) as store, pytest.raises(OutputError, match="cannot be shown: a record is damaged"):
        write_report(store, made.hub, tmp_path / "report.html")
    assert [part.name for part in tmp_path.iterdir()] == ["run"]


def test_the_command_writes_into_the_run_and_prints_the_path(made: Made, tmp_path: Path) -> None:
    run, file = CliRunner(), tmp_path / "r.html"
    done = run.invoke(cli, ["report", str(made.run), "-o", str(file), "--no-images"], obj=App(made.hub))
    assert (done.exit_code, done.stdout) == (0, f"{file}\n")
    again = run.invoke(cli, ["report", str(made.run), "-o", str(file)], obj=App(made.hub))
    assert again.exit_code == 1
    assert "exists (name another file with -o, or replace it with --force)" in again.stderr
    wrong = run.invoke(cli, ["report", str(made.run), "-o", str(tmp_path / "r.pdf")], obj=App(made.hub))
    assert wrong.exit_code == 2
    assert "a report is an HTML file" in wrong.stderr


def test_a_leaderboard_shows_plots_and_saves_itself(made: Made, tmp_path: Path) -> None:
    with RunStore(made.run) as store:
        board = boards(store.rows(), made.hub)[0]
    assert len(board.to_frame()) == len(board.entries)
    assert "toy_gradient" in board._repr_html_()
    assert 'class="board sortable"' in board.html()
    assert len(board.plot().axes) == len(board.metrics)
    for suffix in ("html", "png", "csv", "json"):
        assert board.save(tmp_path / f"board.{suffix}").stat().st_size > 100
    assert json.loads((tmp_path / "board.json").read_text())["model"] == "toy"
    with pytest.raises(OutputError, match=r"end it in \.html, \.png, \.csv, \.json"):
        board.save(tmp_path / "board.xls")
