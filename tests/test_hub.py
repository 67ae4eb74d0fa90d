"""The hub: construction of explainers and models by name."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from timm.data import ImageNetInfo

import xaihub_rise
import xaihub_zoo
from xaihub import (
    AdapterSpec,
    ExplainerSpec,
    Model,
    ModelAdapter,
    ModelRequest,
    Preprocessing,
    hookimpl,
    load_image,
    sample_photo,
)
from xaihub.cli import cli
from xaihub.cli._app import App
from xaihub.errors import MissingExtra, ModelError, PluginError, UnknownName
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.models.weights import read_weights, weights_file


def make_hub(*plugins: object) -> Hub:
    host = PluginHost(entry_points=[], environ={})
    host.register(xaihub_zoo, name="zoo", builtin=True)
    host.register(xaihub_rise, name="rise", builtin=True)
    for number, plugin in enumerate(plugins):
        host.register(plugin, name=f"third{number}")
    return Hub(host)


@pytest.fixture(scope="module")
def hub() -> Hub:
    return make_hub()


@pytest.fixture(scope="module")
def lite0(hub: Hub) -> Model:
    return hub.load_model("efficientnet_lite0", device="cpu")


class TestTheEmbeddedModel:
    def test_it_sees_the_cat_of_the_sample_photo(self, lite0: Model) -> None:
        inputs, _ = lite0.prepare(load_image(sample_photo()).rgb)
        probabilities = lite0.predict(inputs[None]).softmax(1)[0]
        assert 281 <= int(probabilities.argmax()) <= 285
        assert float(probabilities[281:286].sum()) > 0.8

    def test_all_of_its_entries_are_loaded(self, lite0: Model) -> None:
        state = read_weights(weights_file(lite0.card))
        own = lite0.module.state_dict()
        assert len(state) == len(own) == 296
        assert all(torch.equal(a, b) for a, b in zip(state.values(), own.values(), strict=True))

    def test_its_class_names_are_imagenets(self, lite0: Model) -> None:
        info = ImageNetInfo("imagenet-1k")
        assert lite0.classes == tuple(info.index_to_description(i, detailed=False) for i in range(1000))
        assert lite0.classes[285] == "Egyptian cat"

    def test_it_is_the_default(self, hub: Hub, lite0: Model) -> None:
        assert hub.load_model().weights_hash == lite0.weights_hash


class TestOffline:
    """The suite has no network; neither may these wait for one."""

    @pytest.fixture(autouse=True)
    def _no_network(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def refuse(*_args: Any, **_options: Any) -> Any:
            raise OSError(-2, "Name or service not known")

        monkeypatch.setattr("socket.getaddrinfo", refuse)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    @pytest.mark.parametrize(
        "name",
        [
            "resnet18",
            "resnet18.a1_in1k",
            "timm/resnet18.a1_in1k",
            "hf-hub:timm/resnet18.a1_in1k",
            "torchvision/resnet18",
        ],
    )
    def test_a_model_that_needs_the_network_says_so_at_once(self, hub: Hub, name: str) -> None:
        started = time.monotonic()
        with pytest.raises(ModelError, match=f"the weights of '{name}' cannot be downloaded.*--checkpoint FILE"):
            hub.load_model(name)
        assert time.monotonic() - started < 30  # the hub's client alone would retry for 45 s

    def test_the_hubs_client_is_left_as_it_was(self, hub: Hub) -> None:
        from huggingface_hub import constants

        before = constants.HF_HUB_OFFLINE
        with pytest.raises(ModelError):
            hub.load_model("resnet18")
        assert before is constants.HF_HUB_OFFLINE is False


class TestNames:
    @pytest.mark.parametrize(
        ("name", "near"),
        [
            ("efficientnet_lite9", "efficientnet_lite"),
            ("resnet81", "resnet18"),
            ("timm/resnet81", "resnet18"),
            ("torchvision/resnet81", "torchvision/resnet18"),
            ("zzzzzzzz", "xaihub list models"),
            ("", "xaihub list models"),
        ],
    )
    def test_an_unknown_model_suggests_near_ones(self, hub: Hub, name: str, near: str) -> None:
        with pytest.raises(UnknownName) as caught:
            hub.load_model(name)
        assert caught.value.message == f"no model is named {name!r}"
        assert near in caught.value.hint

    def test_an_unknown_tag_lists_the_known_ones(self, hub: Hub) -> None:
        for name in ("resnet18.nope", "timm/resnet18.nope"):
            with pytest.raises(ModelError, match=r"timm has no weights 'nope' for 'resnet18' \(it has a1_in1k"):
                hub.load_model(name)
        with pytest.raises(ModelError, match=r"torchvision has no weights 'nope' for 'resnet18' .*IMAGENET1K_V1"):
            hub.load_model("torchvision/resnet18.nope")

    def test_both_adapters_list_their_architectures(self, hub: Hub) -> None:
        named = {spec.name: spec.load()() for spec in hub.adapters}
        assert {"resnet18", "resnet18.a1_in1k"} <= set(named["timm"].names("resnet18*"))
        assert named["torchvision"].names("torchvision/resnet1*") == ["torchvision/resnet101", "torchvision/resnet152",
                                                                      "torchvision/resnet18"]  # fmt: skip
        assert named["timm"].knows("vit_tiny_patch16_224.augreg_in21k_ft_in1k")
        assert not named["timm"].knows("torchvision/resnet18")

    def test_an_architecture_without_weights_can_be_built_from_a_card(self, hub: Hub, tmp_path: Path) -> None:
        (tmp_path / "x.yaml").write_text("name: x\narchitecture: test_vit\nweights: {source: none}", encoding="utf-8")
        model = hub.load_model(str(tmp_path / "x.yaml"), options={"num_classes": 12})
        assert model.predict(torch.zeros(1, *model.input_size)).shape == (1, 12)

    def test_an_option_that_the_architecture_lacks_is_named(self, hub: Hub, tmp_path: Path) -> None:
        (tmp_path / "x.yaml").write_text("name: x\narchitecture: test_vit\nweights: {source: none}", encoding="utf-8")
        with pytest.raises(ModelError, match="timm cannot build 'x'.*depht"):
            hub.load_model(str(tmp_path / "x.yaml"), options={"depht": 3})

    def test_a_torchvision_card_takes_its_own_class_names(self, hub: Hub, tmp_path: Path) -> None:
        text = "name: x\nadapter: torchvision\narchitecture: shufflenet_v2_x0_5\nweights: {source: none}\n"
        (tmp_path / "x.yaml").write_text(text + "classes: [a, b]\n", encoding="utf-8")
        assert hub.load_model(str(tmp_path / "x.yaml")).classes == ("a", "b")

    def test_a_torchvision_card_cannot_change_the_input(self, hub: Hub, tmp_path: Path) -> None:
        text = "name: x\nadapter: torchvision\narchitecture: resnet18\nweights: {source: none}\ninput: {size: 64}\n"
        (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ModelError, match="a card cannot change torchvision's preprocessing"):
            hub.load_model(str(tmp_path / "x.yaml"))

    def test_a_card_of_an_unknown_adapter_is_refused(self, hub: Hub, tmp_path: Path) -> None:
        (tmp_path / "x.yaml").write_text("name: x\nadapter: timmm\narchitecture: y\n", encoding="utf-8")
        with pytest.raises(UnknownName, match="no adapter is named 'timmm'.*did you mean 'timm'"):
            hub.load_model(str(tmp_path / "x.yaml"))


class TestDevices:
    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
    @pytest.mark.parametrize("device", ["cuda", "cuda:1"])
    def test_a_missing_gpu_is_one_line(self, hub: Hub, device: str) -> None:
        with pytest.raises(ModelError, match=rf"device '{device}' is not available here \(use --device cpu\)"):
            hub.load_model(device=device)

    @pytest.mark.parametrize("device", ["gpu", "", "cpu:x", "meta", "cuda:99"])
    def test_a_device_that_cannot_be_used_is_one_line(self, hub: Hub, device: str) -> None:
        with pytest.raises(ModelError, match="device"):
            hub.load_model(device=device)

    def test_auto_takes_what_there_is(self, hub: Hub) -> None:
        assert hub.load_model(device="auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")


class MineAdapter(ModelAdapter):
    def knows(self, name: str) -> bool:
        return name == "mine/net"

    def build(self, request: ModelRequest, device: torch.device) -> Model:
        preprocessing = Preprocessing(spatial=[], size=(3, 4, 4), mean=(0, 0, 0), std=(1, 1, 1))
        return Model(timm.create_model("test_resnet"), name=request.name, preprocessing=preprocessing, device=device)


class Mine:
    def __init__(self, target: str, prefixes: tuple[str, ...] = ("mine/",)) -> None:
        self.target = target
        self.prefixes = prefixes

    @hookimpl
    def xaihub_register_model_adapters(self) -> list[AdapterSpec]:
        return [AdapterSpec(name="mine", target=self.target, prefixes=self.prefixes)]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that plugins of these tests may name as their target."""
    made = ModuleType("a_plugins_module")
    monkeypatch.setitem(sys.modules, "a_plugins_module", made)
    return made


