"""Networks of the user's own: functions in files, programs of torch.export, precisions, and sigmoids inside."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import xaihub
from tests.networks import SIDE, Net, model, noise
from xaihub.cli import cli
from xaihub.errors import ExplainerRefused, ModelError, ParameterError, XaihubError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorial" / "your-own-model.md"
CODE = """
import torch
from torch import nn
from beside import SIDE
from xaihub import Model, Preprocessing

def build(classes=2, device=None):
    torch.manual_seed(1)
    body = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    net = nn.Sequential(*body, nn.Linear(4, classes))
    print("building")
    return Model(net, name="mine", classes=[f"c{i}" for i in range(classes)], preprocessing=Preprocessing(
        spatial=[lambda image: image.resize((SIDE, SIDE))], size=(3, SIDE, SIDE), mean=(0.5,) * 3, std=(0.5,) * 3))

def bare():
    return nn.Linear(1, 1)

def broken():
    raise ValueError("no\\nweights")

def leaves():
    raise SystemExit(3)

def several():
    return build(), build()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "model.py").write_text(CODE)
    (tmp_path / "code" / "beside.py").write_text("SIDE = 32\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestFunctions:
    def test_a_function_in_a_file_is_a_model(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = torch.get_rng_state()
        loaded = xaihub.load_model("code/model.py:build", options={"classes": 3}, outputs="multilabel")
        assert torch.equal(torch.get_rng_state(), before)
        assert capsys.readouterr().out == ""  # what the file prints must not spoil JSON
        assert (loaded.name, loaded.classes, loaded.outputs.kind) == ("mine", ("c0", "c1", "c2"), "multilabel")
        found = xaihub.explain(model=loaded, explainer="saliency")
        code = found.metadata["code"]
        assert code["file"] == str(folder / "code" / "model.py")
        assert (code["function"], len(code["sha256"])) == ("build", 64)

    def test_an_edited_file_is_imported_again(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.dont_write_bytecode", False)
        first = xaihub.load_model("code/model.py:build")
        file = folder / "code" / "model.py"
        written = file.stat().st_mtime_ns
        file.write_text(CODE.replace("manual_seed(1)", "manual_seed(2)"))
        os.utime(file, ns=(written, written))  # in the same instant, and of the same length
        second = xaihub.load_model("code/model.py:build")
        assert first.code["sha256"] != second.code["sha256"]
        assert first.weights_hash != second.weights_hash
        assert first.structure_hash != second.structure_hash  # a run keeps no result of the old code

    def test_weights_and_class_names_are_replaced(self, folder: Path) -> None:
        loaded = xaihub.load_model("code/model.py:build")
        other = {name: torch.zeros_like(value) for name, value in loaded.module.state_dict().items()}
        torch.save(other, folder / "zeros.pt")
        (folder / "names.txt").write_text("cat\ndog\n")
        again = xaihub.load_model("code/model.py:build", checkpoint="zeros.pt", classes="names.txt")
        assert again.classes == ("cat", "dog")
        assert not any(weight.any() for weight in again.module.parameters())
        torch.save({"wrong": torch.zeros(1)}, folder / "wrong.pt")
        with pytest.raises(ModelError):
            xaihub.load_model("code/model.py:build", checkpoint="wrong.pt")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("code/model.py", r"names a file, but no function \(add it: code/model.py:build\)"),
            ("code/model.py:biuld", r"has no function 'biuld' \(did you mean 'build'"),
            ("code/model.py:nn", "has no function 'nn'"),
            ("code/model.py:bare", r"returned a Linear, not a xaihub.Model \(wrap a network"),
            ("code/model.py:several", "returned a tuple, not a xaihub.Model"),
            ("code/model.py:broken", "cannot build the model: ValueError: no weights"),
            ("code/model.py:leaves", "cannot build the model: SystemExit: 3"),
            ("missing.py:build", "there is no model file 'missing.py'"),
            ("code.py:build", "'code.py' cannot be imported: SyntaxError"),
        ],
    )
    def test_each_failure_is_one_line(self, folder: Path, name: str, message: str) -> None:
        (folder / "code.py").write_text("def build(:\n")
        with pytest.raises(ModelError, match=message) as caught:
            xaihub.load_model(name)
        assert "\n" not in str(caught.value)

    def test_what_the_function_decides_cannot_be_asked_for(self, folder: Path) -> None:
        hub = xaihub.Hub()
        for values in ({"scratch": True}, {"size": 48}):
            with pytest.raises(ParameterError, match="pass options to the function"):
                hub.load_model("code/model.py:build", **values)
        with pytest.raises(ModelError, match="unexpected keyword argument 'classs'"):
            hub.load_model("code/model.py:build", options={"classs": 3})

    def test_another_command_finds_the_file_from_another_folder(self, folder: Path) -> None:
        def run(*arguments: str) -> Any:
            done = CliRunner().invoke(cli, [*arguments], prog_name="xaihub")
            assert done.exit_code == 0, done.output
            return done

        given = ["-m", "code/model.py:build", "-e", "saliency", "--json"]
        shown = json.loads(run("explain", *given, "-o", "out").stdout)[0]
        assert shown["code"]["function"] == "build"
        photo = str(xaihub.sample_photo())
        more = ["-k", "sparseness", "--no-controls", "-q"]
        run("evaluate", photo, *given, *more, "-o", "run")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder / "code")
            run("evaluate", "--resume", str(folder / "run"), "-e", "input_x_gradient", "-q", "--json")


