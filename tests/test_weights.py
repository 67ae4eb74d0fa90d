"""Weight files: reading without executing code, and loading all entries or none."""

from __future__ import annotations

import os
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

import xaihub_zoo
from xaihub.errors import ModelError
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.models.model import Model
from xaihub.models.weights import fill, read_weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def same(found: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def refusal(file: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_weights(file)
    assert repr(str(file)) in caught.value.message
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestReading:
    def test_safetensors(self, tmp_path: Path) -> None:
        save_file(STATE, tmp_path / "w.safetensors")
        assert same(read_weights(tmp_path / "w.safetensors"))

    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_torch_files_of_both_forms(self, suffix: str, zipped: bool, tmp_path: Path) -> None:
        torch.save(STATE, tmp_path / f"w{suffix}", _use_new_zipfile_serialization=zipped)
        assert same(read_weights(tmp_path / f"w{suffix}"))

    @pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "model_ema", "state_dict_ema"])
    def test_weights_inside_a_training_checkpoint(self, wrapper: str, tmp_path: Path) -> None:
        torch.save({"epoch": 3, wrapper: STATE, "optimizer": {"lr": 0.1}}, tmp_path / "w.pth")
        assert same(read_weights(tmp_path / "w.pth"))

    def test_averaged_weights_are_preferred(self, tmp_path: Path) -> None:
        plain = {name: torch.zeros_like(value) for name, value in STATE.items()}
        torch.save({"state_dict": plain, "state_dict_ema": STATE}, tmp_path / "w.pth")
        assert same(read_weights(tmp_path / "w.pth"))

    @pytest.mark.parametrize(
        "prefix", ["module.", "_orig_mod.", "model.", "_orig_mod.module.", "module._orig_mod.model."]
    )
    def test_the_prefixes_of_wrappers_are_taken_off(self, prefix: str, tmp_path: Path) -> None:
        torch.save({prefix + name: value for name, value in STATE.items()}, tmp_path / "w.pth")
        assert same(read_weights(tmp_path / "w.pth"))

    def test_a_prefix_of_some_entries_only_is_part_of_their_names(self, tmp_path: Path) -> None:
        state = {"module.x": torch.ones(1), "y": torch.ones(1)}
        torch.save(state, tmp_path / "w.pth")
        assert same(read_weights(tmp_path / "w.pth"), state)


class TestRefusing:
    @pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "beside weights"])
    def test_pickled_code_is_not_run(self, form: str, tmp_path: Path) -> None:
        file, mark = tmp_path / "w.pth", tmp_path / "mark"
        writers: dict[str, Any] = {
            "zip": lambda: torch.save({"a": Payload(mark)}, file),
            "legacy": lambda: torch.save({"a": Payload(mark)}, file, _use_new_zipfile_serialization=False),
            "bare pickle": lambda: file.write_bytes(pickle.dumps({"a": Payload(mark)})),
            "beside weights": lambda: torch.save({"state_dict": STATE, "args": Payload(mark)}, file),
        }
        writers[form]()
        assert "contains pickled code, which is never executed" in refusal(file)
        assert not mark.exists()

    def test_the_payload_of_these_tests_can_do_harm(self, tmp_path: Path) -> None:
        pickle.loads(pickle.dumps({"a": Payload(tmp_path / "mark")}))
        assert (tmp_path / "mark").exists()

    def test_a_whole_pickled_network_is_refused(self, tmp_path: Path) -> None:
        torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
        assert "pickled code" in refusal(tmp_path / "w.pt")

    def test_settings_of_unknown_classes_are_refused(self, tmp_path: Path) -> None:
        torch.save({"model": STATE, "args": Namespace(lr=1)}, tmp_path / "w.pt")
        assert "save model.state_dict()" in refusal(tmp_path / "w.pt")

    @pytest.mark.parametrize(("name", "write"), [("w.pth", torch.save), ("w.safetensors", save_file)])
    @pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.99])
    def test_a_truncated_file_is_damaged(self, name: str, write: Any, share: float, tmp_path: Path) -> None:
        file = tmp_path / name
        write({"w": torch.randn(5000)}, file)
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * share)])
        assert "is damaged or no" in refusal(file)

    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    def test_text_is_no_checkpoint(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text("hello world this is text", encoding="utf-8")
        assert "is damaged or no" in refusal(tmp_path / name)

    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    def test_a_missing_file_and_a_folder_are_named(self, name: str, tmp_path: Path) -> None:
        assert "there is no checkpoint" in refusal(tmp_path / name)
        (tmp_path / name).mkdir()
        assert "cannot read the checkpoint" in refusal(tmp_path / name)

    @pytest.mark.parametrize(
        "content", [{}, {"epoch": 3}, [torch.ones(1)], torch.ones(3), {1: torch.ones(1)}], ids=repr
    )
    def test_a_file_without_weights_is_refused(self, content: Any, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "w.pth")
        assert "contains no state dict" in refusal(tmp_path / "w.pth")


class TestFilling:
    def network(self) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))

    def test_every_entry_is_copied(self) -> None:
        source, target = self.network(), self.network()
        fill(target, source.state_dict(), what="it")
        assert same(dict(target.state_dict()), dict(source.state_dict()))

    def test_entries_may_be_matched_by_their_order(self) -> None:
        source, target = self.network(), self.network()
        renamed = {f"other{i}": value for i, value in enumerate(source.state_dict().values())}
        fill(target, renamed, what="it", by_order=True)
        assert same(dict(target.state_dict()), dict(source.state_dict()))

    def test_the_counters_that_old_files_lack_are_not_missed(self) -> None:
        state = {k: v for k, v in self.network().state_dict().items() if not k.endswith("num_batches_tracked")}
        target = self.network()
        fill(target, state, what="it")
        assert torch.equal(target[0].weight, state["0.weight"])

    @pytest.mark.parametrize("by_order", [True, False])
    def test_another_architecture_is_one_line_and_changes_nothing(self, by_order: bool) -> None:
        target = self.network()
        before = {name: value.clone() for name, value in target.state_dict().items()}
        other = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(2, 2)).state_dict()
        with pytest.raises(
            ModelError, match=r"it does not match the architecture: 0 entries missing, 0 unknown, 6 with another"
        ):
            fill(target, other, what="it", by_order=by_order)
        assert same(dict(target.state_dict()), before)

    def test_missing_and_unknown_entries_are_counted(self) -> None:
        state = dict(self.network().state_dict())
        state["extra"] = state.pop("0.weight")
        with pytest.raises(
            ModelError, match=r"1 entries missing, 1 unknown, 0 with another shape, the first being '0.weight'"
        ):
            fill(self.network(), state, what="it")

    def test_an_order_of_another_length_is_refused(self) -> None:
        with pytest.raises(ModelError, match="it has 2 entries, but the architecture has 9"):
            fill(self.network(), STATE, what="it", by_order=True)


