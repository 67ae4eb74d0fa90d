"""Inputs of any number of channels, arrays in files, pages of files, and similarity in comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Resize

import xaihub
from tests import networks
from xaihub import Model, Preprocessing, load_image
from xaihub.cli import cli
from xaihub.errors import InputError, ModelError, XaihubError
from xaihub.evaluation.inputs import Inputs
from xaihub.models.cards import read_input

HEIGHT, WIDTH, CELL = 32, 64, 16
EVIDENCE = (1, 2)  # row and column of the cell
SETTINGS: dict[str, dict[str, Any]] = {
    "gradcam": {"layer": "cells"},
    "saliency": {},
    "integrated_gradients": {"steps": 8},
    "occlusion": {"window": 16, "stride": 16, "baseline": "zero"},
    "rise": {"masks": 1000, "cell": 4},
    "lime": {"samples": 200, "features": "grid:4", "baseline": "zero"},
    "shap": {},
    "first_principles": {"baseline": "zero"},
    "convad": {"baseline": "zero"},
}


class LastBand(nn.Module):
    """Two logits: plus and minus the mean of the last channel in one cell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cells = nn.Sequential(nn.AvgPool2d(CELL), nn.Conv2d(channels, 1, 1, bias=False), nn.ReLU())
        self.flat, self.head = nn.Flatten(), nn.Linear(HEIGHT * WIDTH // CELL**2, 2, bias=False)
        with torch.no_grad():
            self.cells[1].weight.zero_()[0, -1] = 1.0
            self.head.weight.zero_()[:, EVIDENCE[0] * WIDTH // CELL + EVIDENCE[1]] = torch.tensor([2.0, -2.0])

    def forward(self, inputs: Tensor) -> Any:
        return self.head(self.flat(self.cells(inputs)))


def model(channels: int, **values: Any) -> Model:
    size = (channels, HEIGHT, WIDTH)
    given = {"spatial": [Resize((HEIGHT, WIDTH))], "size": size, "mean": (0.0,), "std": (1.0,), **values}
    return Model(LastBand(channels), name=f"bands{channels}", preprocessing=Preprocessing(**given))


def scene(channels: int, *, of: int = 1000) -> np.ndarray:
    """Dim integers; the last channel is bright in the cell of the evidence, the first one elsewhere."""
    array = np.full((2 * HEIGHT, 2 * WIDTH, channels), of // 20, np.int32)
    if channels > 1:
        array[: 2 * CELL, : 2 * CELL, 0] = of
    top, left = 2 * CELL * EVIDENCE[0], 2 * CELL * EVIDENCE[1]
    array[top : top + 2 * CELL, left : left + 2 * CELL, -1] = of
    return array


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
@pytest.mark.parametrize("name", SETTINGS)
def test_evidence_in_the_last_channel_is_found(channels: int, name: str) -> None:
    found = xaihub.explain(
        scene(channels), model=model(channels, range=(0, 1000)), explainer=name, target=0, **SETTINGS[name]
    )
    cells = nn.functional.avg_pool2d(found.heatmap()[None, None], CELL)[0, 0]
    assert divmod(int(cells.argmax()), WIDTH // CELL) == EVIDENCE
    assert found.heatmap(original=True).shape == (2 * HEIGHT, 2 * WIDTH)


class TestValues:
    def test_the_declared_range_becomes_0_to_1(self) -> None:
        net = model(2, range=(-1000, 3000), mean=(0.5, 0.25), std=(0.5, 0.5))
        array = np.stack([np.full((HEIGHT, WIDTH), 1000), np.full((HEIGHT, WIDTH), 5000)], axis=2)
        inputs, geometry = net.prepare(load_image(array))
        assert torch.allclose(inputs[0], torch.tensor(0.0), atol=1e-6)
        assert torch.allclose(inputs[1], torch.tensor((1.5 - 0.25) / 0.5))  # beyond the range
        assert (geometry.original, geometry.crop) == ((WIDTH, HEIGHT), (WIDTH, HEIGHT))

    @pytest.mark.parametrize(("kind", "most"), [(np.uint8, 255), (np.uint16, 65535), (np.float64, 1), (bool, 1)])
    def test_without_a_range_the_type_decides(self, kind: type, most: float) -> None:
        inputs, _ = model(2).prepare(load_image(np.full((HEIGHT, WIDTH, 2), most, kind)))
        assert torch.allclose(inputs, torch.tensor(1.0))

    @pytest.mark.parametrize("array", [np.full((8, 8, 2), 3.0), np.full((8, 8, 2), -1, np.int16)])
    def test_other_values_need_a_range(self, array: np.ndarray) -> None:
        with pytest.raises(InputError, match="the model declares no range"):
            model(2).prepare(load_image(array))

    def test_channels_must_fit(self) -> None:
        rgb = Image.new("RGB", (8, 8))
        with pytest.raises(InputError, match=r"takes inputs with 4 channels, and an image has 3 .*\.npy"):
            model(4).prepare(rgb)
        with pytest.raises(InputError, match=r"has 8 channels, but the model takes 4 .*moveaxis"):
            model(4).prepare(load_image(np.zeros((4, 8, 8))))
        with pytest.raises(InputError, match="has 12 channels, but the model takes 3"):
            model(3).prepare(load_image(np.zeros((8, 8, 12))))
        with pytest.raises(ModelError, match="mean has 3 values for 4 channels"):
            model(4, mean=(0.5,) * 3)
        with pytest.raises(ModelError, match="range 5 to 5 is empty"):
            model(4, range=(5, 5))

    def test_ordinary_arrays_are_images_as_before(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (2 * HEIGHT, 2 * WIDTH, 4)).astype(np.uint8)
        net = model(3)
        for array in (pixels[..., :3], pixels[..., 0], pixels, pixels[..., :3] / 255.0):
            values = (array * 255).round().astype(np.uint8) if array.dtype == float else array
            given = Image.fromarray(values)
            assert torch.equal(net.prepare(load_image(array))[0], net.prepare(load_image(given))[0])
        noted = xaihub.explain(pixels, model=net, explainer="saliency").warnings
        assert any("fourth channel" in text for text in noted)
        assert not xaihub.explain(pixels[..., :3], model=net, explainer="saliency").warnings


class TestFigures:
    def test_chosen_bands_are_drawn_and_named(self) -> None:
        array = scene(12)
        array[..., 6] = np.arange(array.shape[1])
        found = xaihub.explain(array, model=model(12, range=(0, 1000), bands=(7, 1, 2)), explainer="saliency")
        assert any("shows bands 7, 1, 2 of 12" in text for text in found.warnings)
        assert found.image is not None
        drawn = np.asarray(found.image.rgb)
        assert drawn[0, 0, 0] == 0
        assert drawn[0, -1, 0] == 255
        assert drawn[0, 0, 1] > drawn[-1, 0, 1]
        grey = xaihub.explain(array, model=model(12, range=(0, 1000), bands=(7,)), explainer="saliency")
        assert grey.image is not None
        assert (np.ptp(np.asarray(grey.image.rgb), axis=2) == 0).all()
        with pytest.raises(InputError, match="bands 13 cannot be drawn"):
            xaihub.explain(array, model=model(12, range=(0, 1000), bands=(13,)), explainer="saliency")


def card(folder: Path, **values: Any) -> Path:
    facts = {"name": "four", "architecture": "test_resnet", "weights": {"source": "none"}, "num_classes": 3,
             "classes": ["a", "b", "c"], "options": {"in_chans": 4}, **values}  # fmt: skip
    path = folder / "four.yaml"
    path.write_text(json.dumps(facts))
    return path


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli, list(map(str, arguments)), prog_name="xaihub")


def test_a_setting_of_one_channel_is_one_number() -> None:
    given = {"mean": "0.5", "std": "0.25", "bands": "2", "size": "48", "range": "0,1"}
    assert read_input(given) == {"mean": (0.5,), "std": (0.25,), "bands": (2,), "size": 48, "range": (0, 1)}
    with pytest.raises(XaihubError, match="range"):
        read_input({"range": "1"})


class TestCommands:
    def test_arrays_are_explained_compared_and_evaluated(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        given = {"size": [48, 96], "mean": [0.5], "std": [0.25], "range": [0, 1000], "bands": [4, 3, 2]}
        path = card(tmp_path, input=given)
        (tmp_path / "data").mkdir()
        np.save("data/field.npy", scene(4))
        np.savez("data/other.npz", field=scene(4)[:, ::-1])
        done = run(
            "explain", "data", "-m", path, "-e", "saliency", "-e", "control_edges", "--input", "bands=1,2,3", "-o", "o"
        )
        assert done.exit_code == 0, done.output
        assert "shows bands 1, 2, 3 of 4" in done.stderr
        assert len(list((tmp_path / "o").glob("*.png"))) == 4
        more = ("-k", "insertion", "-k", "sparseness", "-o", "run", "-q")
        done = run("evaluate", "data", "-m", path, "-e", "saliency", *more)
        assert done.exit_code == 0, done.output
        like = ("--like", "data/field.npy", "--like", "data/other.npz")
        done = run("compare", "data/field.npy", "-m", path, "-e", "occlusion", *like, "--json", "-o", "both.png")
        assert done.exit_code == 0, done.output
        (explanation,) = json.loads(done.stdout)["explanations"][0]
        assert (explanation["target"]["name"], explanation["against"]["name"]) == ("like field", "like other")
        assert run("compare", "data/field.npy", "-m", path, "--head", "nothing").exit_code != 0
        made = xaihub.compare("data/field.npy", models=str(path), like="data/field.npy", explainers="saliency")
        assert made.explanations[0][0].target.value == pytest.approx(1.0, abs=1e-4)

    def test_channels_without_mean_and_std_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="takes 4 channels, for which nothing declares mean and std"):
            xaihub.load_model(str(card(tmp_path)))
        path = card(tmp_path, input={"size": 48, "mean": [0.5], "std": [0.25]})
        with pytest.raises(XaihubError, match="training reads RGB and grey"):
            xaihub.train("evidence", model=str(path), output=str(tmp_path / "run"), epochs=1)


ARRAYS: dict[str, tuple[Any, str]] = {
    "objects": (np.array([{}], dtype=object), "Python objects, which are not loaded"),
    "text": (np.array([["a"]]), "not numbers"),
    "nan": (np.full((4, 4), np.nan), "NaN or infinite"),
    "axes": (np.zeros((2, 2, 2, 2)), r"shape \(2, 2, 2, 2\)"),
    "empty": (np.zeros((0, 4)), r"shape \(0, 4\)"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_files_that_hold_no_input_are_one_line(name: str, tmp_path: Path) -> None:
    array, message = ARRAYS[name]
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=message) as caught:
        load_image(tmp_path / "a.npy")
    assert "\n" not in str(caught.value)


def test_archives_and_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    with pytest.raises(InputError, match=r"holds 2 arrays: a, b"):
        load_image(tmp_path / "two.npz")
    np.save(tmp_path / "cut.npy", np.zeros((64, 64)))
    whole = (tmp_path / "cut.npy").read_bytes()
    for content in (whole[:200], b"hello", whole[:9]):
        (tmp_path / "cut.npy").write_bytes(content)
        with pytest.raises(InputError, match="is not an array of numbers"):
            load_image(tmp_path / "cut.npy")
    monkeypatch.setattr("xaihub.images.arrays.BUDGET", 2**20)
    np.savez_compressed(tmp_path / "bomb.npz", np.zeros((400, 400)))
    assert (tmp_path / "bomb.npz").stat().st_size < 2**12
    with pytest.raises(InputError, match="too many values to be safe"):
        load_image(tmp_path / "bomb.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several pages."""
    folder = tmp_path_factory.mktemp("pages")
    pages = [Image.new("RGB", (40, 30), (value, value, value)) for value in (20, 120, 220)]
    for name in ("stack.tif", "film.gif"):
        pages[0].save(folder / name, save_all=True, append_images=pages[1:])
    pages[0].save(folder / "one.tif")
    pages[0].save(folder / "phone.jpg", format="MPO", save_all=True, append_images=pages[1:])
    return folder


class TestPages:
    @pytest.mark.parametrize("name", ["stack.tif", "film.gif"])
    def test_a_note_says_which_page_was_read(self, folder: Path, name: str) -> None:
        first, third = load_image(folder / name), load_image(folder / name, page=3)
        assert first.notes == ("page 1 of 3 was read; --page N reads another",)
        assert third.notes == ("page 3 of 3 was read",)
        assert [image.rgb.getpixel((9, 9))[0] for image in (first, third)] == [20, 220]

    def test_a_page_that_does_not_exist(self, folder: Path) -> None:
        for name, hint in (("stack.tif", "give 1 to 3"), ("one.tif", "it has one page")):
            with pytest.raises(InputError, match=rf"there is no page 7 \({hint}\)"):
                load_image(folder / name, page=7)
        assert not load_image(folder / "one.tif", page=1).notes
        assert not load_image(folder / "phone.jpg").notes  # its previews are no pages

    def test_the_commands_pass_it_on(self, folder: Path) -> None:
        found = xaihub.explain(folder / "stack.tif", model=networks.model(), explainer="saliency", page=2)
        assert "page 2 of 3 was read" in found.warnings
        common = ("-e", "saliency", "--page", "2", "-o")
        done = run("explain", folder / "stack.tif", *common, folder / "out")
        assert "page 2 of 3 was read" in done.stderr
        done = run("compare", folder / "stack.tif", *common, folder / "both.png")
        assert "note: page 2 of 3 was read" in done.stderr


def test_neighbours_of_a_run_are_arrays_too(tmp_path: Path) -> None:
    files = []
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", scene(4) + number)
        files.append(str(tmp_path / f"{number}.npy"))
    assert Inputs(model(4, range=(0, 1000))).pool(files)[0][0].shape == (4, HEIGHT, WIDTH)
