"""Models: hashes, validation of outputs, and restoring the network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from xaihub import Model, ModelCard, ModelRequest, Preprocessing
from xaihub.errors import ExplainerRefused, ModelError

PREPROCESSING = Preprocessing(spatial=[], size=(3, 8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def wrapped(module: nn.Module | None = None) -> Model:
    return Model(network() if module is None else module, name="toy", preprocessing=PREPROCESSING)


@pytest.mark.parametrize("count", [3, 6])
def test_class_names_of_the_wrong_number_are_refused(count: int) -> None:
    model = Model(network(), name="toy", preprocessing=PREPROCESSING, classes=[f"c{i}" for i in range(count)])

    with pytest.raises(ModelError, match=f"model 'toy' has {count} class names for 5 class scores"):
        model.predict(torch.zeros(1, 3, 8, 8))


class TestWeightsHash:
    def test_equal_weights_have_equal_hashes(self) -> None:
        assert wrapped().weights_hash == wrapped().weights_hash
        assert len(wrapped().weights_hash) == 64

    @pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "4.bias", "1.num_batches_tracked"])
    def test_one_changed_number_changes_it(self, name: str) -> None:
        model = wrapped()
        before = model.weights_hash
        tensor = model.module.state_dict()[name]
        with torch.no_grad():
            tensor[(0,) * tensor.ndim] += 1
        assert model.weights_hash != before
        assert model.weights_hash != wrapped().weights_hash

    def test_a_replaced_weight_and_loaded_weights_change_it(self) -> None:
        model = wrapped()
        before = model.weights_hash
        model.module[4].weight = nn.Parameter(torch.zeros(5, 4))
        assert model.weights_hash != before
        model.module.load_state_dict(network().state_dict())
        assert model.weights_hash == before

    def test_a_name_changes_it(self) -> None:
        renamed = nn.Sequential(*[nn.Identity(), *network()])
        assert wrapped(renamed).weights_hash != wrapped().weights_hash

    def test_the_memory_format_does_not(self) -> None:
        model = wrapped()
        assert model.module[0].weight.is_contiguous(memory_format=torch.channels_last)
        before = model.weights_hash
        model.module.to(memory_format=torch.contiguous_format)
        assert model.weights_hash == before

    def test_explaining_does_not_compute_it_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = wrapped()
        before = model.weights_hash
        monkeypatch.setattr("xaihub.models.model.hash_state", None)
        with model.untouched():
            model.predict(torch.zeros(1, 3, 8, 8))
        assert model.weights_hash == before

    @pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
    def test_every_kind_of_number_can_be_hashed(self, kind: torch.dtype) -> None:
        assert wrapped(network().to(kind)).weights_hash != wrapped().weights_hash


class TestPredicting:
    def test_it_gives_the_networks_logits_without_a_graph(self) -> None:
        model, inputs = wrapped(), torch.randn(2, 3, 8, 8)
        logits = model.predict(inputs)
        assert torch.allclose(logits, model.module(inputs), atol=1e-6)
        assert not logits.requires_grad
        logits.requires_grad_()  # an inference tensor would refuse
        logits.sum().backward()

    @pytest.mark.parametrize(
        "output",
        [torch.zeros(2, 3, 4), torch.zeros(3), torch.zeros(3, 5), [torch.zeros(2, 5)], {"logits": torch.zeros(2, 5)}],
        ids=lambda value: type(value).__name__,
    )
    def test_an_output_that_is_no_row_of_scores_is_refused(self, output: Any) -> None:
        class Odd(nn.Module):
            def forward(self, _inputs: torch.Tensor) -> Any:
                return output

        with pytest.raises(ModelError, match="model 'toy' returned .* instead of one row of class scores per image"):
            wrapped(Odd()).predict(torch.zeros(2, 3, 8, 8))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_scores_that_are_not_finite_are_refused(self, value: float) -> None:
        model = wrapped()
        with torch.no_grad():
            model.module[4].bias[0] = value
        with pytest.raises(ModelError, match=r"NaN or infinite class scores \(check its weights"):
            model.predict(torch.zeros(1, 3, 8, 8))

    def test_an_image_is_prepared_by_the_models_own_preprocessing(self) -> None:
        inputs, geometry = wrapped().prepare(Image.new("RGB", (8, 8), (255, 0, 0)))
        assert inputs[:, 0, 0].tolist() == [1, -1, -1]
        assert geometry.box() == (0, 0, 8, 8)

    def test_it_shows_its_name_device_and_classes(self) -> None:
        assert repr(wrapped()) == "Model('toy', device='cpu', classes=0)"


class TestUntouched:
    def change(self, model: Model) -> None:
        model.module.train()
        model.module.requires_grad_(True)
        model.module[4].bias.grad = torch.ones(5)
        model.module[0].register_forward_hook(lambda *_: None)

    def test_everything_is_put_back(self) -> None:
        model = wrapped()
        model.module[1].train()
        model.module[4].weight.requires_grad_(False)
        with model.untouched():
            assert not any(part.training for part in model.module.modules())
            assert not any(weight.requires_grad for weight in model.module.parameters())
            self.change(model)
        assert [part.training for part in model.module.modules()] == [False, False, True, False, False, False]
        assert [name for name, weight in model.module.named_parameters() if not weight.requires_grad] == ["4.weight"]
        assert model.module[4].bias.grad is None
        assert not model.module[0]._forward_hooks

    def test_also_after_an_exception(self) -> None:
        model = wrapped()
        with suppress(ZeroDivisionError), model.untouched():
            self.change(model)
            raise ZeroDivisionError
        assert not model.module.training
        assert model.module[4].bias.grad is None
        assert all(weight.requires_grad for weight in model.module.parameters())
        assert not model.module[0]._forward_hooks

    def test_hooks_that_were_there_stay_and_work(self) -> None:
        model, calls = wrapped(), []
        handle = model.module[0].register_forward_hook(lambda *_: calls.append(1))
        with model.untouched():
            self.change(model)
        model.predict(torch.zeros(1, 3, 8, 8))
        assert calls == [1]
        handle.remove()
        assert not model.module[0]._forward_hooks

    def test_it_may_be_nested(self) -> None:
        model = wrapped()
        with model.untouched():
            with model.untouched():
                self.change(model)
            assert not any(weight.requires_grad for weight in model.module.parameters())
        assert all(weight.requires_grad for weight in model.module.parameters())


class TestCounting:
    def test_rows_are_counted_both_ways(self) -> None:
        model, inputs = wrapped(), torch.randn(3, 3, 8, 8, requires_grad=True)
        with model.counting() as counts:
            model.predict(torch.zeros(5, 3, 8, 8))
            assert (counts.forward_passes, counts.backward_passes) == (5, 0)
            model(inputs)[:, 0].sum().backward()
            assert (counts.forward_passes, counts.backward_passes) == (8, 3)
            torch.autograd.grad(model.module(inputs)[:, 1].sum(), inputs)
        assert (counts.forward_passes, counts.backward_passes) == (11, 6)

    def test_nothing_is_counted_outside(self) -> None:
        model = wrapped()
        with model.counting() as counts:
            pass
        model.predict(torch.zeros(1, 3, 8, 8))
        assert counts.forward_passes == 0
        assert not model.module._forward_hooks

    def test_the_hook_is_gone_after_an_exception(self) -> None:
        model = wrapped()
        with pytest.raises(ZeroDivisionError), model.counting():
            raise ZeroDivisionError
        assert not model.module._forward_hooks


@pytest.fixture(scope="module")
def vit() -> Model:
    torch.manual_seed(0)
    module = timm.create_model("test_vit", num_classes=5)
    size = module.pretrained_cfg["input_size"]
    preprocessing = Preprocessing(spatial=[], size=size, mean=(0, 0, 0), std=(1, 1, 1))
    return Model(module, name="vit", preprocessing=preprocessing)


class TestAttention:
    def flags(self, model: Model) -> list[bool]:
        return [part.fused_attn for part in model.module.modules() if hasattr(part, "fused_attn")]

    def test_each_block_gives_probabilities_and_the_logits_stay_the_same(self, vit: Model) -> None:
        inputs = torch.randn(2, *vit.input_size)
        fused = vit.predict(inputs)
        with vit.attention() as maps:
            plain = vit.predict(inputs)
        assert torch.allclose(fused, plain, atol=1e-4)
        assert len(maps) == len(vit.module.blocks)
        tokens = vit.module.pos_embed.shape[1]
        for found in maps:
            assert found.shape == (2, vit.module.blocks[0].attn.num_heads, tokens, tokens)
            assert torch.allclose(found.sum(-1), torch.ones(found.shape[:-1]), atol=1e-5)

    @pytest.mark.parametrize("fail", [lambda: None, lambda: 1 / 0])
    def test_fused_attention_is_switched_back(self, vit: Model, fail: Callable[[], object]) -> None:
        before = self.flags(vit)
        assert before
        assert all(before)
        with suppress(ZeroDivisionError), vit.attention():
            assert not any(self.flags(vit))
            fail()
        assert self.flags(vit) == before
        assert not any(part._forward_hooks for part in vit.module.modules())

    def test_a_block_that_was_not_fused_stays_so(self, vit: Model) -> None:
        vit.module.blocks[0].attn.fused_attn = False
        with vit.attention():
            pass
        assert self.flags(vit)[0] is False
        vit.module.blocks[0].attn.fused_attn = True

    def test_a_network_without_attention_is_refused(self) -> None:
        with pytest.raises(ExplainerRefused, match="model 'toy' has no attention"), wrapped().attention():
            pass


class TestRequests:
    def test_names_of_the_user_come_before_those_of_the_card(self) -> None:
        card = ModelCard(name="x", classes=("a", "b"), num_classes=9)
        assert ModelRequest(name="x", card=card).class_names() == ("a", "b")
        assert ModelRequest(name="x", card=card).num_classes() == 2
        assert ModelRequest(name="x", card=card, classes=("c",)).class_names() == ("c",)

    def test_without_names_the_cards_number_counts(self) -> None:
        request = ModelRequest(name="x", card=ModelCard(name="x", num_classes=9))
        assert request.class_names() is None
        assert request.num_classes() == 9
