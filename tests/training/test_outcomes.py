"""Which epoch is the result, what is refused before a run leaves anything, and what can be trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import toys
from xaihub.errors import ModelError, ParameterError, PluginError
from xaihub.hub import Hub
from xaihub.training import run as service
from xaihub.training.config import checked
from xaihub.training.loop import trainer

Train = Callable[..., service.Outcome]


@pytest.mark.parametrize(("warmup", "chosen"), [(1, 1), (3, 3), (4, 4)])
def test_epochs_before_the_loss_is_whole_are_not_the_best(
    train: Train, monkeypatch: pytest.MonkeyPatch, warmup: int, chosen: int
) -> None:
    monkeypatch.setattr(toys.Noted, "comparable", lambda _self, epoch: epoch >= warmup)
    losses = iter([1.0, 0.5, 2.0, 3.0])
    validate = trainer.Trainer.validate
    monkeypatch.setattr(trainer.Trainer, "validate", lambda *given: {**validate(*given), "val_loss": next(losses)})
    best = train(objective="noted", epochs=4).best["epoch"]
    assert best == (2 if chosen == 1 else chosen)


def test_images_that_are_held_out_are_copied_after_the_objective_agrees(hub: Hub, images: Path, tmp_path: Path) -> None:
    held, refused = tmp_path / "held", checked(toys.plan(images, objective="expo-stability", epochs=1))
    with pytest.raises(ParameterError, match="no epoch is left"):
        service.train(hub, refused, tmp_path / "run", device="cpu", held_out=held)
    assert not held.exists()
    with pytest.raises(ParameterError, match="no image is held out"):
        service.train(hub, checked(toys.plan(images, val=0.0)), tmp_path / "run", device="cpu", held_out=held)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 1, "keep": "last"}, "patience cannot be combined with keep=last"),
        ({"scratch": True, "checkpoint": "w.safetensors"}, "--scratch cannot be combined with --checkpoint"),
        ({"patience": 1, "val": 0.0}, "patience needs validation images"),
    ],
)
def test_settings_that_would_be_without_effect_are_refused(train: Train, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        train(**changes)


def test_figures_of_an_objective_are_on_the_epoch_line_and_the_card_and_become_advice(
    hub: Hub, images: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    plan = checked(toys.plan(images, objective="masked", epochs=3, ema=0.5))
    found = service.train(hub, plan, tmp_path / "run", device="cpu", tell=told.append)
    lines = [text for text in told if text.startswith("epoch ")]
    for record, line in zip(found.history, lines, strict=True):
        assert f"; kept pixels {record['val/kept']:.3g}; factor {record['measured']['factor']:.3g}; " in line
    model = hub.load_model(str(found.card), device="cpu")
    factor = found.best["measured"]["factor"]
    assert factor != 1
    assert model.card.measured == pytest.approx({"kept_pixels": found.best["val/kept"], "factor": factor}, rel=1e-3)
    assert float(model.module.factor) == pytest.approx(factor, rel=1e-6)  # the weights that were saved, an average
    assert told[-1] == f"warning: the factor is {factor:.6f}"


def test_without_figures_the_card_has_none(hub: Hub, images: Path, tmp_path: Path) -> None:
    told: list[str] = []
    plan = checked(toys.plan(images, objective="masked", epochs=1, val=0.0))
    found = service.train(hub, plan, tmp_path / "run", device="cpu", tell=told.append)
    assert hub.load_model(str(found.card), device="cpu").card.measured == {}
    assert told[-1] == "warning: nothing was measured"


def test_a_transformer_is_built_for_the_size_that_is_asked_for(hub: Hub, train: Train) -> None:
    card = train(model="test_vit", size=96, epochs=1, objective="shapley").card
    model = hub.load_model(str(card), device="cpu")
    assert model.input_size == (3, 96, 96)
    assert model.predict(torch.zeros(1, 3, 96, 96)).shape == (1, 2)


def test_a_network_that_an_objective_changed_is_trained_on(hub: Hub, train: Train, tmp_path: Path) -> None:
    first = train("first", objective="masked", parameters={"lambda": "0.25"}, epochs=2)
    again = {"model": str(first.card), "scratch": False, "size": None, "epochs": 1, "lr": 1e-12}
    second = train("second", objective="masked", **again)

    before, after = (hub.load_model(str(outcome.card), device="cpu") for outcome in (first, second))
    assert after.card.objective_options == {"lambda_": 0.25}
    assert after.classes == before.classes
    assert isinstance(after.module, toys.Scaled)
    assert float(after.module.factor) == pytest.approx(float(before.module.factor), abs=1e-6)
    assert second.best["val_accuracy"] == pytest.approx(first.history[-1]["val_accuracy"])

    third = train("third", objective="masked", parameters={"lambda": "0.5"}, **again)
    assert hub.load_model(str(third.card), device="cpu").card.objective_options == {"lambda_": 0.5}
    with pytest.raises(ModelError, match=r"already changed by the objective 'masked' \(use --objective masked"):
        train("other", **again)
    with pytest.raises(ModelError, match=r"changed for its own classes: blue, red \(give data with the same"):
        service.train(
            hub, checked(toys.plan("evidence:60", objective="masked", **again)), tmp_path / "other", device="cpu"
        )


@pytest.mark.parametrize("method", ["wrap", "loss", "epoch_end"])
def test_an_objective_that_leaves_ends_the_training_with_its_name(train: Train, tmp_path: Path, method: str) -> None:
    with pytest.raises(PluginError, match="plugin 'toys', objective 'failing': SystemExit"):
        train(objective="failing", parameters={"at": method})
    if method == "loss":  # what was written before is a run that can be resumed
        with pytest.raises(PluginError, match="objective 'failing'"):
            train(objective="failing", parameters={"at": method}, resume=True)
