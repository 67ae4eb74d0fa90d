"""Model cards: reading YAML files, and refusing invalid ones."""

from __future__ import annotations

import hashlib
import re
import resource
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import xaihub_zoo
from xaihub.errors import MissingExtra, ModelError, PluginError
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.models.cards import read_card
from xaihub.models.weights import weights_file

SHIPPED = sorted((Path(xaihub_zoo.__file__).parent / "cards").glob("*.yaml"))
GOOD = "name: mine\narchitecture: test_resnet\nweights: {source: none}\n"


def card(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def zoo() -> Hub:
    host = PluginHost(entry_points=[], environ={})
    host.register(xaihub_zoo, name="zoo", builtin=True)
    return Hub(host)


def refusal(folder: Path, text: str) -> str:
    file = card(folder, text)
    with pytest.raises(ModelError) as caught:
        read_card(file)
    assert str(file) in caught.value.message
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestShippedCards:
    def test_there_are_three(self) -> None:
        assert [file.stem for file in SHIPPED] == ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]

    @pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
    def test_each_is_timms_architecture_with_weights_that_are_checked(self, file: Path) -> None:
        read = read_card(file)
        assert read.name == file.stem
        assert read.summary
        assert read.paper is not None
        assert read.weights.licence == "Apache-2.0"
        config = timm.get_pretrained_cfg(read.architecture)
        assert config is not None
        assert config.architecture == f"tf_{read.name}"
        assert config.num_classes == 1000
        assert f"{config.input_size[1]} pixels" in read.summary
        assert len(read.weights.sha256) == 64

    @pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
    def test_the_installed_weights_have_the_cards_checksum(self, file: Path) -> None:
        read = read_card(file)
        pytest.importorskip(read.weights.package)
        assert weights_file(read).name.endswith(f"{read.weights.sha256[:8]}.pth")


