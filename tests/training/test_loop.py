"""The loop: what it learns, what it keeps, where it stops."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.training import toys
from xaihub.errors import InputError, MissingExtra, ModelError, OutputError, ParameterError, TrainingError
from xaihub.hub import Hub
from xaihub.models import saving as checkpoints
from xaihub.training import run as service
from xaihub.training import setup
from xaihub.training.config import checked
from xaihub.training.data.images import readable, split
from xaihub.training.data.sources import open_images
from xaihub.training.loop import trainer
from xaihub.training.loop.checkpoint import Checkpoint

Train = Callable[..., service.Outcome]


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "weights.safetensors")
    return found


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def farthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def test_it_learns_and_leaves_a_run_behind(train: Train, tmp_path: Path) -> None:
    outcome = train(epochs=12, lr=3e-3, head_lr_scale=1.0, save_every=0)

    files = {path.name for path in (tmp_path / "run").iterdir() if path.name != ".lock"}
    assert files == {"card.yaml", "weights.safetensors", "checkpoint.safetensors", "log.csv", "config.yaml"}
    assert outcome.history[-1]["train_loss"] < outcome.history[0]["train_loss"]
    assert max(record["val_accuracy"] for record in outcome.history) == 1.0
    with (tmp_path / "run/log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in rows] == [record["train_loss"] for record in outcome.history]
    assert [float(row["val_loss"]) for row in rows] == [record["val/cross_entropy"] for record in outcome.history]


def test_a_network_that_writes_to_its_input_leaves_the_inputs_of_the_loss_alone(train: Train) -> None:
    assert len(train(objective="overwriting", epochs=1).history) == 1


def test_the_same_seed_gives_the_same_weights_and_another_one_others(train: Train, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(hash(name))
        train(name, seed=seed)
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not equal(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_accumulated_batches_are_as_one(train: Train, tmp_path: Path) -> None:
    vit = {"model": "test_vit", "size": None, "optimizer": "sgd", "lr": 0.01}
    train("one", batch_size=16, **vit)
    train("two", batch_size=8, accumulate=2, **vit)
    train("start", batch_size=16, **{**vit, "lr": 1e-12})
    moved = farthest(weights(tmp_path / "one"), weights(tmp_path / "start"))
    assert moved > 1e-3
    assert farthest(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-3 * moved


def test_objectives_see_crops_drawn_before_anything_is_hidden(train: Train) -> None:
    toys.SEEN.clear()
    train("a", objective="noted", epochs=1)
    cropped = torch.cat([inputs for inputs, _ in toys.SEEN])
    toys.SEEN.clear()
    train("b", objective="noted", epochs=1, augment=False)
    plain = torch.cat([inputs for inputs, _ in toys.SEEN])
    # test_resnet's own normalisation, of pixels in [0, 1].
    assert -2 <= float(plain.min()) < float(plain.max()) <= 2.7
    assert not torch.equal(cropped, plain)


def test_frozen_training_with_kept_features_is_training_with_a_frozen_backbone(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = train("kept", freeze=True, epochs=3)
    toys.SEEN.clear()
    train("noted", freeze=True, epochs=1, objective="noted")
    assert {inputs.ndim for inputs, _ in toys.SEEN} == {2}

    asked: list[object] = []
    monkeypatch.setattr(setup, "cache_features", lambda *arguments, **_options: asked.append(arguments))
    read = train("read", freeze=True, epochs=3)
    assert len(asked) == 1
    start = train("start", epochs=1, lr=1e-12, freeze=True)

    assert farthest(weights(tmp_path / "kept"), weights(tmp_path / "read")) < 1e-6
    assert kept.best["val_loss"] == pytest.approx(read.best["val_loss"], rel=1e-5)
    assert start.card.exists()
    changed = {
        name
        for name, value in weights(tmp_path / "kept").items()
        if not torch.allclose(value, weights(tmp_path / "start")[name], atol=1e-9)
    }
    assert changed == {"fc.weight", "fc.bias"}


def test_an_objective_that_changes_its_inputs_reads_images_also_when_frozen(train: Train, tmp_path: Path) -> None:
    train("run", freeze=True, objective="masked", epochs=1)
    train("start", freeze=True, objective="masked", epochs=1, lr=1e-12)
    one, other = weights(tmp_path / "run"), weights(tmp_path / "start")
    changed = {name for name in one if not torch.allclose(one[name], other[name], atol=1e-9)}
    assert changed == {"inner.fc.weight", "inner.fc.bias"}


def test_batch_norm_statistics_can_be_kept(train: Train, tmp_path: Path) -> None:
    train("kept", freeze_norm=True)
    train("moved")
    assert float(weights(tmp_path / "kept")["bn1.running_mean"].abs().max()) == 0
    assert float(weights(tmp_path / "moved")["bn1.running_mean"].abs().max()) > 0


def test_averaged_weights_are_the_result(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[Tensor] = []

    class Spy(trainer.ModelEmaV3):
        def update(self, model: nn.Module, step: int) -> None:
            passed.append(model.state_dict()["fc.weight"].double().clone())
            super().update(model, step=step)

    monkeypatch.setattr(trainer, "ModelEmaV3", Spy)
    train(keep="last", epochs=4, ema=0.6)

    average = passed[0]
    for number, weight in enumerate(passed):
        # The decay of the average grows to its limit, so that the random start is soon forgotten.
        decay = min(1 - max(number, 1) ** (-2 / 3), 0.6) if number else 0.0
        average = decay * average + (1 - decay) * weight
    assert torch.allclose(weights(tmp_path / "run")["fc.weight"].double(), average, atol=1e-6)
    assert not torch.allclose(average, passed[-1], atol=1e-4)


def test_the_best_epoch_is_kept_and_training_stops_early(train: Train, tmp_path: Path) -> None:
    # Under such a rate it never improves for long.
    outcome = train("early", epochs=30, lr=0.5, patience=2, schedule="constant", warmup=0.0)
    losses = [record["val_loss"] for record in outcome.history]
    assert outcome.early
    assert len(losses) < 30
    assert outcome.best["val_loss"] == min(losses)
    assert len(losses) - 1 - losses.index(min(losses)) == 2

    hub = Hub()
    model = hub.load_model(str(outcome.card), device="cpu")
    assert f"epoch {outcome.best['epoch']} of {len(losses)}" in model.card.accuracy


def test_the_accuracy_on_the_card_is_that_of_the_weights_beside_it(hub: Hub, train: Train, images: Path) -> None:
    outcome = train(epochs=3)
    model = hub.load_model(str(outcome.card), device="cpu")
    held = split(open_images(str(images)), fraction=0.25, seed=0)
    inputs = torch.stack([model.prepare(held.images.read(index))[0] for index in held.val])
    labels = torch.tensor([held.images.labels[index] for index in held.val])

    right = float((model.predict(inputs).argmax(1) == labels).float().mean())
    assert model.classes == ("blue", "red")
    assert right == pytest.approx(outcome.best["val_accuracy"])
    assert model.card.accuracy.startswith(f"{right:.4f} on {len(labels)} held-out images")


def test_a_changed_architecture_is_built_again_from_its_card(hub: Hub, train: Train) -> None:
    outcome = train(objective="masked", parameters={"lambda": "0.25"})
    model = hub.load_model(str(outcome.card), device="cpu")

    assert isinstance(model.module, toys.Scaled)
    assert (model.card.objective, model.card.objective_options) == ("masked", {"lambda_": 0.25})
    assert float(model.module.factor) != 1.0
    assert outcome.history[1]["objective"]["calls"] > outcome.history[0]["objective"]["calls"]
    assert {"train/masked", "val/masked", "train/kept", "train/cross_entropy"} <= outcome.history[0].keys()


def test_a_trained_model_can_be_trained_on(train: Train) -> None:
    first = train("first", epochs=3)
    second = train("second", model=str(first.card), scratch=False, size=None, epochs=1, lr=1e-12)
    assert second.best["val_loss"] == pytest.approx(first.best["val_loss"], rel=0.05)


def test_a_classifier_for_the_same_classes_keeps_their_order(train: Train, hub: Hub, tmp_path: Path) -> None:
    first = train("first", epochs=8, lr=3e-3, head_lr_scale=1.0, freeze_norm=True)
    card = (tmp_path / "first/card.yaml").read_text(encoding="utf-8")
    kept = load_file(tmp_path / "first/weights.safetensors")
    turned = {name: value.flip(0).contiguous() if name.startswith("fc.") else value for name, value in kept.items()}
    (tmp_path / "turned").mkdir()
    save_file(turned, tmp_path / "turned/weights.safetensors")
    lines = [line for line in card.splitlines() if "sha256" not in line]
    text = "\n".join(lines).replace("- blue\n- red", "- red\n- blue")
    (tmp_path / "turned/card.yaml").write_text(text, encoding="utf-8")

    again = train("again", model=str(tmp_path / "turned/card.yaml"), scratch=False, size=None, epochs=1, lr=1e-12,
                  freeze_norm=True)  # fmt: skip

    assert first.best["val_accuracy"] == 1.0
    # In the order of the folders' names, every image would be taken for the other class.
    assert again.best["val_loss"] == pytest.approx(first.best["val_loss"], abs=1e-3)
    assert hub.load_model(str(again.card), device="cpu").classes == ("red", "blue")


@pytest.mark.parametrize(
    ("gradient", "message"), [(False, "the loss 'extra' is not finite at step 5"), (True, "the gradient is not finite")]
)
def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint_kept(
    train: Train, tmp_path: Path, gradient: bool, message: str
) -> None:
    plan: dict[str, Any] = {"objective": "diverging", "parameters": {"at": 4, "gradient": gradient}, "save_every": 0}
    with pytest.raises(TrainingError, match=message):
        train(**plan)

    kept = Checkpoint.load(tmp_path / "run/checkpoint.safetensors")
    assert kept.state["progress"]["step"] == 4
    assert all(bool(torch.isfinite(value.double()).all()) for value in kept.tensors["model"].values())
    assert not (tmp_path / "run/card.yaml").exists()
    with pytest.raises(TrainingError, match=message):
        train(resume=True, **plan)


def test_a_full_disk_leaves_the_former_checkpoint_whole(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = train("undisturbed", save_every=0)
    saved, real = [0], checkpoints.save_file

    def full(tensors: Any, path: Path, **options: Any) -> None:
        saved[0] += 1
        real(tensors, path, **options)
        if saved[0] == 4:
            with path.open("r+b") as file:
                file.truncate(1000)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OutputError, match=r"cannot write '.*checkpoint\.safetensors': No space left on device"):
        train("run", save_every=0)
    monkeypatch.undo()

    assert Checkpoint.load(tmp_path / "run/checkpoint.safetensors").state["progress"]["step"] == 2
    assert {path.suffix for path in (tmp_path / "run").iterdir() if path.name != ".lock"} == {".safetensors", ".yaml"}
    train("run", resume=True, save_every=0)
    assert equal(weights(tmp_path / "run"), weights(undisturbed.card.parent))


@pytest.mark.usefixtures("finished")
def test_a_checkpoint_of_another_run_is_refused(train: Train) -> None:
    with pytest.raises(ModelError, match="the checkpoint belongs to another run: its plan or data differ"):
        train(epochs=1, seed=1, resume=True)


def test_a_checkpoint_of_another_architecture_is_refused(train: Train, finished: Path) -> None:
    file = finished / "checkpoint.safetensors"
    kept = Checkpoint.load(file)
    others = {"model": {"fc.weight": torch.zeros(2, 3)}}
    Checkpoint(tensors={**kept.tensors, **others}, state=kept.state).save(file)
    with pytest.raises(ModelError, match="the checkpoint does not match the architecture"):
        train(epochs=1, resume=True)


@pytest.mark.parametrize("text", [b"", b"no checkpoint at all", b"\x80\x04pickle"])
def test_a_damaged_checkpoint_is_refused(train: Train, finished: Path, text: bytes) -> None:
    (finished / "checkpoint.safetensors").write_bytes(text)
    with pytest.raises(ModelError, match="is damaged"):
        train(epochs=1, resume=True)


def test_weights_are_not_a_checkpoint(train: Train, finished: Path) -> None:
    (finished / "weights.safetensors").replace(finished / "checkpoint.safetensors")
    with pytest.raises(ModelError, match="is not a checkpoint of a training run"):
        train(epochs=1, resume=True)


def test_a_folder_that_already_exists_is_refused(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="already exists"):
        train()


def test_two_processes_cannot_work_on_one_run(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run/.lock"), pytest.raises(OutputError, match="another process is working on the run"):
        train(resume=True)


def test_an_image_that_breaks_during_training_stops_with_its_name(
    hub: Hub, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(images, copy)

    def then_break(*arguments: Any, **options: Any) -> Any:
        found = readable(*arguments, **options)
        for path in copy.rglob("*.png"):
            path.write_bytes(b"")
        return found

    monkeypatch.setattr(setup, "readable", then_break)
    with pytest.raises(InputError, match=r"\.png' is empty"):
        service.train(hub, checked(toys.plan(copy)), tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "'epochs' cannot be 0"),
        ({"val": 1.0}, "'val' cannot be 1.0"),
        ({"lr": float("inf")}, "'lr' cannot be inf"),
        ({"optimizer": "lion"}, "'optimizer' cannot be 'lion'"),
        ({"ema": 1.5}, "'ema' cannot be 1.5"),
    ],
)
def test_a_plan_that_is_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        checked(toys.plan("digits", **changes))


def test_mixed_precision_learns_the_same_in_fewer_bits(train: Train) -> None:
    full, half = train("full", epochs=1), train("half", epochs=1, precision="bf16")
    assert half.best["train_loss"] != full.best["train_loss"]
    assert half.best["train_loss"] == pytest.approx(full.best["train_loss"], rel=0.05)


def test_a_precision_that_the_device_lacks_is_refused(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(**_options: Any) -> None:
        raise ValueError("fp16 mixed precision requires a GPU")

    monkeypatch.setattr(setup, "Accelerator", lacking)
    with pytest.raises(ParameterError, match="--precision fp16 is not supported on cpu: fp16 mixed precision requires"):
        train(precision="fp16")


def test_nothing_held_out_means_the_last_epoch(train: Train) -> None:
    outcome = train(val=0.0, epochs=2)
    assert outcome.best["epoch"] == 2
    assert "val_loss" not in outcome.best


def test_images_may_be_read_in_other_processes(train: Train, tmp_path: Path) -> None:
    train("here")
    train("there", workers=1)
    assert equal(weights(tmp_path / "here"), weights(tmp_path / "there"))


def test_missing_tensorboard_is_reported_before_any_work(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "get_available_trackers", list)
    with pytest.raises(MissingExtra, match=r"logger=tensorboard needs 'tensorboard'.*xaihub\[tensorboard\]"):
        train(logger="tensorboard")
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_the_figures_of_each_epoch(train: Train, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome = train(logger="tensorboard")
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    written = [event.value for event in events.Scalars("train/loss")]
    assert written == pytest.approx([record["train_loss"] for record in outcome.history])


def test_what_a_run_leaves_may_be_read_by_whoever_may_read_the_folder(finished: Path) -> None:
    umask = os.umask(0o022)
    os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in finished.iterdir() if path.name != ".lock"}
    assert set(modes.values()) == {0o666 & ~umask}
