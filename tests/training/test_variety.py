"""How training images vary (balanced drawing, RandAugment, mixup, CutMix), rates by layer, trackers, and one GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.training import toys
from xaihub import Losses, Preprocessing, Step
from xaihub.errors import ModelError, ParameterError, TrainingError
from xaihub.hub import Hub
from xaihub.training import run as service
from xaihub.training import setup
from xaihub.training.config import Config, checked
from xaihub.training.data.augmentation import Augmentation
from xaihub.training.data.loaders import Batch, Order, balancing
from xaihub.training.loop.optimizer import weight_groups
from xaihub.training.loop.parallel import every_weight_is_used
from xaihub.training.loop.trainer import Trainer

Train = Callable[..., service.Outcome]


def plan(**changes: Any) -> Config:
    return checked(toys.plan("digits", **changes))


def test_balanced_drawing_makes_rare_classes_as_frequent_as_others() -> None:
    labels = [0] * 900 + [1] * 90 + [2] * 10
    order = Order(count=1000, batch=100, accumulate=1, seed=0, weights=balancing(labels))
    drawn = [labels[row] for epoch in range(10) for step in order.epoch(epoch) for rows, _ in step for row in rows]
    assert len(drawn) == 10_000
    # Six standard deviations of a binomial distribution.
    assert all(abs(count - 10_000 / 3) < 6 * 47.2 for count in Counter(drawn).values())
    assert order.epoch(3, start=2) == order.epoch(3)[2:]
    assert order.epoch(3) != order.epoch(4)


def test_a_balanced_run_can_be_resumed(train: Train, tmp_path: Path) -> None:
    train("whole", balance=True, val=0.0)
    train("half", balance=True, val=0.0, epochs=1, schedule="constant", warmup=0.0)
    assert load_file(tmp_path / "whole/weights.safetensors").keys()
    toys.SEEN.clear()
    train("seen", balance=True, objective="noted", epochs=1)
    assert {int(label) for _, labels in toys.SEEN for label in labels} == {0, 1}


def strong(**changes: Any) -> Augmentation:
    preprocessing = Preprocessing(spatial=[], size=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
    given = {"crop": False, "randaugment": "rand-m9-mstd0.5-inc1-p1", **changes}
    return Augmentation(preprocessing=preprocessing, seed=0, min_crop=0.5, flip=True, **given)


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("crop", [False, True])
def test_randaugment_is_fixed_by_seed_epoch_and_image_alone(crop: bool) -> None:
    augmentation, image = strong(crop=crop), photo()
    first = augmentation(image, 2, 5)
    np.random.seed(7)
    state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    assert torch.equal(augmentation(image, 2, 5), first)
    assert np.array_equal(np.random.get_state()[1], state)  # type: ignore[index]
    assert torch.equal(strong(crop=crop)(image, 2, 5), first)
    assert any(not torch.equal(augmentation(image, epoch, 5), first) for epoch in (3, 4))
    if crop:
        assert not torch.equal(strong(crop=crop, randaugment=None)(image, 2, 5), first)


def test_without_crops_images_are_only_distorted() -> None:
    augmentation, image = strong(), photo()
    plain = augmentation.preprocessing(image)[0]
    found = [augmentation(image, epoch, 0) for epoch in range(8)]
    assert all(one.shape == plain.shape for one in found)
    assert sum(torch.equal(one, plain) for one in found) < 4


@pytest.mark.parametrize("text", ["strong", "rand-m9-zz3", "augmix-m3"])
def test_a_description_that_timm_cannot_read_is_refused(train: Train, tmp_path: Path, text: str) -> None:
    with pytest.raises(ParameterError, match=f"randaugment cannot be '{text}'"):
        train(randaugment=text)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def soft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys.Noted, "soft_labels", True)
    toys.SEEN.clear()


@pytest.mark.usefixtures("soft")
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_are_mixed_as_the_images_are(train: Train, kind: str) -> None:
    train(objective="noted", epochs=1, augment=False, batch_size=7, seed=3)
    plain = list(toys.SEEN)
    toys.SEEN.clear()
    train("mixed", objective="noted", epochs=1, augment=False, batch_size=7, seed=3, **{kind: 1.0})
    assert len(toys.SEEN) == len(plain) == 2
    for (images, labels), (mixed, soft) in zip(plain, toys.SEEN, strict=True):
        hard = F.one_hot(labels, 2).float()
        assert torch.allclose(soft.sum(1), torch.ones(7))
        assert torch.equal(mixed[6], images[6])  # one of an odd number has no partner
        assert torch.equal(soft[6], hard[6])
        partner, apart = images[:6].flip(0), labels[:6] != labels[:6].flip(0)
        if kind == "mixup":
            # The weight of the own image, recovered from the pixels.
            change = images[:6] - partner
            weight = ((mixed[:6] - partner) * change).flatten(1).sum(1) / change.square().flatten(1).sum(1)
        else:
            weight = (mixed[:6] == images[:6]).all(1).float().mean((1, 2))
        expected = weight.unsqueeze(1) * hard[:6] + (1 - weight.unsqueeze(1)) * hard[:6].flip(0)
        assert torch.allclose(soft[:6][apart], expected[apart], atol=2e-3)


def test_mixed_images_change_the_weights_the_same_way_each_time(train: Train, tmp_path: Path) -> None:
    for name, values in (("a", {"mixup": 0.4, "cutmix": 1.0}), ("b", {"mixup": 0.4, "cutmix": 1.0}), ("c", {})):
        train(name, epochs=1, **values)
    one, two, plain = (load_file(tmp_path / f"{name}/weights.safetensors") for name in "abc")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], plain[name]) for name in one)


def test_an_objective_that_needs_one_class_per_image_refuses_mixed_ones(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="'masked' needs one class per image, so mixup and cutmix do not apply"):
        train(objective="masked", mixup=0.2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [{"mixup": 0.2}, {"randaugment": "rand-m5"}])
def test_features_of_images_that_vary_are_not_kept(
    train: Train, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    kept: list[object] = []
    monkeypatch.setattr(setup, "cache_features", lambda *given, **_options: kept.append(given))
    train(freeze=True, epochs=1, **change)
    assert kept == []
    train("plain", freeze=True, epochs=1)
    assert len(kept) == 1


@pytest.mark.parametrize("text", ["rand-m10-inc1-p1-n4", "rand-m1-p1-n4"])
def test_every_magnitude_works(text: str) -> None:
    augmentation, image = strong(randaugment=text), photo()
    assert all(bool(augmentation(image, epoch, 0).isfinite().all()) for epoch in range(40))


def test_rates_fall_with_the_distance_from_the_output() -> None:
    network = timm.create_model("test_vit", num_classes=10)
    groups = weight_groups(network, [], network.head, plan(lr=0.1, head_lr_scale=10, layer_decay=0.5))
    rate = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    depth = len(network.blocks)
    assert len(rate) == len(list(network.parameters()))
    assert rate[id(network.head.weight)] == pytest.approx(1.0)
    blocks = [rate[id(block.attn.qkv.weight)] for block in network.blocks]
    assert blocks[1:] == pytest.approx([2 * earlier for earlier in blocks[:-1]])
    assert rate[id(network.patch_embed.proj.weight)] == pytest.approx(blocks[0] / 2)
    assert rate[id(network.norm.weight)] <= 0.1
    assert blocks[-1] == pytest.approx(rate[id(network.patch_embed.proj.weight)] * 2**depth)


def test_rates_by_layer_need_layers_that_timm_knows() -> None:
    with pytest.raises(ModelError, match="layer_decay needs a network whose layers timm knows"):
        weight_groups(nn.Sequential(nn.Linear(2, 2)), [], None, plan(layer_decay=0.5))


def test_rates_by_layer_reach_a_network_inside_another(train: Train) -> None:
    outcome = train(objective="masked", layer_decay=0.5, epochs=1)
    assert outcome.history[0]["lr"] < 1e-3


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Let a tracker that only remembers stand in for wandb, which needs an account."""
    events: list[tuple[str, Any]] = []

    class Remembering(GeneralTracker):
        name = "wandb"
        requires_logging_directory = False
        main_process_only = True

        def __init__(self, run_name: str, **options: Any) -> None:
            super().__init__()
            events.append(("project", (run_name, options)))

        @property
        def tracker(self) -> None:
            return None

        def store_init_configuration(self, values: Mapping[str, Any]) -> None:
            events.append(("plan", values))

        def log(self, values: Mapping[str, Any], step: int | None = None, **_options: Any) -> None:
            events.append(("log", (step, values)))

        def finish(self) -> None:
            events.append(("finish", None))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Remembering)
    for module in (tracking, setup):
        monkeypatch.setattr(module, "get_available_trackers", lambda: [LoggerType.WANDB])
    return events


