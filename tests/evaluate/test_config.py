"""What is refused before any work, naming line and key."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from xaihub.errors import OutputError, ParameterError, UnknownName
from xaihub.evaluation.config import read_config
from xaihub.evaluation.plan import load_models, make_plan
from xaihub.hub import Hub


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("images: [photos]\nmetric: [toy_mean]\n", 2, "unknown field `metric`"),
        ("images: [photos]\nseed: many\n", 2, "expected `int`"),
        ("images:\n  - photos\nmetrics:\n  - toy_mean\n  - toy_meen\n", 5, "did you mean 'toy_mean'"),
        ("images: [photos]\nexplainers:\n  - name: toy_noise\n    params: {widht: 2}\n", 3, "did you mean 'width'"),
        ("images: [photos]\nmetrics: [toy_truth]\n", 2, "needs masks or boxes"),
        ("models: [toy]\nimages: [nowhere]\n", 2, "there is no file or folder 'nowhere'"),
        ("images: [photos]\nmasks: nowhere\n", 2, "there is no file or folder 'nowhere'"),
        ("images: [photos]\nlabels: nowhere.csv\n", 2, "there is no table 'nowhere.csv'"),
        ("images: !!python/name:os.system\n", 1, "could not determine a constructor"),
        ("images: [photos\n", 2, "expected ',' or ']'"),
        ("images: []\n", 1, "of length >= 1"),
        ("images: [photos]\nlimit: 0\n", 2, "expected `int` >= 1"),
        ("images: [photos]\nbatch_size: -3\n", 2, "expected `int` >= 1"),
        ("images: [photos]\nseed: 99999999999999999999999\n", 2, "expected `int`"),
        ("images: [photos]\nmodels: []\n", 2, "of length >= 1"),
        ("images: [photos]\nmodels:\n  - toy\n  - tou\n", 4, "no model is named 'tou'"),
        ("images: [photos]\ndevice: gpu\n", 2, "there is no device 'gpu'"),
        ("images: [photos]\ntarget: nothing\n", 2, "no class is named 'nothing'"),
        ("images: [photos]\nlabels: far.csv\n", 2, "class 3 of 'photos/0.png' is out of range"),
        ("images: [photos]\nlabels: part.csv\n", 2, "is 1.5, not an index"),
        ("images: [photos]\nlabels: nan.csv\n", 2, "is 'nan', not a number"),
        ("images: [photos]\nboxes: other.csv\n", 2, "'other.csv' lists none of the images"),
        ("images: [photos]\nmasks: other\n", 2, "no mask in 'other' has the name of an image"),
        ("images: [photos]\nexplainers: []\ncontrols: false\n", 2, "no explainer"),
        ("images: [photos]\nexplainers:\n  - {name: toy_filled, params: {baseline: purple}}\n", 3, "'purple'"),
    ],
)
def test_a_wrong_config_is_refused_naming_line_and_key(
    hub: Hub, photos: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int, says: str
) -> None:
    monkeypatch.chdir(photos.parent)
    Path("bench.yaml").write_text(text)
    for name, row in {"far": "0.png,3", "part": "0.png,1.5", "nan": "0.png,nan"}.items():
        Path(f"{name}.csv").write_text(f"file,class_index\n{row}\n")
    Path("other.csv").write_text("file,left,top,right,bottom\nother.png,0,0,2,2\n")
    Path("other").mkdir()
    Image.new("L", (8, 8)).save("other/other.png")
    defaults = "models: [toy]\n" if "models" not in text else ""
    defaults += "" if "explainers" in text else "explainers: [toy_gradient]\n"
    defaults += "" if "metrics" in text else "metrics: [toy_mean]\n"
    Path("bench.yaml").write_text(text + defaults)

    def checked() -> None:
        chosen, file = read_config("bench.yaml")
        load_models(hub, make_plan(hub, chosen, file), file)

    with pytest.raises((ParameterError, UnknownName, OutputError)) as caught:
        checked()
    assert f"line {line}" in str(caught.value)
    assert says in str(caught.value)