class TestThirdPartyAdapters:
    def test_one_may_bring_models(self, module: Any) -> None:
        module.Adapter = MineAdapter
        assert make_hub(Mine("a_plugins_module:Adapter")).load_model("mine/net").name == "mine/net"

    def test_models_that_one_names_are_listed_on_request(self, module: Any) -> None:
        class Listing(MineAdapter):
            def names(self, pattern: str = "*") -> list[str]:
                return ["mine/net", "mine/other"]

        module.Adapter = Listing
        hub = make_hub(Mine("a_plugins_module:Adapter"))

        result = CliRunner().invoke(cli, ["list", "models", "--json"], obj=App(hub))

        rows = [row for row in json.loads(result.stdout) if row["plugin"] == "third0"]
        assert [(row["name"], row["adapter"]) for row in rows] == [("mine/net", "mine"), ("mine/other", "mine")]

    def test_one_that_cannot_list_its_models_costs_only_them(self) -> None:
        hub = make_hub(Mine("no_such_module:X"))

        result = CliRunner().invoke(cli, ["list", "models", "--json"], obj=App(hub))

        assert result.exit_code == 0
        assert "efficientnet_lite0" in {row["name"] for row in json.loads(result.stdout)}
        assert "adapter 'mine' does not work" in result.stderr

    @pytest.mark.parametrize("failure", ["import", "type", "constructor", "knows"])
    def test_a_broken_one_hides_no_model_of_the_others(self, module: Any, failure: str) -> None:
        class Broken(MineAdapter):
            def knows(self, name: str) -> bool:
                raise ValueError(name)

        class Unmade(MineAdapter):
            def __init__(self) -> None:
                sys.exit(3)

        module.Adapter = {"type": int, "constructor": Unmade, "knows": Broken}.get(failure)
        target = {"import": "no_such_module:X"}.get(failure, "a_plugins_module:Adapter")
        hub = make_hub(Mine(target, prefixes=()))
        with pytest.raises(ModelError, match="torchvision has no weights"):
            hub.load_model("torchvision/resnet18.nope")
        with pytest.raises(ModelError, match="timm has no weights"):
            hub.load_model("resnet18.nope")
        with pytest.raises(UnknownName):
            hub.load_model("zzzzzz")
        assert "plugin 'third0': adapter 'mine' does not work" in hub.host.warnings[0]

    def test_a_broken_one_says_why_when_the_name_is_its_own(self) -> None:
        with pytest.raises(PluginError, match="there is no module 'no_such_module'"):
            make_hub(Mine("no_such_module:X")).load_model("mine/net")


