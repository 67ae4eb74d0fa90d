"""Scores on validation images, what must stay finite, and what the lines on an epoch say."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, recall_score
from torch import Tensor

from tests.training import toys
from xaihub.errors import TrainingError
from xaihub.objective import Losses
from xaihub.training import run as service
from xaihub.training.loop import progress, trainer
from xaihub.training.loop.phases import Phases
from xaihub.training.loop.progress import Finite, Sums
from xaihub.training.loop.scores import Scores

Train = Callable[..., service.Outcome]


@pytest.fixture
def predictions() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (70,), generator=draw)  # of four classes, the last has no image
    return torch.randn(70, 4, generator=draw) + torch.nn.functional.one_hot(labels, 4), labels


def test_scores_are_those_of_another_library(predictions: tuple[Tensor, Tensor]) -> None:
    logits, labels = predictions
    scores = Scores(4, torch.device("cpu"))
    for rows in torch.arange(70).split(16):
        scores.add(logits[rows], labels[rows])
    found, taken = scores.values(), logits.argmax(1)

    assert found["accuracy"] == pytest.approx(float((taken == labels).float().mean()))
    of_class = found["class_accuracy"]
    assert isinstance(of_class, list)
    assert of_class[:3] == pytest.approx(recall_score(labels, taken, labels=[0, 1, 2], average=None), abs=1e-6)
    assert of_class[3] is None
    # scikit-learn, too, leaves out the class that has no image but is predicted.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, taken))


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy(predictions: tuple[Tensor, Tensor]) -> None:
    logits, labels = predictions
    scores = Scores(4, torch.device("cpu"))
    scores.add(logits, labels)
    confidence, taken = logits.softmax(1).max(1)
    bins = (confidence * 15).long().clamp(max=14)
    gap = confidence - (taken == labels).float()
    gaps = [float((bins == number).double().mean() * gap[bins == number].mean().abs()) for number in bins.unique()]
    assert scores.values()["calibration_error"] == pytest.approx(sum(gaps), abs=1e-5)


def test_outputs_that_are_not_finite_have_scores_as_well() -> None:
    scores = Scores(3, torch.device("cpu"))
    scores.add(torch.full((4, 3), float("nan")), torch.tensor([0, 1, 2, 0]))
    assert 0 <= scores.values()["accuracy"] <= 1  # type: ignore[operator]


def test_the_record_of_an_epoch_has_the_scores_and_both_learning_rates(train: Train) -> None:
    record = train(epochs=1, lr=2e-3, head_lr_scale=5.0, schedule="constant", warmup=0.0).history[0]
    assert (record["lr"], record["lr_head"]) == (pytest.approx(2e-3), pytest.approx(1e-2))
    assert len(record["val_class_accuracy"]) == 2
    assert record["val_balanced_accuracy"] == pytest.approx(sum(record["val_class_accuracy"]) / 2)
    assert 0 <= record["val_calibration_error"] <= 1


def test_sums_of_tensors_are_the_sums_of_their_values() -> None:
    draw = torch.Generator().manual_seed(0)
    sums, expected = Sums({}), 0.0
    for _ in range(9):
        term = torch.rand((), generator=draw)
        sums.add(Losses(terms={"a": term}, logits=torch.zeros(2, 2), notes={"n": term}), torch.tensor([0, 1]), 0.3)
        expected += float(term) * 0.3
    assert sums.values["/a"] == sums.values["/n"] == expected
    assert Sums(sums.values).values == sums.values


def losses(*terms: float, device: str = "cpu") -> Losses:
    named = {str(number): torch.tensor(value, device=device) for number, value in enumerate(terms)}
    return Losses(terms=named, logits=torch.zeros(1, 2))


def test_on_a_cpu_a_loss_is_refused_at_once() -> None:
    finite = Finite(9)
    finite.losses(3, losses(1.0, 2.0))
    with pytest.raises(TrainingError, match="the loss '1' is not finite at step 5 of 9"):
        finite.losses(4, losses(1.0, float("inf")))
    with pytest.raises(TrainingError, match="the gradient is not finite at step 5 of 9"):
        finite.gradient(4, torch.tensor(float("nan")))


def test_on_an_accelerator_losses_are_looked_at_together_and_the_first_bad_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[int] = []
    real = torch.stack

    def stack(values: Any) -> Tensor:
        looked.append(len(values))
        return real([torch.tensor(1.0 if number else float("nan")) for number in range(len(values))])

    finite = Finite(200)
    for step in range(progress.LOOK):  # tensors of a device without values stand in for those of a GPU
        finite.losses(step, losses(1.0, device="meta"))
    monkeypatch.setattr(torch, "stack", stack)
    assert looked == []
    finite_at_the_end = pytest.raises(TrainingError, match="the loss '0' is not finite at step 1 of 200")
    with finite_at_the_end:
        finite.look()
    assert looked == [2 * progress.LOOK]


def test_a_term_that_begins_later_is_announced_with_its_cost() -> None:
    told: list[str] = []
    phases = Phases([], 100, tell=told.append)
    for done in range(1, 11):
        phases.step(done, 1.0, {"task"})
    for done in range(11, 30):
        known = phases.step(done, 4.0, {"task", "penalty"} if done % 2 else {"task"})
    assert told == [
        "the penalty 'penalty' has begun: 4 s per step instead of 1 s, about 5.6 minutes for the remaining 84 steps"
    ]
    assert known == ["task", "penalty"]
    # A resumed run knows its terms.
    again = Phases(known, 100, tell=told.append)
    again.step(30, 4.0, {"task", "penalty"})
    assert len(told) == 1


def test_a_penalty_is_announced_when_its_warm_up_ends(train: Train, hub: Any, images: Any, tmp_path: Any) -> None:
    told: list[str] = []
    plan = toys.plan(images, objective="expo-stability", epochs=2, parameters={"c": 0.1})
    outcome = service.train(hub, service.Config(**plan), tmp_path / "run", device="cpu", tell=told.append)
    (announced,) = [line for line in told if line.startswith("the penalty 'expo' has begun: ")]
    assert told.index(announced) == 1  # after the line on the first epoch
    assert "train/expo" not in outcome.history[0]
    shown = told[2].split("; ")
    record = outcome.history[1]
    assert shown[0] == (
        f"epoch 2/2: training loss {record['train_loss']:.4g} = cross_entropy {record['train/cross_entropy']:.4g}"
        f" + expo {record['train/expo']:.4g}"
    )
    assert any(part == f"gamma {record['objective']['gamma']:.3g}" for part in shown)


def test_figures_of_the_objective_are_on_the_line_of_an_epoch() -> None:
    record = {
        "epoch": 1,
        "train_loss": 0.5,
        "train/task": 0.5,
        "seconds": 1.0,
        "objective": {"votes R2": 0.731, "x": {}},
    }
    assert service.epoch_line(record, 3, ["task"]) == "epoch 1/3: training task 0.5; votes R2 0.731; 1.0 s"


def test_a_batch_norm_refuses_a_single_value_in_one_true_line(train: Train) -> None:
    with pytest.raises(TrainingError, match="a batch norm received a single value per channel, which has no variance"):
        train(batch_size=1)
    assert len(train("frozen", batch_size=1, freeze_norm=True, epochs=1).history) == 1


def test_a_longer_run_continues_where_the_shorter_one_ended(train: Train) -> None:
    short = train(epochs=2, schedule="constant", warmup=0.0)
    longer = train(epochs=3, schedule="constant", warmup=0.0, resume=True)
    at_once = train("at_once", epochs=3, schedule="constant", warmup=0.0)
    # With a constant rate the number of epochs plays no part.
    for got, expected in zip(longer.history, at_once.history, strict=True):
        assert {**got, "seconds": 0} == {**expected, "seconds": 0}
    assert longer.history[:2] == short.history


def test_a_run_that_stopped_early_says_so_when_it_is_resumed(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    rising = itertools.count(1)
    validate = trainer.Trainer.validate
    monkeypatch.setattr(
        trainer.Trainer, "validate", lambda *given: {**validate(*given), "val_loss": float(next(rising))}
    )
    plan = {"epochs": 9, "patience": 2}
    assert len(train(**plan).history) == 3
    again = train(resume=True, **plan)
    assert again.early
    assert len(again.history) == 3
