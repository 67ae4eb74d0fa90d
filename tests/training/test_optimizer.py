"""Groups of weights, schedules, heads and random crops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from tests.training import toys
from xaihub import Group, Model, ModelError, Preprocessing
from xaihub.training.config import Config, checked
from xaihub.training.data.augmentation import Augmentation
from xaihub.training.data.loaders import Order
from xaihub.training.head import find_head, with_classes
from xaihub.training.loop.optimizer import make_optimizer, make_schedule, weight_groups


def plan(**changes: Any) -> Config:
    return checked(toys.plan("digits", **changes))


def model_of(module: nn.Module, classes: int = 10) -> Model:
    preprocessing = Preprocessing(spatial=[], size=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
    return Model(module, name="toy", preprocessing=preprocessing, classes=[str(i) for i in range(classes)])


def test_norms_and_biases_are_not_decayed_and_the_head_learns_faster() -> None:
    network = timm.create_model("test_vit", num_classes=10)
    special = network.norm.weight
    own = [Group(weights=[special], lr_scale=7.0, weight_decay=0.3)]
    groups = weight_groups(network, own, network.head, plan(lr=0.1, head_lr_scale=10, weight_decay=0.05))

    found = {id(weight): (group["lr"], group["weight_decay"]) for group in groups for weight in group["params"]}
    assert len(found) == len(list(network.parameters()))
    assert found[id(special)] == (pytest.approx(0.7), 0.3)
    assert found[id(network.head.weight)] == (pytest.approx(1.0), 0.05)
    assert found[id(network.head.bias)] == (pytest.approx(1.0), 0.0)
    assert found[id(network.blocks[0].attn.qkv.weight)] == (0.1, 0.05)
    assert found[id(network.blocks[0].norm1.weight)] == (0.1, 0.0)
    assert found[id(network.pos_embed)] == (0.1, 0.0)  # the network itself exempts it
    assert found[id(network.cls_token)] == (0.1, 0.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 0.05),
        ({"optimizer": "sgd"}, 5e-4),
        ({"optimizer": "sgd", "weight_decay": 0.05}, 0.05),
        ({"weight_decay": 0.0}, 0.0),
    ],
    ids=["adamw", "sgd", "sgd, given", "none"],
)
def test_each_optimiser_has_a_weight_decay_that_suits_it_unless_one_is_given(
    changes: dict[str, Any], expected: float
) -> None:
    network = nn.Sequential(nn.Linear(2, 2))

    optimizer = make_optimizer(weight_groups(network, [], None, plan(**changes)), plan(**changes))

    decays = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert decays == {id(network[0].weight): expected, id(network[0].bias): 0.0}


def test_a_group_may_take_its_rate_beside_that_of_the_head() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    own = [Group(weights=[network[0].weight], lr_scale=3.0, like_head=True)]
    settings = plan(lr=0.1, head_lr_scale=10)

    rates = []
    for head in (network[1], None):  # without a head there is no rate of its own
        groups = weight_groups(network, own, head, settings)
        found = {id(weight): group["lr"] for group in groups for weight in group["params"]}
        rates.append(found[id(network[0].weight)])

    assert rates == [pytest.approx(3.0), pytest.approx(0.3)]


def test_weights_that_do_not_learn_are_in_no_group() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    groups = weight_groups(network, [], None, plan())
    assert {id(weight) for group in groups for weight in group["params"]} == {id(w) for w in network[1].parameters()}


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_optimiser_is_the_one_named(name: str, kind: type) -> None:
    optimizer = make_optimizer([{"params": [nn.Parameter(torch.ones(2))]}], plan(optimizer=name))
    assert isinstance(optimizer, kind)
    assert optimizer.defaults.get("momentum", 0.9) == 0.9


def rates(total: int, **changes: Any) -> list[list[float]]:
    weights = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in (1.0, 10.0)]
    config = plan(lr=1.0, **changes)
    optimizer = make_optimizer(weights, config)
    schedule = make_schedule(optimizer, config, total)
    found = []
    for number in range(1, total + 1):
        schedule.step_update(number)
        found.append([group["lr"] for group in optimizer.param_groups])
    return found


def test_the_cosine_schedule_rises_then_falls_to_nothing_after_the_last_step() -> None:
    found = rates(20, schedule="cosine", warmup=0.25)
    expected = [number / 5 for number in range(1, 5)]
    expected += [0.5 * (1 + math.cos(math.pi * place / 16)) for place in range(16)]
    assert [rate for rate, _ in found] == pytest.approx(expected)
    assert [other for _, other in found] == pytest.approx([10 * rate for rate in expected])


def test_the_step_schedule_falls_tenfold_twice() -> None:
    found = [rate for rate, _ in rates(30, schedule="step", warmup=0.0)]
    assert found == pytest.approx([1.0] * 9 + [0.1] * 10 + [0.01] * 10 + [0.001])


def test_the_constant_schedule_is_constant_after_its_rise() -> None:
    assert [rate for rate, _ in rates(10, schedule="constant", warmup=0.2)] == pytest.approx([0.5] + [1.0] * 9)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet"])
def test_a_head_for_another_number_of_classes(name: str) -> None:
    model = model_of(timm.create_model(name, num_classes=10, **({"img_size": 32} if "vit" in name else {})))
    before = {key: value.clone() for key, value in model.module.state_dict().items()}

    changed = with_classes(model, ("a", "b", "c"), seed=3)

    assert changed.classes == ("a", "b", "c")
    assert changed.predict(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    after = changed.module.state_dict()
    names = {key for key, value in after.items() if before[key].shape != value.shape}
    own = {id(weight) for weight in find_head(changed).parameters()}
    assert {id(weight) for key, weight in changed.module.named_parameters() if key in names} == own
    assert all(torch.equal(after[key], before[key]) for key in set(after) - names)


def test_a_head_for_as_many_classes_is_kept() -> None:
    model = model_of(timm.create_model("test_resnet", num_classes=10))
    weight = find_head(model).weight
    assert find_head(with_classes(model, tuple("abcdefghij"), seed=0)).weight is weight


def test_a_new_head_is_fixed_by_the_seed() -> None:
    made = [
        find_head(
            with_classes(model_of(timm.create_model("test_resnet", num_classes=10)), ("a", "b"), seed=seed)
        ).weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_the_last_linear_layer_of_a_network_without_a_name_for_it_is_replaced() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(3072, 5, bias=False), nn.ReLU(), nn.Linear(5, 10)))
    changed = with_classes(model_of(network), ("a", "b"), seed=0)
    assert find_head(changed) is network[1][2]
    assert network[1][2].out_features == 2


def test_a_network_without_a_classifier_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten())
    with pytest.raises(ModelError, match="no linear classifier that could be replaced"):
        with_classes(model_of(network), ("a", "b"), seed=0)
    with pytest.raises(ModelError, match="no single classifier"):
        find_head(model_of(network))


@pytest.fixture
def crop() -> Augmentation:
    preprocessing = Preprocessing(
        spatial=[], size=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, description={"interpolation": "bicubic"}
    )
    return Augmentation(preprocessing=preprocessing, seed=0, min_crop=0.3, flip=True)


def test_crops_are_fixed_by_seed_epoch_and_image_alone(crop: Augmentation) -> None:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    torch.manual_seed(1)
    first = crop(image, 2, 5)
    state = torch.get_rng_state()
    torch.manual_seed(99)

    assert torch.equal(crop(image, 2, 5), first)
    assert not torch.equal(crop(image, 3, 5), first)
    assert not torch.equal(crop(image, 2, 6), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (3, 16, 16)


def test_crops_are_in_the_units_of_the_model(crop: Augmentation) -> None:
    grey = Image.new("RGB", (30, 30), (255, 128, 0))
    found = crop(grey, 0, 0)
    assert found.mean((1, 2)).tolist() == pytest.approx([2.0, (128 / 255 - 0.5) / 0.25, -2.0], abs=1e-5)


def test_half_of_the_crops_are_mirrored(crop: Augmentation) -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (60, 1, 3)))
    rising = [bool(crop(ramp, epoch, 0)[0, 0].diff().mean() > 0) for epoch in range(200)]
    assert 70 < sum(rising) < 130


def test_batches_of_all_processes_and_accumulations_hold_each_row_once() -> None:
    whole = Order(count=50, batch=16, accumulate=1, seed=0).epoch(3)
    halves = Order(count=50, batch=8, accumulate=2, seed=0).epoch(3)
    ranks = [Order(count=50, batch=16, accumulate=1, seed=0, rank=rank, world=3).epoch(3) for rank in range(3)]

    assert [len(step) for step in whole] == [1, 1, 1]
    assert [share for step in whole for _, share in step] == [1, 1, 1]
    for number, step in enumerate(whole):
        rows = step[0][0]
        assert [row for part, _ in halves[number] for row in part] == rows
        assert sorted(row for rank in ranks for row in rank[number][0][0]) == sorted(rows)
        # The mean over processes of each one's mean over rows, times its share, is the mean over all rows.
        assert sum(rank[number][0][1] for rank in ranks) / 3 == pytest.approx(1)
    assert len({row for step in whole for row in step[0][0]}) == 48
    assert whole[1:] == Order(count=50, batch=16, accumulate=1, seed=0).epoch(3, start=1)
    assert whole != Order(count=50, batch=16, accumulate=1, seed=0).epoch(4)


def test_fewer_rows_than_a_step_takes_are_one_step() -> None:
    step = Order(count=5, batch=3, accumulate=4, seed=0).epoch(0)
    assert [[len(rows) for rows, _ in batches] for batches in step] == [[2, 3]]
    assert [share for _, share in step[0]] == pytest.approx([0.4, 0.6])


def test_what_a_network_exempts_is_exempt_inside_another_as_well() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm.create_model("test_vit", num_classes=10)

    network = Wrapped()
    groups = weight_groups(network, [], None, plan(weight_decay=0.05))
    decay = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    assert decay[id(network.backbone.pos_embed)] == decay[id(network.backbone.cls_token)] == 0
    assert decay[id(network.backbone.head.weight)] == 0.05


@pytest.mark.parametrize(("count", "batch", "sizes"), [(33, 8, [6, 7, 6, 7, 7]), (32, 8, [8, 8, 8, 8]), (9, 16, [9])])
def test_a_step_of_all_rows_has_batches_as_alike_as_can_be(count: int, batch: int, sizes: list[int]) -> None:
    (step,) = Order(count=count, batch=batch, accumulate=8, seed=0).epoch(0)
    assert [len(rows) for rows, _ in step] == sizes
    assert sum(share for _, share in step) == pytest.approx(1)
    assert sorted(row for rows, _ in step for row in rows) == list(range(count))