class TestExplainers:
    def test_one_is_made_with_converted_parameters(self, hub: Hub) -> None:
        explainer = hub.get_explainer("rise", masks="20", keep=0.25)
        assert explainer.name == "rise"
        assert explainer.parameters["masks"] == 20
        assert explainer.parameters["keep"] == 0.25

    def test_an_unknown_one_suggests_a_near_one(self, hub: Hub) -> None:
        with pytest.raises(UnknownName, match="did you mean 'rise'"):
            hub.get_explainer("risse")

    @pytest.mark.parametrize(
        ("source", "error", "message"),
        [
            ("int", PluginError, "is not a subclass of xaihub.Explainer"),
            ("no_such_attribute", PluginError, "plugin 'third0' cannot load 'x'"),
        ],
    )
    def test_a_wrong_object_names_its_plugin(
        self, module: Any, source: str, error: type[Exception], message: str
    ) -> None:
        module.int = int

        class Odd:
            @hookimpl
            def xaihub_register_explainers(self) -> list[ExplainerSpec]:
                return [ExplainerSpec(name="x", target=f"a_plugins_module:{source}")]

        with pytest.raises(error, match=message):
            make_hub(Odd()).get_explainer("x")

    def test_a_missing_library_names_the_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "needs_more.py").write_text("import a_library_of_the_extra", encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))

        class Needs:
            @hookimpl
            def xaihub_register_explainers(self) -> list[ExplainerSpec]:
                return [ExplainerSpec(name="x", target="needs_more:X", extra="more")]

        with pytest.raises(MissingExtra, match=r"pip install 'xaihub\[more\]'"):
            make_hub(Needs()).get_explainer("x")