def test_a_tracker_gets_the_plan_and_the_numbers_of_each_epoch(train: Train, tracker: list[tuple[str, Any]]) -> None:
    outcome = train(logger="wandb")
    kinds = [kind for kind, _ in tracker]
    assert kinds == ["project", "plan", "log", "log", "finish"]
    events = dict(tracker)
    assert events["project"] == ("xaihub", {"name": "run"})
    assert events["plan"]["lr"] == 1e-3
    step, values = tracker[2][1]
    assert step == 1
    assert values["val/accuracy"] == outcome.history[0]["val_accuracy"]
    assert values["train/cross_entropy"] == outcome.history[0]["train/cross_entropy"]
    assert all(isinstance(value, int | float) for value in values.values())


def test_a_tracker_that_cannot_be_started_is_one_line(
    train: Train, tracker: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("no login")

    monkeypatch.setattr(tracking.LOGGER_TYPE_TO_CLASS["wandb"], "store_init_configuration", refused)
    with pytest.raises(TrainingError, match="the tracker 'wandb' cannot be started: no login"):
        train(logger="wandb")


class Rows:
    """One step of three rows."""

    def epoch(self, epoch: int, start: int = 0) -> Any:
        yield [Batch(inputs=torch.randn(3, 4), labels=torch.zeros(3, dtype=torch.long), fraction=1.0)]


def test_processes_search_for_unused_weights_only_where_there_can_be_some() -> None:
    used = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    assert every_weight_is_used(used, used.parameters(), Rows())  # type: ignore[arg-type]
    idle = nn.Linear(3, 3)
    assert not every_weight_is_used(used, [*used.parameters(), *idle.parameters()], Rows())  # type: ignore[arg-type]
    assert all(weight.grad is None for weight in used.parameters())


class Quiet(toys.Noted):
    """Cross-entropy that reports a number without waiting for it."""

    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        logits = network(inputs)
        cost = F.cross_entropy(logits.float(), labels)
        return Losses(terms={"cross_entropy": cost}, logits=logits, notes={"confidence": logits.softmax(1).max()})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_on_a_gpu_does_not_wait_for_it(
    hub: Hub, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toys.Noted, "loss", Quiet.loss)
    step = Trainer._step

    def watched(*given: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_step", watched)
    settings = checked(toys.plan(images, objective="noted", ema=0.9, epochs=2))
    assert len(service.train(hub, settings, tmp_path / "run", device="cuda").history) == 2
