"""Networks of unusual kinds: each gives the right map, or one true line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import xaihub
from tests.networks import SIDE, Again, Flips, InPlace, Net, Normalising, Plain, model, noise
from tests.toy_explainers import PARAMETERS, make
from xaihub import Model, ModelError, Preprocessing
from xaihub.errors import ExplainerRefused, InputError, ParameterError, XaihubError

CAMS = ["gradcam", "hirescam", "layercam", "gradcam_pp", "xgradcam", "eigencam", "scorecam", "smoothgradcam_pp"]


def refusal(error: XaihubError) -> str:
    text = str(error)
    assert "\n" not in text
    return text


class TestInPlace:
    @pytest.mark.parametrize(
        "name",
        [*PARAMETERS, "occlusion", "saliency", "integrated_gradients", "gradcam", "eigencam", "convad", "deeplift"],
    )
    def test_a_network_that_overwrites_its_input_gets_a_copy(self, name: str) -> None:
        rows = noise(2)
        before = rows.clone()
        found = make(name).explain(model(InPlace), rows)
        assert torch.equal(rows, before)
        for one, other in zip(found, make(name).explain(model(Normalising), rows), strict=True):
            assert torch.allclose(one.values, other.values, rtol=1e-5, atol=1e-7)
            assert one.target == other.target

    @pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
    def test_calls_and_predictions_leave_the_input_unchanged(self, order: torch.memory_format) -> None:
        rows = noise(2).contiguous(memory_format=order)
        before, one = rows.clone(), model(InPlace)
        assert torch.equal(one(rows).detach(), one.predict(rows))
        assert torch.equal(rows, before)


class TestRepeatedLayers:
    @pytest.mark.parametrize("name", CAMS)
    def test_a_layer_of_which_no_call_sees_everything_is_refused(self, name: str) -> None:
        inputs = torch.zeros(1, 3, SIDE, SIDE)
        inputs[..., : SIDE // 2, : SIDE // 4] = 1  # the evidence is in the upper left
        values = make(name, layer="features").explain(model(Plain), inputs, 0)[0].values[0]
        assert values[:, : SIDE // 2].sum() > 0.95 * values.sum()
        with pytest.raises(ParameterError, match="'features' is called 2 times per forward pass"):
            make(name, layer="features").explain(model(Flips), inputs, 0)
        with pytest.raises(ExplainerRefused, match="'features' is called 2 times.*use a black-box explainer") as caught:
            make(name).explain(model(Flips), inputs, 0)
        assert "name a layer" not in refusal(caught.value)  # there is none

    def test_the_last_call_counts_if_everything_passes_through_it(self) -> None:
        once = Again()
        torch.manual_seed(0)
        one = model(once)
        assert one.layer().name == "act"
        found = make("gradcam").explain(one, noise())[0]
        expected = make("gradcam").explain(model(_Unrolled(once)), noise())[0]
        assert torch.allclose(found.values, expected.values, atol=1e-7)


class _Unrolled(nn.Module):
    def __init__(self, network: Again) -> None:
        super().__init__()
        self.convs, self.head = network.convs, network.head
        self.acts = nn.ModuleList([nn.ReLU(), nn.ReLU()])

    def forward(self, inputs: Tensor) -> Tensor:
        for conv, act in zip(self.convs, self.acts, strict=True):
            inputs = act(conv(inputs))
        logits: Tensor = self.head(inputs.mean((2, 3)))
        return logits


class _Block(nn.Module):
    """Returns its map inside another object."""

    def __init__(self, kind: str, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(inputs, outputs, 3, 2, 1)

    def forward(self, given: Any) -> Any:
        cells = self.conv(_unpacked(given)).relu()
        size = tuple(cells.shape[2:])
        return {"tuple": (cells, size), "list": [size, cells], "dict": {"size": size, "cells": cells}, "": cells}[
            self.kind
        ]


def _unpacked(given: Any) -> Tensor:
    items = given.values() if isinstance(given, dict) else given if isinstance(given, (tuple, list)) else [given]
    return next(item for item in items if isinstance(item, Tensor))


class _Packed(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second = _Block(kind, 3, 8), _Block(kind, 8, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(_unpacked(self.second(self.first(inputs))).mean((2, 3)))
        return logits


def packed(kind: str) -> Model:
    torch.manual_seed(0)
    return model(_Packed(kind))


class TestPackedOutputs:
    @pytest.mark.parametrize("name", CAMS)
    @pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
    def test_maps_inside_other_objects_are_found_and_explained(self, kind: str, name: str) -> None:
        one = packed(kind)
        assert one.layer().name == "second"
        found, expected = make(name).explain(one, noise())[0], make(name).explain(packed(""), noise())[0]
        assert torch.allclose(found.values, expected.values, atol=1e-7)
        assert float(found.values.abs().max()) > 0

    @pytest.mark.parametrize(
        ("name", "layer"), [("mvitv2_tiny", "stages.3"), ("tnt_s_legacy_patch16_224", "blocks.10")]
    )
    def test_blocks_of_transformers_that_return_tuples(self, name: str, layer: str) -> None:
        torch.manual_seed(0)
        one = xaihub.Hub().load_model(name, scratch=True)
        assert one.layer().name == layer
        assert one.layer().depth > 0.8

    def test_a_layer_at_the_start_is_worth_a_warning(self) -> None:
        class Branches(Net):
            def __init__(self) -> None:
                super().__init__()
                self.sides = nn.ModuleList([nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU()) for _ in range(4)])

            def forward(self, inputs: Tensor) -> Tensor:
                cells = self.body(inputs)
                logits: Tensor = self.head(sum(side(cells).mean((2, 3)) for side in self.sides))
                return logits

        one = model(Branches)
        (warning,) = make("gradcam").explain(one, noise())[0].warnings
        assert warning.startswith("layer 'body' comes after only 29% of the network")
        assert make("gradcam", layer="sides.0").explain(one, noise())[0].warnings == []


class _Interacting(Net):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs - inputs.mean(0))


class _Noisy(Net):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(functional.dropout(inputs, 0.1, training=True))


class _AlwaysDropping(Net):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.drop.training = True
        return self


def without_statistics() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


class TestRows:
    def test_batch_normalisation_without_running_statistics_is_refused(self) -> None:
        with pytest.raises(ModelError, match=r"layer '1' \(BatchNorm2d\) of model 'mine' has no running statistics"):
            model(without_statistics())
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        network[1].running_mean = network[1].running_var = None
        with pytest.raises(ModelError, match="no running statistics"):
            model(network)
        model(nn.Sequential(nn.InstanceNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))  # within one image

    def test_dropout_that_eval_leaves_on_is_refused(self) -> None:
        with pytest.raises(ModelError, match=r"layer 'drop' \(Dropout\) of model 'mine' stays active"):
            model(_AlwaysDropping)

    @pytest.mark.parametrize("name", ["rise", "gradcam"])
    def test_interacting_rows_and_random_scores_are_refused(self, name: str) -> None:
        with pytest.raises(ModelError, match="other scores for an image when another image is in the same batch"):
            make(name).explain(model(_Interacting), noise())
        with pytest.raises(ModelError, match="different scores for the same image: dropout or noise"):
            make(name).explain(model(_Noisy), noise())

    def test_the_check_runs_once_and_is_not_counted(self) -> None:
        calls = []

        class Counted(Net):
            def forward(self, inputs: Tensor) -> Tensor:
                calls.append(len(inputs))
                return super().forward(inputs)

        one = model(Counted)
        assert make("saliency").explain(one, noise())[0].metadata["forward_passes"] == 1
        first = len(calls)
        make("saliency").explain(one, noise())
        assert len(calls) - first == 2  # the prediction and the method's own pass

    def test_a_network_for_single_images_is_not_refused(self) -> None:
        class Single(Net):
            def forward(self, inputs: Tensor) -> Tensor:
                return super().forward(inputs).reshape(1, 5)

        assert make("gradcam").explain(model(Single), noise())[0].values.abs().max() > 0

    def test_a_network_that_cannot_be_run_is_one_line(self) -> None:
        with pytest.raises(ModelError, match="'mine' cannot be run on an input of 3x64x64: RuntimeError") as caught:
            make("saliency").explain(model(nn.Sequential(nn.Flatten(), nn.Linear(7, 5))), noise())
        refusal(caught.value)


class TestProbabilities:
    def test_a_softmax_in_the_model_is_noted(self) -> None:
        torch.manual_seed(0)
        one = model(nn.Sequential(Net(), nn.Softmax(1)))
        for name in ("gradcam", "saliency", "rise"):
            (warning,) = make(name).explain(one, noise())[0].warnings
            assert "outputs are probabilities already" in warning
            assert make(name).explain(model(), noise())[0].warnings == []


class TestInputs:
    def test_an_image_for_a_model_of_four_channels_is_one_line(self) -> None:
        preprocessing = Preprocessing(spatial=[], size=(4, 8, 8), mean=(0.5,) * 4, std=(0.5,) * 4)
        network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        one = Model(network, name="satellite", preprocessing=preprocessing)
        with pytest.raises(InputError, match="has 3 channels, but the model takes 4"):
            xaihub.explain(np.zeros((8, 8, 3), dtype=np.uint8), model=one, explainer="saliency")

    def test_options_that_an_architecture_refuses_are_one_line(self) -> None:
        for name in ("resnet18", "torchvision/resnet18"):
            with pytest.raises(ModelError) as caught:
                xaihub.load_model(name, options={"width_per_group": "wide"}, device="cpu")
            assert name.split("/")[-1] in refusal(caught.value)

    def test_a_layer_that_the_user_named_is_recorded_as_such(self) -> None:
        one = xaihub.load_model("efficientnet_lite0", layer="blocks.4", device="cpu")
        found = xaihub.explain(model=one, explainer="gradcam")
        assert found.metadata["layer"].endswith("blocks.4 (NCHW, 14x14 cells, 112 channels): named by the user")
