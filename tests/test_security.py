"""What SECURITY.md promises: nothing that is read runs code, writes elsewhere, blocks or exhausts memory."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

import xaihub_zoo
from tests.fuzzing.formats import FORMATS, configs
from xaihub.errors import InputError, MissingExtra, ModelError, XaihubError
from xaihub.evaluation.annotations import read_labels
from xaihub.evaluation.config import read_config
from xaihub.explainers.explanation import Explanation
from xaihub.files import read_file
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.models.adapter import read_classes
from xaihub.models.cards import read_card
from xaihub.models.weights import read_weights
from xaihub.plugin_tools.onefile import register_file
from xaihub.ranking.explanation import GlobalExplanation
from xaihub.training.loop.checkpoint import Checkpoint
from xaihub_first_principles.learned_measures import read_measure

ROOT = Path(__file__).resolve().parents[1]
NETWORK = {"architecture": "test_vit", "model_args": {"embed_dim": 2**16}}
READERS: dict[str, Callable[[Path], object]] = {
    "card": read_card,
    "evaluation config": read_config,
    "class names": read_classes,
    "weights": read_weights,
    "labels": lambda path: read_labels(str(path), ["a.png"]),
    "explanation": Explanation.load,
    "ranking": GlobalExplanation.load,
    "plugin file": lambda path: register_file(PluginHost(entry_points=[], environ={}), path),
    "checkpoint": Checkpoint.load,
    "measure": read_measure,
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("XAIHUB_TRUST_PATHS", raising=False)
    monkeypatch.chdir(tmp_path)


def hub() -> Hub:
    host = PluginHost(entry_points=[], environ={})
    host.register(xaihub_zoo, name="zoo", builtin=True)
    return Hub(host)


def card(folder: Path, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    plain = {"name": "mine", "architecture": "test_resnet", "weights": {"source": "none"}}
    (folder / "card.yaml").write_text(yaml.safe_dump({**plain, **changes}), encoding="utf-8")
    return str(folder / "card.yaml")


def refused(call: Callable[[], object], *, kind: type[XaihubError] = XaihubError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB


class TestPromises:
    """SECURITY.md is a table of promises, each with its test."""

    def text(self) -> str:
        return (ROOT / "SECURITY.md").read_text(encoding="utf-8")

    def test_every_promise_names_a_test_that_exists(self) -> None:
        rows = [line for line in self.text().splitlines() if line.startswith("| ") and "`tests/" in line]
        assert len(rows) >= 12
        for row in rows:
            for file, name in re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", row) or pytest.fail(row):
                source = (ROOT / file).read_text(encoding="utf-8")
                for part in name.split("::"):
                    assert re.search(rf"^\s*(?:class|def) {part}\b", source, re.MULTILINE), (file, name)

    def test_every_format_that_is_fuzzed_is_in_the_table(self) -> None:
        text = self.text().lower()
        assert not [item.name for item in FORMATS if not all(word in text for word in item.name.lower().split())]


class TestCards:
    @pytest.mark.parametrize(
        "options",
        [
            {"cache_dir": "there", "pretrained_cfg_overlay": {"url": "file:///etc/hostname"}},
            {"cache_dir": "there"},
            {"pretrained_cfg": {"file": "w.pth"}},
            {"pretrained_cfg_overlay": {"file": "w.pth"}},
            {"checkpoint_path": "w.pth"},
            {"scriptable": True},
            {"exportable": True},
            {"no_jit": True},
            {"features_only": True},
            {"out_indices": [0]},
            {"pretrained": True},
            {"pretrained_strict": False},
            {"kwargs_filter": ["x"]},
            {"model_cfg": "x"},
            {"device": "cuda"},
            {"colour": "red"},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("weights", ["none", "pretrained"])
    def test_options_are_keywords_of_the_network_only(self, tmp_path: Path, options: Any, weights: str) -> None:
        path = card(tmp_path, options=options, weights={"source": weights})
        message = refused(lambda: hub().load_model(path), kind=ModelError)
        assert any(repr(name) in message for name in options)
        assert "option" in message
        assert [item.name for item in tmp_path.iterdir()] == ["card.yaml"]

    @pytest.mark.parametrize(
        "options", [{"weights": "DEFAULT"}, {"progress": True}, {"weights_backbone": "x"}], ids=str
    )
    def test_options_for_torchvision_too(self, tmp_path: Path, options: Any) -> None:
        path = card(tmp_path, adapter="torchvision", architecture="torchvision/resnet18", options=options)
        assert "is not allowed" in refused(lambda: hub().load_model(path), kind=ModelError)

    @pytest.mark.parametrize("value", [{"a": 1}, "x" * 2000, 2**40, float("nan"), [[[[[1]]]]], [0] * 2000], ids=repr)
    def test_options_are_plain_and_small(self, tmp_path: Path, value: Any) -> None:
        assert "'drop_rate'" in refused(lambda: read_card(card(tmp_path, options={"drop_rate": value})))

    def test_options_that_the_network_takes_work(self, tmp_path: Path) -> None:
        assert hub().load_model(card(tmp_path, options={"drop_rate": 0.5})).module.drop_rate == 0.5

    @pytest.mark.parametrize(
        ("architecture", "options"),
        [
            ("test_resnet", {"channels": [2**14] * 4}),
            ("test_vit", {"embed_dim": 2**16}),
            ("test_vit", {"depth": 2**15}),
            ("test_resnet", {"layers": [2**15, 1, 1, 1]}),
            ("resnet50", {"base_width": 2**15}),
            ("test_vit", {"patch_size": 1}),
        ],
    )
    def test_options_cannot_make_a_network_huge(self, tmp_path: Path, architecture: str, options: Any) -> None:
        before = peak()
        path = card(tmp_path, architecture=architecture, options=options)
        message = refused(lambda: hub().load_model(path), kind=ModelError)
        assert "twice as large" in message or "patches" in message
        assert peak() - before < 2**21

    @pytest.mark.parametrize(
        "weights",
        [
            {"source": "package", "package": "canary", "path": "w.pth"},
            {"source": "package", "package": "canary", "distribution": "canary", "path": "w.pth"},
            {"source": "package", "package": "this", "path": "w.pth"},
        ],
        ids=str,
    )
    def test_a_package_is_found_without_importing_it(
        self, tmp_path: Path, weights: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "canary"
        package.mkdir()
        (package / "__init__.py").write_text("open('canary-ran', 'w')")
        torch.save({"a": torch.ones(1)}, package / "w.pth")
        meta = tmp_path / "canary-1.dist-info"
        meta.mkdir()
        (meta / "METADATA").write_text("Name: canary\nVersion: 1\n")
        (meta / "RECORD").write_text("canary/w.pth,,\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "this", raising=False)
        refused(lambda: hub().load_model(card(tmp_path, weights=weights)), kind=MissingExtra)
        assert not (tmp_path / "canary-ran").exists()
        assert not {"canary", "this"} & sys.modules.keys()

    def test_only_files_of_the_package_itself_are_read(self, tmp_path: Path) -> None:
        weights = {"source": "package", "package": "numpy", "path": "../pip/__init__.py"}
        assert "has no file" in refused(lambda: hub().load_model(card(tmp_path, weights=weights)), kind=ModelError)

    @pytest.mark.parametrize("path", ["../w.pth", "{root}/w.pth", "inner/../../w.pth", "link.pth", "a\0b"])
    @pytest.mark.parametrize("key", ["weights", "classes", "architecture"])
    def test_paths_stay_inside_the_folder_of_the_card(self, tmp_path: Path, path: str, key: str) -> None:
        torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
        folder = tmp_path / "cards"
        folder.mkdir()
        (folder / "link.pth").symlink_to(tmp_path / "w.pth")
        named = path.format(root=tmp_path)
        changes: dict[str, Any] = {
            "weights": {"weights": {"source": "file", "path": named}},
            "classes": {"classes": named},
            "architecture": {"architecture": f"local-dir:{named}"},
        }[key]
        message = refused(lambda: hub().load_model(card(folder, **changes)), kind=ModelError)
        assert "leads outside the folder" in message or "\0" in path
        assert "XAIHUB_TRUST_PATHS=1" in message or "\0" in path

    def test_a_user_may_trust_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XAIHUB_TRUST_PATHS", "1")
        (tmp_path / "names.txt").write_text("a\nb\n")
        model = hub().load_model(card(tmp_path / "cards", classes="../names.txt"))
        assert model.classes == ("a", "b")

    @pytest.mark.parametrize(
        "inputs",
        [{"size": 100_000}, {"size": [8, 10**9]}, {"crop_pct": 0.001}, {"size": 1000, "crop_pct": 0.2},
         {"mean": [1e300] * 3}, {"std": [1.0] * 1000}, {"size": 10**30}],
        ids=str,
    )  # fmt: skip
    def test_inputs_are_bounded(self, tmp_path: Path, inputs: Any) -> None:
        assert "'input" in refused(lambda: read_card(card(tmp_path, input=inputs)), kind=ModelError)

    def test_the_scale_is_bounded_by_the_architectures_own_size(self, tmp_path: Path) -> None:
        path = card(tmp_path, architecture="resnet50", input={"crop_pct": 0.1})
        assert "scaled to more than" in refused(lambda: hub().load_model(path), kind=ModelError)

    def test_class_names_are_a_regular_file_of_bounded_size(self, tmp_path: Path) -> None:
        (tmp_path / "zero").symlink_to("/dev/zero")
        (tmp_path / "large.txt").write_bytes(b"a\n" * 2_500_000)
        for name, reason in (("zero", "outside"), ("large.txt", "larger than")):
            assert reason in refused(lambda name=name: hub().load_model(card(tmp_path, classes=name)))
        assert "not a regular file" in refused(lambda: read_classes("/dev/zero"))

    def test_a_local_folder_has_its_weights_checked(self, tmp_path: Path) -> None:
        inner = tmp_path / "inner"
        inner.mkdir()
        (inner / "config.json").write_text(json.dumps({**NETWORK, "pretrained_cfg": {}}))
        path = card(tmp_path, architecture="local-dir:inner", weights={"source": "pretrained"})
        assert "too large" in refused(lambda: hub().load_model(path), kind=ModelError)
        (inner / "pytorch_model.bin").write_bytes(b"PK")
        assert "damaged" in refused(lambda: hub().load_model(path), kind=ModelError)


class TestRegularFiles:
    @pytest.mark.parametrize("reader", READERS)
    def test_a_pipe_is_refused_and_does_not_block(self, reader: str, tmp_path: Path) -> None:
        for name in ("x.yaml", "x.json", "x.safetensors"):
            os.mkfifo(tmp_path / name)
        done: list[str] = []
        name = {"explanation": "x.json", "ranking": "x.json", "checkpoint": "x.safetensors"}.get(reader, "x.yaml")
        worker = threading.Thread(
            target=lambda: done.append(refused(lambda: READERS[reader](tmp_path / name))), daemon=True
        )
        worker.start()
        worker.join(30)
        assert done
        assert "is not a regular file" in done[0]

    @pytest.mark.parametrize("reader", READERS)
    def test_a_device_is_refused(self, reader: str) -> None:
        if reader not in ("explanation", "ranking"):  # they add suffixes
            assert "is not a regular file" in refused(lambda: READERS[reader](Path("/dev/zero")))

    def test_a_file_beyond_the_limit_is_refused_unread(self, tmp_path: Path) -> None:
        with (tmp_path / "huge").open("wb") as file:
            file.truncate(2**40)
        before = peak()
        for reader in ("card", "class names", "labels", "plugin file", "measure"):
            assert "larger than" in refused(lambda reader=reader: READERS[reader](tmp_path / "huge"))
        assert peak() - before < 2**16
        assert "larger than 9 bytes" in refused(
            lambda: read_file(tmp_path / "huge", what="file", error=InputError, limit=9), kind=InputError
        )


class TestWeights:
    def test_a_deflated_archive_is_refused_before_it_grows(self, tmp_path: Path) -> None:
        torch.save({"a": torch.zeros(2**25)}, tmp_path / "w.pth")
        with (
            zipfile.ZipFile(tmp_path / "w.pth") as source,
            zipfile.ZipFile(tmp_path / "d.pth", "w", zipfile.ZIP_DEFLATED) as target,
        ):
            for member in source.infolist():
                target.writestr(member.filename, source.read(member))
        before = peak()
        assert "compressed archive" in refused(lambda: read_weights(tmp_path / "d.pth"), kind=ModelError)
        assert peak() - before < 2**15

    def test_members_cannot_share_bytes(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a/data.pkl", b"x" * 10**6)
            first = archive.infolist()[0]
            archive.filelist += [first] * 50
        (tmp_path / "w.pth").write_bytes(buffer.getvalue())
        assert "larger than the file" in refused(lambda: read_weights(tmp_path / "w.pth"), kind=ModelError)

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda: torch.eye(3).to_sparse(), "is sparse"),
            (lambda: torch.empty(3, device="meta"), "has no values"),
            (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "is quantised"),
            (lambda: torch.ones(1).expand(10**9), "is larger than the file"),
        ],
    )
    @pytest.mark.filterwarnings("ignore")
    def test_tensors_that_are_not_plain_are_named(self, make: Any, reason: str, tmp_path: Path) -> None:
        torch.save({"ok": torch.ones(1), "odd": make()}, tmp_path / "w.pth")
        message = refused(lambda: read_weights(tmp_path / "w.pth"), kind=ModelError)
        assert f"the entry 'odd' {reason}" in message or "damaged" in message or "pickled code" in message

    @pytest.mark.parametrize("name", ["w.pth", "w.bin", "w"])
    def test_safetensors_are_recognised_by_their_content(self, name: str, tmp_path: Path) -> None:
        save_file({"a": torch.ones(2)}, tmp_path / name)
        assert torch.equal(read_weights(tmp_path / name)["a"], torch.ones(2))

    def test_files_of_torch_are_recognised_by_their_content(self, tmp_path: Path) -> None:
        torch.save({"a": torch.ones(2)}, tmp_path / "w.safetensors")
        assert torch.equal(read_weights(tmp_path / "w.safetensors")["a"], torch.ones(2))


def test_the_cards_of_the_fuzz_test_are_refused_for_a_reason() -> None:
    assert len(configs.HOSTILE) >= 20
