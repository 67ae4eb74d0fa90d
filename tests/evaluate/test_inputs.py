"""How a run reads its images, and where its models are: recorded in its plan, so that it is resumed from any folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import xaihub
from tests.evaluate.toys import Toys
from xaihub import AdapterSpec, Hub, ModelAdapter, hookimpl
from xaihub.api.evaluate import Evaluation
from xaihub.cli import cli
from xaihub.evaluation.config import Choice
from xaihub.evaluation.dependence import with_files, with_rooted
from xaihub.evaluation.report.commands import evaluate_command
from xaihub.evaluation.store import RunStore
from xaihub.hub.host import PluginHost

CARD = "name: small\narchitecture: test_resnet\nweights: {source: none}\nclasses: [a, b]\n"
INPUT = {"size": "32", "mean": "0.4,0.5,0.6"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file of three pages and a card."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 30, 3), dtype=np.uint8)
    pages = [Image.fromarray(page) for page in noise]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    (tmp_path / "small.yaml").write_text(CARD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluated(**plan: Any) -> Evaluation:
    torch.manual_seed(0)  # of the weights
    done = xaihub.evaluate(explainers=[] if "resume" in plan else "saliency", **plan)
    assert isinstance(done, Evaluation)
    assert not done.failed
    return done


def test_pages_and_inputs_are_part_of_the_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluated(
        images="stack.tif", models="small.yaml", metrics="sparseness", output="run", no_controls=True, page=2,
        input=INPUT,
    )  # fmt: skip
    monkeypatch.chdir(folder.parent)
    again = evaluated(resume=folder / "run")
    assert (first.totals.scores, again.totals.scores, again.totals.kept) == (1, 0, 1)
    with RunStore(folder / "run") as store:
        assert (store.config.page, store.config.input) == (2, INPUT)
        record = store.rows()[0].record
        assert "page 2 of 3 was read" in record["warnings"]
        assert record["preprocessing"]["input_size"] == [3, 32, 32]
        command = evaluate_command(store.config)
    assert "--input mean=0.4,0.5,0.6 --input size=32 --page 2" in command
    # Another page or size is another explanation; the first page needs no number.
    for change in ({"page": 3}, {"input": {**INPUT, "size": 48}}):
        other = evaluated(resume=folder / "run", **change)
        assert (other.totals.scores, other.totals.kept) == (1, 0)
    values = {float(done.boards[0].entries["saliency", "sparseness"].mean) for done in (first, other)}
    assert len(values) == 2


def test_the_commands_take_a_page_and_an_input(folder: Path) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(cli, [*words, "-m", "small.yaml", "-q"], prog_name="xaihub")

    common = ("evaluate", "stack.tif", "-e", "saliency", "-k", "sparseness", "--no-controls", "-o")
    wrong = run(*common, "wrong", "--input", "mean=red")
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)
    assert "the input's settings are wrong" in wrong.stderr
    missing = run(*common, "run", "--page", "7", "--input", "mean=0.4,0.5,0.6")
    assert missing.exit_code == 1
    assert "there is no page 7 (give 1 to 3)" in missing.stderr
    with RunStore(folder / "run") as store:
        assert (store.config.page, store.config.input) == (7, {"mean": "0.4,0.5,0.6"})
    for page, message in (("2", "a single image"), ("7", "there is no page 7")):
        ranked = run("rank", "stack.tif", "-e", "permutation_importance", "--page", page, "-o", "ranked")
        assert message in ranked.output


HEADS = """
from typing import Annotated
from xaihub import Head, HeadSpec, Meta, hookimpl

class Entry(Head):
    index: Annotated[int, Meta(ge=0, description="Which feature.")] = 0

    def rows(self, outputs):
        return outputs[:, self.index : self.index + 1]

@hookimpl
def xaihub_register_heads():
    return [HeadSpec(name="entry", target=f"{__file__}:Entry", summary="One feature.")]