class Scaled(Net):
    """Ends in an operation of the test's choice."""

    def __init__(self, last: Any, outputs: int = 1) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.head, self.last = nn.Linear(32, outputs), last

    def forward(self, inputs: Tensor) -> Any:
        return self.last(super().forward(inputs))


ENDINGS: dict[str, Any] = {
    "sigmoid": torch.sigmoid,
    "sigmoid of a vector": lambda rows: rows[:, 0].sigmoid().unsqueeze(1),
    "clamped sigmoid": lambda rows: rows.sigmoid().clamp(1e-6, 1 - 1e-6),
    "two sigmoids": lambda rows: torch.cat([rows[:, :1].sigmoid(), rows[:, 1:].sigmoid()], dim=1),
}


class TestEndings:
    @pytest.mark.parametrize("name", ENDINGS)
    def test_a_sigmoid_inside_is_reported(self, name: str) -> None:
        for kind in ("multilabel", "multiclass") if name == "two sigmoids" else ("binary",):
            network = Scaled(ENDINGS[name], 1 if kind == "binary" else 2)
            (found,) = xaihub.get_explainer("saliency").explain(model(network, outputs=kind), noise())
            assert any(text.startswith("the network ends in a sigmoid") for text in found.warnings), found.warnings

    def test_logits_between_0_and_1_are_no_probabilities(self) -> None:
        for outputs, kind in ((1, "binary"), (2, "multilabel"), (4, "multilabel")):
            network = Scaled(lambda rows: rows * 1e-3 + 0.5, outputs)
            (found,) = xaihub.get_explainer("saliency").explain(model(network, outputs=kind), noise())
            assert not found.warnings

    def test_a_value_may_be_a_sigmoid(self) -> None:
        (found,) = xaihub.get_explainer("saliency").explain(model(Scaled(torch.sigmoid), outputs="regression"), noise())
        assert not found.warnings

    def test_where_the_graph_shows_nothing_the_range_does(self) -> None:
        network = Scaled(lambda rows: rows.sigmoid().detach())
        (found,) = xaihub.get_explainer("rise", masks=20).explain(model(network, outputs="binary"), noise())
        assert any("if the network ends in one" in text for text in found.warnings)


def exported(rows: int | None) -> Any:
    torch.manual_seed(0)
    batch = torch.export.Dim("batch")
    example = (torch.zeros(rows or 2, 3, SIDE, SIDE),)
    return torch.export.export(Net().eval(), example, dynamic_shapes=None if rows else ({0: batch},))


