"""Class weights: what they are, how they enter the loss, and which objectives take them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from tests.training import toys
from xaihub import Objective, Step
from xaihub.errors import ParameterError
from xaihub.hub import Hub
from xaihub.testing.objective_subject import ObjectiveSubject
from xaihub.training import run as service
from xaihub.training.config import checked
from xaihub.training.data.loaders import inverse_frequencies
from xaihub_cross_entropy.method import CrossEntropy

Train = Callable[..., service.Outcome]


def step() -> Step:
    return Step(number=0, total=1, generator=torch.Generator())


def weighted(weights: Tensor | None, smoothing: float = 0.0) -> Objective:
    objective = CrossEntropy(smoothing=smoothing)
    objective.class_weights = weights
    return objective


def test_weights_are_inversely_proportional_to_the_classes_and_have_mean_1_over_the_images() -> None:
    labels = [0] * 6 + [1] * 3 + [2]
    weights = inverse_frequencies(labels, 3)
    assert torch.allclose(weights, torch.tensor([10 / 18, 10 / 9, 10 / 3]))
    assert float(weights[labels].mean()) == pytest.approx(1)


def test_each_row_counts_by_its_class_whatever_else_is_in_the_batch() -> None:
    network, weights = torch.nn.Identity(), torch.tensor([0.5, 1.0, 4.0])
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 1, 1, 2])
    rows = -logits.log_softmax(1)[torch.arange(6), labels] * weights[labels]
    found = weighted(weights).loss(network, logits, labels, step()).total
    assert torch.allclose(found, rows.mean())
    halves = [weighted(weights).loss(network, logits[p], labels[p], step()).total for p in (slice(3), slice(3, 6))]
    assert torch.allclose(torch.stack(halves).mean(), rows.mean())
    soft = weighted(weights).loss(network, logits, F.one_hot(labels, 3).float(), step()).total
    assert torch.allclose(soft, rows.mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equal_weights_change_nothing(smoothing: float) -> None:
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 2, 1])
    plain, ones = (
        weighted(weights, smoothing).loss(torch.nn.Identity(), logits, labels, step()).total
        for weights in (None, torch.ones(3))
    )
    assert torch.allclose(plain, ones)
    assert torch.equal(plain, F.cross_entropy(logits, labels, label_smoothing=smoothing))


@pytest.mark.parametrize("name", ["cross_entropy", "shapley", "scores_activation", "expo-stability", "expo-fidelity"])
def test_every_built_in_objective_weighs_its_cross_entropy(name: str) -> None:
    run = ObjectiveSubject(Hub().objectives.get(name).load()).start()
    run.objective.class_weights = 2 * F.one_hot(torch.tensor(1), len(run.model.classes)).float()
    found, own = run.losses(), run.labels == 1
    expected = 2 * F.cross_entropy(found.logits[own].float(), run.labels[own], reduction="sum") / len(own)
    assert torch.allclose(found.terms["cross_entropy"], expected, atol=1e-6)


def test_a_run_weighs_the_classes_of_its_training_images(
    hub: Hub, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "unequal"
    shutil.copytree(images, data)
    for file in sorted((data / "blue").iterdir())[:8]:
        file.unlink()
    seen: list[Tensor | None] = []
    original = CrossEntropy.cross_entropy

    def spy(self: CrossEntropy, logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
        seen.append(self.class_weights)
        return original(self, logits, labels, smoothing=smoothing)

    monkeypatch.setattr(CrossEntropy, "cross_entropy", spy)
    service.train(hub, checked(toys.plan(data, epochs=1, class_weights=True)), tmp_path / "run", device="cpu")
    weights = seen[0]
    assert weights is not None
    # 3 of 4 blue and 9 of 12 red images are trained on; the classes are in alphabetical order.
    assert weights.tolist() == pytest.approx([12 / (2 * 3), 12 / (2 * 9)])


def test_an_objective_that_does_not_weigh_classes_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="'noted' does not weigh classes, so class_weights does not apply"):
        train(objective="noted", class_weights=True)
    assert not (tmp_path / "run").exists()


def test_rare_classes_cannot_count_twice() -> None:
    with pytest.raises(ParameterError, match="balance=true cannot be combined with class_weights=true"):
        checked(toys.plan("digits", balance=True, class_weights=True))
