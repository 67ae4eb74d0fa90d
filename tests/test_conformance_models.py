"""Adapters and cards with one fault each: the corresponding check fails, and its advice says what to change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import nn

from xaihub import AdapterSpec, Hints, Model, ModelAdapter, ModelCard, ModelError, ModelRequest, Preprocessing, Weights
from xaihub.hub import Hub
from xaihub.models.weights import weights_file
from xaihub.testing.catalogue import run
from xaihub.testing.kit import checks
from xaihub.testing.model_subject import AdapterSubject, ModelSubject


def network() -> nn.Sequential:
    features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class Good(ModelAdapter):
    examples: ClassVar[tuple[str, ...]] = ("toy/cnn",)
    size: ClassVar[int] = 32

    def knows(self, name: str) -> bool:
        return name == "toy/cnn"

    def names(self, pattern: str = "*") -> list[str]:
        return ["toy/cnn"]

    def make(self) -> nn.Module:
        return network()

    def load(self, module: nn.Module, state: dict[str, torch.Tensor]) -> None:
        module.load_state_dict(state)

    def build(self, request: ModelRequest, device: torch.device) -> Model:
        if not self.knows(request.card.architecture):
            raise ModelError(f"there is no toy called {request.card.architecture!r}")
        module = self.make()
        if request.checkpoint is not None:
            self.load(module, load_file(request.checkpoint))
        elif request.card.weights.source == "file":
            self.load(module, load_file(weights_file(request.card)))
        preprocessing = Preprocessing(
            spatial=[lambda image: image.resize((32, 32))],
            size=(3, self.size, self.size),
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        )
        return Model(
            module, name=request.name, preprocessing=preprocessing, hints=Hints(heads=("3",)), card=request.card
        )


class KnowsAll(Good):
    def knows(self, name: str) -> bool:
        return True

    def build(self, request: ModelRequest, device: torch.device) -> Model:
        if request.card.architecture != "toy/cnn":
            raise ModelError("there is no such toy")
        return super().build(request, device)


class LooksUp(Good):
    def build(self, request: ModelRequest, device: torch.device) -> Model:
        assert {"toy/cnn": True}[request.card.architecture]
        return super().build(request, device)


class Broken(Good):
    def make(self) -> nn.Module:
        raise RuntimeError("no toys today")


class NoGrid(Good):
    def make(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.ReLU(), nn.Linear(8, 4))


class ForgetsStatistics(Good):
    def load(self, module: nn.Module, state: dict[str, torch.Tensor]) -> None:
        module.load_state_dict({key: value for key, value in state.items() if "running" not in key}, strict=False)


class LeavesTraining(Good):
    def build(self, request: ModelRequest, device: torch.device) -> Model:
        model = super().build(request, device)
        model.module[1].train()
        model.module.training = True
        return model


class OtherSize(Good):
    size = 48


class SetsThreads(Good):
    def build(self, request: ModelRequest, device: torch.device) -> Model:
        torch.set_anomaly_enabled(not torch.is_anomaly_enabled())
        return super().build(request, device)


class Prints(Good):
    def build(self, request: ModelRequest, device: torch.device) -> Model:
        print("building")  # noqa: T201
        return super().build(request, device)


BAD_ADAPTERS: list[tuple[type[Good], str, str]] = [
    (KnowsAll, "names_are_its_own", "and for no other"),
    (LooksUp, "unknown_architecture_is_refused", "an unknown architecture raised KeyError: raise `xaihub.ModelError`"),
    (Broken, "can_be_built", "no toys today"),
    (SetsThreads, "process_is_left_as_found", "torch's anomaly mode (from False to True): undo"),
    (Prints, "nothing_is_printed", "it printed 'building"),
    (NoGrid, "every_role_resolves", "pass `Hints` for the search"),
    (ForgetsStatistics, "logits_are_unchanged_by_loading", "after saving and loading, the scores differ"),
    (LeavesTraining, "logits_are_unchanged_by_loading", "return it in evaluation mode"),
    (OtherSize, "preprocessing_matches_the_source", "becomes (3, 32, 32) instead of (3, 48, 48): take steps, size"),
]
CARD = ModelCard(name="toy", summary="A toy.", adapter="toy", architecture="toy/cnn", weights=Weights(source="none"))


def failed(kind: Any, subject: Any) -> list[tuple[str, str]]:
    results = [run(item, subject, "toy") for item in checks(kind)]
    return [(result.check, result.advice) for result in results if result.outcome == "failed"]


@pytest.mark.parametrize(
    ("adapter", "check", "advice"), BAD_ADAPTERS, ids=[f"{a.__name__}-{c}" for a, c, _ in BAD_ADAPTERS]
)
def test_a_bad_adapter_fails_one_check_with_advice(adapter: type[Good], check: str, advice: str) -> None:
    with torch.autograd.set_detect_anomaly(False):
        ((found, text),) = failed("adapter", AdapterSubject(AdapterSpec(name="toy"), adapter()))

    assert found == check
    assert advice in text


@pytest.mark.parametrize(
    ("card", "adapter", "check", "advice"),
    [
        (replace(CARD, summary=""), Good, "card_is_complete", "the card has no summary: fill in the card"),
        (CARD, Broken, "can_be_built", "correct names and weights"),
        (replace(CARD, layers={"features": "9"}), Good, "every_role_resolves", "correct the card"),
        (CARD, ForgetsStatistics, "logits_are_unchanged_by_loading", "do not change weights, precision or mode"),
        (CARD, OtherSize, "preprocessing_matches_the_source", "from the source's own configuration"),
    ],
)
def test_a_bad_card_fails_one_check_and_says_what_to_change(
    card: ModelCard, adapter: type[Good], check: str, advice: str
) -> None:
    ((found, text),) = failed("model", ModelSubject(card, adapter()))

    assert found == check
    assert advice in text


def test_weights_with_another_checksum_are_not_built(tmp_path: Any) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"something else")
    weights = Weights(source="file", path="weights.safetensors", sha256="0" * 64, licence="MIT")

    ((found, text),) = failed("model", ModelSubject(replace(CARD, weights=weights, base=str(tmp_path)), Good()))

    assert found == "can_be_built"
    assert "do not match the card" in text


def test_a_card_whose_weights_cannot_be_downloaded_is_not_applicable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "nowhere")
    card = ModelCard(name="far", summary="Far.", architecture="hf-hub:timm/far", weights=Weights(licence="MIT"))
    subject = ModelSubject(card, Hub().adapters.get("timm").load()())

    outcomes = {item.name: run(item, subject, "far") for item in checks("model")}

    assert outcomes["card_is_complete"].outcome == "passed"
    assert outcomes["can_be_built"].outcome == "not applicable"
    assert "its weights are not available on this machine" in outcomes["logits_are_unchanged_by_loading"].advice


def test_the_good_adapter_and_card_pass() -> None:
    assert failed("adapter", AdapterSubject(AdapterSpec(name="toy"), Good())) == []
    assert failed("model", ModelSubject(CARD, Good())) == []


def test_every_check_of_adapters_and_cards_catches_something() -> None:
    caught = {check for _, check, _ in BAD_ADAPTERS} | {"card_is_complete"}

    assert caught == {item.name for kind in ("adapter", "model") for item in checks(kind)}