class TestCheckpointsOfUsers:
    @pytest.fixture
    def hub(self) -> Hub:
        host = PluginHost(entry_points=[], environ={})
        host.register(xaihub_zoo, name="zoo", builtin=True)
        return Hub(host)

    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        torch.manual_seed(0)
        save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "w.safetensors")
        return tmp_path / "w.safetensors"

    def names(self, folder: Path, count: int) -> Path:
        (folder / "names.txt").write_text("\n".join(f"class {i}" for i in range(count)), encoding="utf-8")
        return folder / "names.txt"

    def test_the_number_of_classes_is_read_off_the_head(self, hub: Hub, checkpoint: Path) -> None:
        model = hub.load_model("test_resnet", checkpoint=checkpoint)
        assert model.predict(torch.zeros(1, *model.input_size)).shape == (1, 7)
        assert model.classes == ()

    def test_class_names_come_from_a_text_file(self, hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
        model = hub.load_model("test_resnet", checkpoint=checkpoint, classes=self.names(tmp_path, 7))
        assert model.classes == tuple(f"class {i}" for i in range(7))

    def test_a_wrong_number_of_names_is_refused(self, hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"checkpoint .*w.safetensors' has 7 classes, but 6 are named"):
            hub.load_model("test_resnet", checkpoint=checkpoint, classes=self.names(tmp_path, 6))

    def test_another_architectures_checkpoint_is_refused(self, hub: Hub, checkpoint: Path) -> None:
        with pytest.raises(ModelError, match=r"does not match the architecture: .* \(check -m"):
            hub.load_model("test_convnext", checkpoint=checkpoint)

    def test_a_torchvision_classifier_takes_one_too(self, hub: Hub, tmp_path: Path) -> None:
        from torchvision.models import get_model

        torch.save(get_model("shufflenet_v2_x0_5", num_classes=3).state_dict(), tmp_path / "w.pth")
        model = hub.load_model(
            "torchvision/shufflenet_v2_x0_5", checkpoint=tmp_path / "w.pth", classes=self.names(tmp_path, 3)
        )
        assert isinstance(model, Model)
        assert len(model.classes) == 3

    def test_pretrained_weights_never_get_a_random_head(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = timm.create_model

        def without_download(name: str, pretrained: bool, **options: Any) -> nn.Module:
            return real(name, pretrained=False, **options)

        monkeypatch.setattr(timm, "create_model", without_download)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ModelError, match=r"the weights of 'test_resnet' are for 1000 classes, not 6"):
            hub.load_model("test_resnet", classes=self.names(tmp_path, 6))

    @pytest.mark.parametrize(
        ("data", "reason"), [(b"", "no class names"), (b"\n \n", "no class names"), (b"\xff", "UTF-8")]
    )
    def test_an_unusable_file_of_names_is_refused(self, hub: Hub, tmp_path: Path, data: bytes, reason: str) -> None:
        (tmp_path / "names.txt").write_bytes(data)
        with pytest.raises(ModelError, match=reason):
            hub.load_model("efficientnet_lite0", classes=tmp_path / "names.txt")

    def test_a_missing_file_of_names_is_named(self, hub: Hub, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"there is no file of class names .*none.txt'"):
            hub.load_model("efficientnet_lite0", classes=tmp_path / "none.txt")


def test_the_number_of_classes_of_a_torchvision_checkpoint_is_read_off_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=4).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    model = Hub().load_model("torchvision/shufflenet_v2_x0_5", checkpoint=tmp_path / "w.safetensors")
    inputs = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.predict(inputs), network(inputs).detach(), rtol=1e-3, atol=1e-4)
    assert model.classes == ()


def test_a_network_with_auxiliary_heads_has_one_output_in_training_too(tmp_path: Path) -> None:
    model = Hub().load_model("torchvision/googlenet", scratch=True)
    assert model.module.train()(torch.randn(2, 3, 64, 64)).shape == (2, 1000)
    network = torchvision.models.googlenet(init_weights=False)  # a checkpoint with them fits as well
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    assert Hub().load_model("torchvision/googlenet", checkpoint=tmp_path / "w.safetensors").module.aux_logits


def test_a_size_that_an_architecture_cannot_take_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(ModelError, match="'efficientformer_l1' cannot process images of 192x192"):
        Hub().load_model("efficientformer_l1", scratch=True, size=192)
    assert Hub().load_model("test_vit", scratch=True, size=96).predict(torch.zeros(1, 3, 96, 96)).shape == (1, 1000)
