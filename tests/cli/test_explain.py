"""`xaihub explain`: files, records, and one line for everything that goes wrong."""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image

import xaihub
from xaihub.explainers.pixel_set import percent

Run = Callable[..., Result]
FAST = ("-e", "rise", "-p", "masks=4")
# A hand-made box around the cat's face in the sample photo: left, top, right, bottom.
FACE = (95, 20, 355, 285)


def test_without_arguments_the_sample_photo_is_explained(run: Run, tmp_path: Path) -> None:
    result = run("explain")
    assert result.exit_code == 0, result.stderr
    written = sorted(path.name for path in (tmp_path / "xaihub-out").iterdir())
    stem = "chelsea__efficientnet_lite0__gradcam"
    assert written == [f"{stem}.json", f"{stem}.png", f"{stem}.safetensors"]
    assert f"{stem}.png  gradcam: tiger cat" in result.stdout


def test_a_second_target_keeps_the_first_result(run: Run, cat: Path, tmp_path: Path) -> None:
    for target in ("Egyptian cat", "tabby"):
        assert run("explain", str(cat), "-t", target, "-o", "out", "-q").exit_code == 0
        assert run("compare", str(cat), "-t", target, "-o", "out", "-q").exit_code == 0

    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert names == {
        *(f"cat__efficientnet_lite0__gradcam__{target}" for target in ("Egyptian_cat", "tabby")),
        *(f"cat__compare__{target}" for target in ("Egyptian_cat", "tabby")),
    }


def test_the_strongest_evidence_lies_on_the_cat_of_the_sample_photo() -> None:
    explanation = xaihub.explain(explainer="gradcam")
    heat = explanation.heatmap(original=True).nan_to_num(-1)
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    left, top, right, bottom = FACE
    assert explanation.predicted.index in range(281, 286)
    assert left <= column <= right
    assert top <= row <= bottom
    inside = heat[top:bottom, left:right].clamp(min=0).sum() / heat.clamp(min=0).sum()
    assert inside > 0.9


def test_the_overlay_keeps_the_original_geometry(run: Run, cat: Path) -> None:
    assert run("explain", str(cat), *FAST, "-o", "out").exit_code == 0
    with Image.open("out/cat__efficientnet_lite0__rise.png") as overlay:
        assert overlay.width == 225 * 2  # enlarged by a whole factor, because the legend needs room
        assert overlay.height > 150 * 2


def test_a_single_explanation_may_be_given_a_file_name(run: Run, cat: Path, tmp_path: Path) -> None:
    assert run("explain", str(cat), "-o", "maps/mine.png").exit_code == 0
    assert sorted(file.name for file in (tmp_path / "maps").iterdir()) == ["mine.json", "mine.png", "mine.safetensors"]

    several = run("explain", str(cat), *FAST, "-e", "gradcam", "-o", "one.png")
    assert several.exit_code == 2
    assert "-o 'one.png' is one file, but there are 2 results; name a folder" in several.stderr