"""


def test_a_head_of_a_plugin_is_part_of_the_plan(folder: Path) -> None:
    (folder / "heads.py").write_text(HEADS)
    (folder / "bare.yaml").write_text("name: bare\narchitecture: test_resnet\nweights: {source: none}\n"
                                      "options: {num_classes: 0}\n")  # fmt: skip

    def run(*words: str) -> Any:
        torch.manual_seed(0)
        given = ["--plugin", "heads.py", "evaluate", *words, "--json", "-q"]
        return CliRunner().invoke(cli, given, prog_name="xaihub")

    start = ("stack.tif", "-m", "bare.yaml", "-e", "saliency", "-k", "sparseness", "--no-controls", "--head", "entry")
    done = run(*start, "-p", "entry.index=1", "-o", "run")
    assert done.exit_code == 0, done.output
    with RunStore(folder / "run") as store:
        assert store.config.head == Choice("entry", {"index": "1"})
        assert store.rows()[0].record["head"] == "entry"
        assert "--head entry -p entry.index=1" in evaluate_command(store.config)
    assert '"kept": 1' in run("--resume", "run").stdout
    assert '"kept": 0' in run("--resume", "run", "--head", "entry", "-p", "entry.index=2").stdout
    wrong = run(*start, "-p", "entry.index=-1", "-o", "wrong")
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)


class Breaks(ModelAdapter):
    """An adapter of a plugin that fails."""

    def knows(self, name: str) -> bool:
        return name == "own/net"

    def rooted(self, name: str) -> str:
        raise RuntimeError(name)

    def build(self, request: Any, device: Any) -> Any:
        raise NotImplementedError


class Broken:
    @hookimpl
    def xaihub_register_model_adapters(self) -> list[AdapterSpec]:
        return [AdapterSpec(name="breaks", target=f"{__name__}:Breaks", summary="A test.", prefixes=("own/",))]


@pytest.mark.parametrize(
    ("name", "rooted"),
    [
        ("resnet18", "resnet18"),
        ("torchvision/resnet18", "torchvision/resnet18"),
        ("efficientnet_lite0", "efficientnet_lite0"),  # a card of the zoo
        ("nothing", "nothing"),
        ("hf-hub:timm/resnet18", "hf-hub:timm/resnet18"),
        ("small.yaml", "{here}/small.yaml"),
        ("code/model.py:build", "{here}/code/model.py:build"),
        ("local-dir:net", "local-dir:{here}/net"),
        ("net.onnx", "{here}/net.onnx"),
        ("onnx/net.onnx", "onnx/{here}/net.onnx"),
        ("onnx/net", "onnx/{here}/net"),
        ("transformers/net", "transformers/{here}/net"),
        ("transformers/./missing", "transformers/{here}/missing"),
        ("transformers/facebook/dinov2-small@main", "transformers/facebook/dinov2-small@main"),
        ("openclip/net", "openclip/{here}/net"),
        ("openclip/local-dir:net", "openclip/local-dir:{here}/net"),
        ("openclip/ViT-B-32.openai", "openclip/ViT-B-32.openai"),
    ],
)
def test_names_of_models_hold_in_any_folder(name: str, rooted: str, folder: Path) -> None:
    for library in {"onnx": ["onnx"], "transformers": ["transformers"], "openclip": ["open_clip"]}.get(
        name.partition("/")[0].rpartition(".")[2], []
    ):
        pytest.importorskip(library, reason=f"needs {library}")
    (folder / "net").mkdir()
    (folder / "efficientnet_lite0").mkdir()
    assert Hub().rooted(name) == rooted.format(here=folder)
    assert Hub().rooted(rooted.format(here=folder)) == rooted.format(here=folder)


def test_adapters_of_plugins_need_not_know_of_it() -> None:
    host = PluginHost(entry_points=[])
    for name, plugin in (("broken", Broken()), ("toys", Toys())):
        host.register(plugin, name=name)
    assert [Hub(host).rooted(name) for name in ("own/net", "toy")] == ["own/net", "toy"]


def test_files_in_parameters_hold_in_any_folder(folder: Path) -> None:
    for name in ("fill.png", "blur"):
        (folder / name).touch()
    given = {"baseline": "image:fill.png", "measure": "fill.png", "other": "blur", "missing": "image:none.png", "n": 3}
    rooted = with_rooted(given)
    assert rooted == {**given, "baseline": f"image:{folder}/fill.png", "measure": f"{folder}/fill.png"}
    assert {key for key in with_files(given) if key.endswith(".sha256")} >= {"baseline.sha256", "measure.sha256"}
