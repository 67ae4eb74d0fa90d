"""`xaihub compare`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from PIL import Image

from xaihub import Hub, sample_photo
from xaihub.api.compare import compare_models

Run = Callable[..., Result]


def test_models_are_rows_and_explainers_are_columns(run: Run, cat: Path) -> None:
    result = run(
        "compare", str(cat), "-m", "efficientnet_lite0", "-m", "efficientnet_lite1", "-e", "gradcam", "-e", "rise",
        "-p", "masks=4", "-o", "grid.png", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert [[item["explainer"] for item in row] for row in record["explanations"]] == [["gradcam", "rise"]] * 2
    assert [row[0]["model"] for row in record["explanations"]] == ["efficientnet_lite0", "efficientnet_lite1"]
    with Image.open("grid.png") as grid:
        assert grid.width > 3 * 300
        assert grid.height > 2 * 200


@pytest.mark.parametrize(
    ("output", "written"),
    [
        ((), "xaihub-out/cat__compare.png"),
        (("-o", "cmp"), "cmp/cat__compare.png"),
        (("-o", "cmp.v1"), "cmp.v1/cat__compare.png"),
        (("-o", "figures/cmp.png"), "figures/cmp.png"),
    ],
)
def test_the_output_is_a_folder_or_a_png(run: Run, cat: Path, output: tuple[str, ...], written: str) -> None:
    result = run("compare", str(cat), "-e", "control_centre", *output)

    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{written}\n"
    with Image.open(written) as grid:
        assert grid.format == "PNG"


@pytest.mark.parametrize("command", ["explain", "compare", "rank"])
def test_a_figure_is_a_png(run: Run, cat: Path, command: str) -> None:
    result = run(command, str(cat), "-o", "figure.jpg")

    assert result.exit_code == 2
    assert "cannot write 'figure.jpg': figures are PNG files" in result.stderr


def test_an_explainer_that_refuses_leaves_the_others_and_fails(run: Run, cat: Path) -> None:
    result = run("compare", str(cat), "-e", "rise", "-e", "attention_rollout", "-p", "masks=4", "-o", "grid.png")
    assert result.exit_code == 1
    assert "attention_rollout on efficientnet_lite0" in result.stderr
    assert Path("grid.png").is_file()


def test_more_than_one_image_is_wrong_usage(run: Run, cat: Path) -> None:
    shutil.copy(cat, "second.png")
    result = run("compare", ".")
    assert result.exit_code == 2
    assert "takes one image" in result.stderr


def test_models_of_one_name_are_told_apart_by_their_cards(run: Run, cat: Path) -> None:
    for seed in ("0", "1"):
        layers = "layers: {features: blocks.4}\n" if seed == "1" else ""
        weights = "weights: {source: none}\n"
        Path(seed).mkdir()
        Path(seed, "card.yaml").write_text(
            f"name: run\nadapter: timm\narchitecture: test_resnet\n{weights}{layers}".replace("blocks.4", "layer1")
        )
    cards = ("-m", "0/card.yaml", "-m", "1/card.yaml")

    compared = run("compare", str(cat), *cards, "-e", "gradcam", "-o", "grid.png", "--json")
    explained = run("explain", str(cat), *cards, "-e", "gradcam", "-o", "maps", "--json")

    rows = json.loads(compared.stdout)["explanations"]
    assert [[item["model"] for item in row] for row in rows] == [["0/card.yaml"], ["1/card.yaml"]]
    assert len({record["png"] for record in json.loads(explained.stdout)}) == 2


def test_files_whose_names_differ_in_a_sign_do_not_overwrite_each_other(run: Run, cat: Path) -> None:
    for name in ("my cat.png", "my_cat.png", "my(cat.png"):
        shutil.copy(cat, name)
    result = run("explain", "my cat.png", "my_cat.png", "my(cat.png", "-e", "control_centre", "-o", "maps", "--json")
    assert len({record["png"] for record in json.loads(result.stdout)}) == 3
    assert len(list(Path("maps").glob("*.png"))) == 3


def test_models_of_one_name_have_rows_of_their_own_in_python_as_well() -> None:
    models = [Hub().load_model("test_resnet", scratch=True) for _ in range(2)]
    explainers = [Hub().get_explainer(name) for name in ("saliency", "attention_rollout")]
    rows, failures = compare_models(models, explainers, sample_photo())
    assert [[item.explainer for item in row] for row in rows] == [["saliency"], ["saliency"]]
    assert not torch.equal(rows[0][0].values, rows[1][0].values)
    assert len(failures) == 2