class TestPrograms:
    @pytest.mark.parametrize("rows", [None, 1, 3])
    def test_a_program_is_a_black_box(self, rows: int | None) -> None:
        plain, program = model(Net), exported(rows)
        for given in (program, program.module()):
            box = model(given)
            assert torch.allclose(box.predict(noise(4)), plain.predict(noise(4)), atol=1e-6)
            for name, values in (("occlusion", {}), ("saliency", {}), ("rise", {"masks": 20})):
                (one,), (other,) = (xaihub.get_explainer(name, **values).explain(m, noise()) for m in (box, plain))
                assert torch.allclose(one.values, other.values, rtol=1e-3, atol=1e-5)
            with pytest.raises(ExplainerRefused, match=r"program of torch.export, whose layers run no hooks"):
                xaihub.get_explainer("gradcam").explain(box, noise())

    def test_declared_outputs_and_functions_of_a_program(self) -> None:
        box = model(exported(1), outputs="multilabel")
        with pytest.raises(ExplainerRefused, match="program of torch.export"):
            xaihub.get_explainer("gradcam").explain(box, noise(), "1")
        headed = box.with_head(xaihub.FunctionHead(lambda outputs: outputs[:, 1], "second"))
        assert torch.allclose(headed.predict(noise(3))[:, 0], box.predict(noise(3))[:, 1], atol=1e-6)


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float16, 0.05), (torch.bfloat16, 0.1), (torch.float64, 1e-5)])
def test_precisions_give_the_maps_of_float32(kind: torch.dtype, tolerance: float) -> None:
    plain = model(Net)
    torch.manual_seed(0)
    other = model(Net().to(kind))
    for name, values in (("gradcam", {}), ("rise", {"masks": 50}), ("smoothgrad", {"samples": 4})):
        (one,), (same,) = (xaihub.get_explainer(name, **values).explain(m, noise()) for m in (other, plain))
        assert float((one.values - same.values).abs().max() / same.values.abs().max()) < tolerance
        assert bool(one.warnings) == (kind != torch.float64)


def test_weights_of_five_axes() -> None:
    class Volume(Net):
        def __init__(self) -> None:
            super().__init__()
            self.depth = nn.Conv3d(1, 1, (3, 3, 3), padding=1)

        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(self.depth(inputs[:, None])[:, 0])

    (found,) = xaihub.get_explainer("gradcam").explain(model(Volume), noise())
    assert found.values.any()


@pytest.mark.slow
def test_the_tutorial_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    parts = re.findall(r"^```(python|console)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (_, first), *others = parts
    (tmp_path / "model.py").write_text(first, encoding="utf-8")
    scope: dict[str, Any] = {}
    for language, text in others:
        if language == "python":
            exec(compile(text, PAGE.name, "exec"), scope)  # noqa: S102 - the page's own code
            continue
        for line in text.splitlines():
            done = CliRunner().invoke(cli, shlex.split(line)[2:], prog_name="xaihub")
            assert done.exit_code == 0, f"{line}\n{done.output}"
    assert scope["explanation"].claim.startswith("square ")
    assert scope["absent"].claim.startswith("not square 0.")
    square = torch.from_numpy(scope["photo"]).std(2).eq(0) & (torch.from_numpy(scope["photo"])[..., 0] % 1 == 0)
    heat = scope["explanation"].heatmap()
    top = torch.nn.functional.avg_pool2d(heat[None, None], 16)[0, 0]
    place = torch.nn.functional.avg_pool2d(square[None, None].float(), 16)[0, 0]
    assert int(top.argmax()) == int(place.argmax())
    assert len(list((tmp_path / "xaihub-out").glob("photo__detector__*.png"))) == 3


def test_a_head_of_a_plugin_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heads.py").write_text(
        "from xaihub import Head, HeadSpec, hookimpl\n"
        "class Bad(Head):\n"
        "    def rows(self, outputs):\n        raise SystemExit(7)\n"
        "class Binds(Bad):\n"
        "    def bind(self, model):\n        raise KeyError('no names')\n"
        "@hookimpl\ndef xaihub_register_heads():\n"
        "    return [HeadSpec(name=n, target=f'{__file__}:{n.title()}', summary='S.') for n in ('bad', 'binds')]\n"
    )
    for name, reason in (("bad", "SystemExit: 7"), ("binds", "KeyError: 'no names'")):
        given = ["--plugin", "heads.py", "explain", "--head", name, "-e", "occlusion", "-e", "gradcam", "-o", "out"]
        done = CliRunner().invoke(cli, given, prog_name="xaihub")
        assert done.exit_code == 1
        assert f"head {name!r}: {reason}" in done.stderr
        assert "plugin 'heads' (heads.py)" in done.stderr or "heads.py" in done.stderr
        assert "Traceback" not in done.stderr


def test_errors_of_the_users_own_function_are_the_users() -> None:
    def boom(_outputs: Any) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises((ZeroDivisionError, XaihubError), match="mine"):
        xaihub.explain(model=model(Net), target=boom, explainer="occlusion")