def test_every_key_is_read(tmp_path: Path) -> None:
    file = card(
        tmp_path,
        """
name: everything
architecture: test_resnet
summary: All keys.
adapter: timm
weights: {source: file, path: w.safetensors, sha256: AAAA, keys: names, licence: MIT}
input: {size: [96, 128], mean: [0.1, 0.2, 0.3], std: [1, 1, 1], interpolation: bicubic, crop_pct: 1, crop_mode: squash}
classes: [cat, dog]
num_classes: 2
layers: {features: layer3}
options: {drop_rate: 0.1}
accuracy: "80 %"
extra: zoo
paper: {title: T, year: 2020, url: "https://example.org"}
tags: [a, b]
""".replace("AAAA", "A" * 64),
    )
    read = read_card(file)
    assert read.weights.sha256 == "a" * 64
    assert read.input == {
        "size": (96, 128),
        "mean": (0.1, 0.2, 0.3),
        "std": (1.0, 1.0, 1.0),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    assert read.classes == ("cat", "dog")
    assert read.layers == {"features": "layer3"}
    assert read.options == {"drop_rate": 0.1}
    assert read.paper is not None
    assert read.paper.year == 2020
    assert read.tags == ("a", "b")
    assert read.base == str(tmp_path.resolve())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: !!python/object/apply:os.system ['touch {folder}/run']\n", "python/object/apply:os.system"),
        ("name: !!python/name:os.system\n", "python/name:os.system"),
        ("name: !mine x\n", "!mine"),
        (GOOD + "colour: red\n", "unknown field `colour`"),
        (GOOD.replace("none", "none, colour: red"), "line 3 at 'weights.colour': object contains unknown field"),
        ("name: 3\narchitecture: x\n", "line 1 at 'name': expected `str`, got `int`"),
        ("name: x\n", "missing required field `architecture`"),
        (GOOD + "num_classes: many\n", "at 'num_classes': expected `int | null`, got `str`"),
        (GOOD + "num_classes: 0\n", ">= 1"),
        (GOOD + "input: {size: 0}\n", "at 'input.size': 0 is not"),
        (GOOD + "input: {size: [3, -1]}\n", "at 'input.size': (3, -1) is not"),
        (GOOD + "input: {size: [1, 2, 3]}\n", "length 2"),
        (GOOD + "input: {std: [0, 1, 1]}\n", "> 0"),
        (GOOD + "input: {crop_pct: 0}\n", ">= 0.1"),
        (GOOD + "input: {crop_mode: middle}\n", "at 'input.crop_mode': invalid enum value 'middle'"),
        (GOOD + "input: {interpolation: best}\n", "invalid enum value 'best'"),
        (GOOD.replace("none", "moon"), "invalid enum value 'moon'"),
        (GOOD.replace("none", "none, keys: luck"), "invalid enum value 'luck'"),
        (GOOD.replace("none", "none, sha256: abc"), "at 'weights.sha256'"),
        (GOOD.replace("none", "file"), "'path' is missing"),
        (GOOD.replace("none", "package, path: x"), "at 'weights.package': '' is not"),
        (GOOD.replace("none", "package, path: x, package: ..up"), "'..up' is not the import name"),
        ("", "expected `object`, got `null`"),
        ("- a\n- b\n", "expected `object`, got `array`"),
        ("just text", "expected `object`, got `str`"),
        ("name: [a\nb: c\n", "line 2"),
        ("name: x\n\tarchitecture: y\n", "line 2"),
        (GOOD + "accuracy: 2024-99-99\n", "month must be in 1..12"),
        ("\x00", "control characters are not allowed"),
    ],
)
def test_a_wrong_card_is_refused_in_one_line_that_names_file_and_reason(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in refusal(tmp_path, text.replace("{folder}", str(tmp_path)))
    assert not (tmp_path / "run").exists()


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\xfa\x00\xd8")
    with pytest.raises(ModelError, match="x.yaml"):
        read_card(tmp_path / "x.yaml")


def test_a_missing_card_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no model card .*none.yaml'"):
        read_card(tmp_path / "none.yaml")
    with pytest.raises(ModelError, match="Is a directory"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]\n" for i in range(30)), "aliases"),
        ("a0: &a0 {k: v}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30)),
         "aliases"),
        # PyYAML 6.0.4 counts open brackets itself, and while it reads ahead it is the first to say so.
        ("options: " + "[" * 100_000, "nested too deeply|maximum nesting depth"),
        ("options: " + "{a: " * 100_000, "nested too deeply|maximum nesting depth"),
        ("summary: " + "x" * 5_000_000, "larger than"),
    ],
    ids=["aliases", "merges", "lists", "maps", "size"],
)  # fmt: skip
def test_a_bomb_is_refused_before_it_grows(tmp_path: Path, text: str, reason: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert re.search(reason, refusal(tmp_path, text))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


class TestUsersOwnCards:
    def test_a_card_with_relative_weights_and_classes_builds_the_model(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        trained = timm.create_model("test_resnet", num_classes=3).eval()
        save_file(trained.state_dict(), tmp_path / "w.safetensors")
        digest = hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
        (tmp_path / "names.txt").write_text("cat\n\nhund æ\nbird\n", encoding="utf-8")
        file = card(
            tmp_path,
            f"name: mine\narchitecture: test_resnet\nclasses: names.txt\ninput: {{size: 64, crop_pct: 1.0}}\n"
            f"weights: {{source: file, path: w.safetensors, sha256: {digest}}}\n",
        )
        model = zoo().load_model(str(file))
        assert model.name == "mine"
        assert model.classes == ("cat", "hund æ", "bird")
        assert model.input_size == (3, 64, 64)
        inputs = torch.randn(2, 3, 64, 64)
        with torch.inference_mode():
            assert torch.allclose(model(inputs), trained(inputs), atol=1e-6)

    def test_a_folder_of_cards_joins_the_zoo(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        card(tmp_path, GOOD)
        card(tmp_path, GOOD.replace("mine", "short"), "short.yml")
        monkeypatch.setenv("XAIHUB_ZOO", str(tmp_path))
        hub = zoo()
        assert set(hub.models.names()) == {"mine", "short", *(file.stem for file in SHIPPED)}
        assert hub.load_model("mine").name == "mine"

    def test_each_broken_card_costs_only_itself(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        card(tmp_path, GOOD, "a.yaml")
        card(tmp_path, "name: !!python/name:os.system\n", "bad.yaml")
        card(tmp_path, "colour: red\n", "worse.yaml")
        monkeypatch.setenv("XAIHUB_ZOO", str(tmp_path))
        hub = zoo()
        assert set(hub.models.names()) == {"mine", *(file.stem for file in SHIPPED)}
        first, second = hub.host.warnings
        assert "plugin 'zoo'" in first
        assert str(tmp_path / "bad.yaml") in first
        assert str(tmp_path / "worse.yaml") in second

    def test_strict_mode_refuses_a_broken_card(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        card(tmp_path, "colour: red\n")
        monkeypatch.setenv("XAIHUB_ZOO", str(tmp_path))
        host = PluginHost(entry_points=[], environ={"XAIHUB_STRICT_PLUGINS": "1"})
        host.register(xaihub_zoo, name="zoo", builtin=True)
        with pytest.raises(PluginError, match="colour"):
            Hub(host).models.names()

    def test_a_zoo_folder_that_does_not_exist_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XAIHUB_ZOO", str(tmp_path / "nowhere"))
        hub = zoo()
        assert len(hub.models.names()) == 3
        (line,) = hub.host.warnings
        assert "nowhere" in line

    def test_a_card_cannot_take_the_name_of_a_shipped_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        card(tmp_path, GOOD.replace("mine", "efficientnet_lite0"))
        monkeypatch.setenv("XAIHUB_ZOO", str(tmp_path))
        hub = zoo()
        assert hub.models.get("efficientnet_lite0").architecture == "tf_efficientnet_lite0"
        (warning,) = hub.host.warnings
        assert "registers model 'efficientnet_lite0' twice; the first is used" in warning


class TestWeightsOfACard:
    def write(self, folder: Path, weights: str) -> Path:
        return card(folder, f"name: mine\narchitecture: test_resnet\nweights: {{{weights}}}\n")

    def test_a_missing_package_says_what_to_install(self, tmp_path: Path) -> None:
        text = "source: package, package: no_such_package, distribution: no-such-package, path: w.pth"
        file = self.write(tmp_path, text)
        with pytest.raises(MissingExtra, match=r"'mine' are in 'no-such-package'.*pip install no-such-package"):
            zoo().load_model(str(file))

    def test_a_missing_package_of_an_extra_names_the_extra(self, tmp_path: Path) -> None:
        file = self.write(tmp_path, "source: package, package: no_such_package, path: w.pth")
        file.write_text(file.read_text(encoding="utf-8") + "extra: zoo\n", encoding="utf-8")
        with pytest.raises(MissingExtra, match=r"pip install 'xaihub\[zoo\]'"):
            zoo().load_model(str(file))

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        file = self.write(tmp_path, "source: file, path: none.pth")
        with pytest.raises(ModelError, match=f"there is no file '{tmp_path / 'none.pth'}'"):
            zoo().load_model(str(file))

    def test_other_bytes_than_the_cards_are_refused_unread(self, tmp_path: Path) -> None:
        (tmp_path / "w.pth").write_bytes(b"something else")
        file = self.write(tmp_path, f"source: file, path: w.pth, sha256: {'f' * 64}")
        with pytest.raises(ModelError, match="do not match the card: sha256"):
            zoo().load_model(str(file))

    def test_means_that_do_not_suit_the_channels_are_refused(self, tmp_path: Path) -> None:
        file = card(tmp_path, GOOD + "input: {mean: [0.5, 0.5]}\n")
        with pytest.raises(ModelError, match="do not fit the architecture"):
            zoo().load_model(str(file))