def test_a_model_is_loaded_once_and_predicts_an_image_once(
    run: Run, cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, rows = [], []

    def load_model(hub: xaihub.Hub, name: str, **options: object) -> xaihub.Model:
        model = original(hub, name, **options)  # type: ignore[arg-type]
        model.module.register_forward_hook(lambda _module, given, _output: rows.append(len(given[0])))
        loaded.append(name)
        return model

    original = xaihub.Hub.load_model
    monkeypatch.setattr(xaihub.Hub, "load_model", load_model)
    result = run(
        "explain", str(cat), "-e", "control_centre", "-e", "control_random", *FAST, "-p", "rise.masks=6", "-o", "out"
    )

    assert result.exit_code == 0, result.stderr
    assert loaded == ["efficientnet_lite0"]
    assert sum(rows) == 1 + 6  # the prediction, for all three explainers, and RISE's masks


def test_several_explainers_and_images_each_get_their_files(run: Run, cat: Path, tmp_path: Path) -> None:
    (tmp_path / "dogs").mkdir()
    copy(cat, tmp_path / "dogs" / "dog.jpg")
    result = run("explain", str(cat), "dogs", *FAST, "-e", "gradcam", "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert len(list(Path("out").glob("*.png"))) == 4
    assert {path.name for path in Path("out").glob("dog__*.png")} == {
        "dog__efficientnet_lite0__gradcam.png",
        "dog__efficientnet_lite0__rise.png",
    }


def test_sets_of_pixels_are_drawn_beside_the_map(run: Run, cat: Path, tmp_path: Path) -> None:
    fast = ("-p", "budget=60", "-p", "strategy=multiple", "-p", "alternatives=2")
    result = run("explain", str(cat), "-e", "rex", *fast, "-o", "out", "--json")
    assert result.exit_code == 0, result.stderr
    (record,) = json.loads(result.stdout)
    assert record["sets_png"] == str(Path("out") / "cat__efficientnet_lite0__rex__sets.png")
    assert record["forward_passes"] <= 60
    with Image.open(record["sets_png"]) as drawn:
        assert drawn.width == (1 + len(record["sets"])) * 312 + 12
        assert drawn.height > 200


def test_the_confidence_that_a_set_keeps_is_a_parameter(run: Run, cat: Path, tmp_path: Path) -> None:
    short = ("-p", "iterations=1", "-p", "refinements=1", "-p", "shrink=0", "-q")
    shown = run("explain", "cat.png", "-e", "rex", "-p", "confidence=0.75", *short).stdout
    (record,) = json.loads(run("explain", "cat.png", "-e", "rex", "-p", "confidence=0.75", *short, "--json").stdout)
    one = record["sets"][0]
    kept = [percent(one[name]) for name in ("area", "score", "whole", "runner_up")]
    assert "  sufficient set: area {}, keeps {} of {}, runner-up {}".format(*kept) in shown.splitlines()
    assert record["parameters"]["confidence"] == 0.75
    assert one["score"] >= 0.75 * one["whole"] - 1e-4
    refused = run("explain", "cat.png", "-e", "gradcam", "-p", "confidence=0.75")
    assert refused.exit_code == 2
    assert "gradcam has no parameter 'confidence'" in refused.stderr


def test_images_of_one_name_do_not_overwrite_each_other(run: Run, cat: Path, tmp_path: Path) -> None:
    for folder in ("a", "b", "c/a"):
        (tmp_path / folder).mkdir(parents=True)
        copy(cat, tmp_path / folder / "cat.png")
    result = run("explain", "a", "b", "c", *FAST, "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert len(list(Path("out").glob("*.png"))) == 3


def test_json_is_the_whole_record_and_nothing_else_on_stdout(run: Run, cat: Path) -> None:
    result = run("explain", str(cat), *FAST, "--json", "--seed", "3")
    (record,) = json.loads(result.stdout)
    assert record["explainer"] == "rise"
    assert record["variant"].startswith("Stated: Eq. 6")
    assert record["parameters"]["masks"] == 4
    assert record["seed"] == 3
    assert record["forward_passes"] == 4
    assert len(record["weights_sha256"]) == 64
    assert record["preprocessing"]["input_size"] == [3, 224, 224]


def test_saved_values_are_those_that_the_python_door_returns(run: Run, cat: Path) -> None:
    assert run("explain", str(cat), *FAST, "-o", "out", "--seed", "5").exit_code == 0
    saved = xaihub.Explanation.load("out/cat__efficientnet_lite0__rise")
    direct = xaihub.explain(str(cat), explainer="rise", masks=4, seed=5)
    assert torch.equal(saved.values, direct.values)


def test_the_batch_size_does_not_change_values(run: Run, cat: Path) -> None:
    run("explain", str(cat), *FAST, "-o", "one", "--batch-size", "1")
    run("explain", str(cat), *FAST, "-o", "four", "--batch-size", "4")
    name = "cat__efficientnet_lite0__rise"
    one, four = (xaihub.Explanation.load(f"{folder}/{name}").values for folder in ("one", "four"))
    torch.testing.assert_close(one, four, atol=1e-5, rtol=1e-5)


def test_an_image_can_come_from_standard_input(run: Run, cat: Path) -> None:
    result = run("explain", "-", *FAST, stdin=cat.read_bytes())
    assert result.exit_code == 0, result.stderr
    assert Path("xaihub-out/stdin__efficientnet_lite0__rise.png").is_file()


@pytest.mark.parametrize(
    ("target", "name"),
    [("285", "Egyptian cat"), ("Egyptian cat", "Egyptian cat"), ("egyptian CAT", "Egyptian cat")],
)
def test_a_target_is_an_index_or_a_name(run: Run, cat: Path, target: str, name: str) -> None:
    result = run("explain", str(cat), *FAST, "-t", target)
    assert result.exit_code == 0, result.stderr
    assert f"rise: {name}" in result.stdout


def test_a_target_may_be_a_rank_or_a_contrast(run: Run, cat: Path) -> None:
    (second,) = json.loads(run("explain", str(cat), *FAST, "-t", "top2", "--json").stdout)
    assert second["target"]["index"] != second["predicted"]["index"]
    (contrast,) = json.loads(run("explain", str(cat), *FAST, "-t", "tabby vs Egyptian cat", "--json").stdout)
    assert (contrast["target"]["index"], contrast["against"]["index"]) == (281, 285)


def test_verbose_says_which_layer_and_why(run: Run, cat: Path) -> None:
    result = run("explain", str(cat), "-e", "gradcam", "-v")
    assert re.search(r"layer bn2 .*7x7 cells", result.stderr)
    assert "1 forward pass, 1 backward pass, " in result.stderr
    overridden = run("explain", str(cat), "-e", "gradcam", "-v", "--layer", "blocks.4")
    assert "layer blocks.4" in overridden.stderr


def test_the_terminal_shows_the_map_in_half_blocks(run: Run, cat: Path) -> None:
    result = run("explain", str(cat), *FAST, "--terminal")
    assert result.exit_code == 0
    assert result.stdout.count("▀") > 500


def test_of_many_images_the_broken_ones_are_listed_and_the_others_explained(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (64, 64), (number * 40, 90, 10)).save(folder / f"good{number}.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "cut.png").write_bytes((folder / "good0.png").read_bytes()[:60])
    result = run("explain", str(folder), *FAST, "-o", "out", "-q")
    assert result.exit_code == 1
    assert len(list(Path("out").glob("*.png"))) == 5
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 3
    assert all(any(name in line for line in errors) for name in ("empty.png", "text.jpg", "cut.png"))


def test_a_refusal_that_depends_on_the_image_costs_that_image(run: Run, cat: Path) -> None:
    best = json.loads(run("explain", str(cat), *FAST, "--json").stdout)[0]["predicted"]["name"]
    Image.new("RGB", (64, 64), (9, 9, 200)).save("a.png")
    copy(cat, Path("b.png"))
    result = run("explain", "a.png", "b.png", "a.png", *FAST, "-t", f"top1 vs {best.split(',')[0]}", "-o", "out")
    assert result.exit_code == 1
    (drawn,) = Path("out").glob("*.png")
    assert drawn.name.startswith("a__efficientnet_lite0__rise__top1_vs_")
    assert "error: b.png: rise on efficientnet_lite0: the target compares class" in result.stderr
    assert "1 of 2 explanations failed; the rest are in out" in result.stderr


def test_one_region_in_one_image_does_not_end_the_run(run: Run, cat: Path) -> None:
    Image.new("RGB", (64, 64), (9, 9, 200)).save("a.png")
    copy(cat, Path("b.png"))
    many = ("-e", "kernel_shap", "-p", "features=superpixels:2", "-p", "samples=4")
    result = run("explain", "a.png", "b.png", *many, "-o", "out", "--json")
    records = json.loads(result.stdout)
    assert [Path(record["source"]).name for record in records] == ["a.png", "b.png"]
    alone = run("explain", "a.png", *many)
    assert alone.exit_code == (2 if "error" in records[0] else 0)


def test_a_photo_with_damaged_metadata_and_a_thin_one_are_explained_with_a_note(run: Run) -> None:
    entries = [(0x112, 3, 1, struct.pack("<HH", 6, 0)), (0x11A, 10, 1, struct.pack("<I", 38 + 4))]
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    data = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + body + bytes(8) + struct.pack("<iI", -1, 0)
    Image.new("RGB", (64, 48), (90, 160, 60)).save("odd.jpg", exif=data)
    Image.new("RGB", (900, 1), (90, 160, 60)).save("thin.png")
    Image.new("RGB", (30000, 2), (90, 160, 60)).save("thinner.png")
    Image.new("RGB", (1, 40), (90, 160, 60)).save("l" * 230 + ".png")
    result = run("explain", ".", *FAST, "-o", "out")
    assert result.exit_code == 1
    assert "'thinner.png': the image is too thin: 30000 x 2 pixels" in result.stderr
    assert "the model's crop shows only 0.085 % of the image (900 x 1 pixels)" in result.stderr
    assert len(list(Path("out").glob("*.png"))) == 3


def test_explaining_a_folder_again_does_not_explain_its_figures(run: Run, cat: Path) -> None:
    for _ in range(2):
        result = run("explain", ".", *FAST, "-o", ".")
        assert result.exit_code == 0, result.stderr
    assert "note: '.': 1 figure that xaihub has drawn skipped" in result.stderr
    assert len(list(Path().glob("*.png"))) == 2


def test_records_are_written_as_they_are_made(run: Run, cat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, written = xaihub.Explanation.save, []

    def save(self: Any, path: Any) -> Any:
        written.append(len(out.getvalue()))
        return saved(self, path)

    out = io.StringIO()
    monkeypatch.setattr(xaihub.Explanation, "save", save)

    def echo(text: str = "", *, nl: bool = True, err: bool = False, file: Any = None) -> None:
        err or out.write(text + "\n" * nl)

    monkeypatch.setattr("click.echo", echo)
    copy(cat, Path("b.png"))
    run("explain", "cat.png", "b.png", *FAST, "--json")
    assert written[0] == 0 < written[1]
    assert [Path(record["source"]).name for record in json.loads(out.getvalue())] == ["cat.png", "b.png"]


def copy(source: Path, to: Path) -> None:
    with Image.open(source) as image:
        image.convert("RGB").save(to)
