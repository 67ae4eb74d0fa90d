"""Models that are saved with their card load again without a network."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from xaihub import Hub, Model, Preprocessing, load_image, sample_photo
from xaihub.cli import cli
from xaihub.errors import ModelError, OutputError
from xaihub.models.saving import save_model


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("efficientnet_lite0", {}),
        ("resnet18", {"scratch": True}),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", {"scratch": True, "size": 96}),
        ("torchvision/resnet18", {"scratch": True}),
        # Large; one transformer and one network of torchvision are above.
        pytest.param("torchvision/vit_b_16", {"scratch": True}, marks=pytest.mark.slow),
    ],
)
def test_a_saved_model_predicts_what_the_original_predicts(name: str, changes: dict, tmp_path: Path) -> None:
    hub = Hub()
    model = hub.load_model(name, **changes)
    card = save_model(model, tmp_path / "saved")
    again = hub.load_model(str(card))
    image = load_image(sample_photo()).rgb
    one, two = model.prepare(image)[0], again.prepare(image)[0]
    assert torch.equal(one, two)
    assert torch.equal(model.predict(one[None]), again.predict(two[None]))
    assert again.classes == model.classes


def test_a_module_without_a_card_and_a_folder_with_files_are_refused(tmp_path: Path) -> None:
    preprocessing = Preprocessing(spatial=(), size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(ModelError, match="no card describes"):
        save_model(Model(net, name="mine", preprocessing=preprocessing, classes=("a", "b")), tmp_path / "x")
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(OutputError, match="is not empty"):
        save_model(Hub().load_model("efficientnet_lite0"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command_saves_a_folder_that_explain_takes(tmp_path: Path) -> None:
    folder = tmp_path / "lite"
    done = CliRunner().invoke(cli, ["models", "download", "efficientnet_lite0", "-o", str(folder)])
    assert done.exit_code == 0, done.output
    assert {path.name for path in folder.iterdir()} == {"card.yaml", "weights.safetensors"}
    words = ["explain", "-m", str(folder / "card.yaml"), "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(cli, words).exit_code == 0


def test_the_report_for_bugs_names_versions_and_nothing_private() -> None:
    done = CliRunner().invoke(cli, ["info"])
    assert done.exit_code == 0
    assert torch.__version__.partition("+")[0] in done.output
    assert str(Path.home()) not in done.output
    assert str(Path.cwd()) not in done.output
    assert socket.gethostname() not in done.output
    assert f"/{getpass.getuser()}" not in done.output
