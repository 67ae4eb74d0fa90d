"""The scores that a gate has learned, as they are read from a model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.plugins.gate_networks import gated, made
from xaihub import ExplainerRefused, Hub
from xaihub.ranking import order_of
from xaihub_scores_activation.gate import gates
from xaihub_scores_activation.global_explainers import GlobalSHAP, PermutationImportance, Scores
from xaihub_scores_activation.objective import GatedClassifier


def test_a_folded_model_is_plain_and_gives_the_same_scores() -> None:
    model = gated("test_resnet")
    x = torch.randn(2, *model.input_size)
    finished = GatedClassifier(fold=True).finish(model.module)

    assert not finished.wrapped
    assert gates(finished.network) == []
    assert set(finished.network.state_dict()) == set(made("test_resnet").module.state_dict())
    assert torch.allclose(finished.network(x), model.predict(x), atol=1e-5)
    assert gates(model.module)  # the trained network itself is left alone


def test_scores_are_read_with_their_meaning() -> None:
    cases = {"channels": "channel", "positions": "position", "patches": "patch", "input": "input channel"}
    for site, feature in cases.items():
        model = gated("test_resnet", site=site)
        found = Scores().explain(model)
        gate = gates(model.module)[0][1]

        assert found.feature == feature
        assert torch.allclose(found.weights, gate.weights().double())
        assert found.order.tolist() == gate.ranking().tolist()
    assert found.names == ("red", "green", "blue")
    assert Scores().explain(gated("test_resnet", site="patches", patches=3)).grid == (3, 3)


def test_the_second_reading_multiplies_by_the_columns_of_the_classifier() -> None:
    model = gated("test_resnet")
    head: Any = model.module.fc  # type: ignore[union-attr]
    found = Scores(readout="weight_x_norm").explain(model)

    assert torch.allclose(found.weights, (head.gate.weights() * head.head.weight.norm(dim=0)).double())
    with pytest.raises(ExplainerRefused, match="only a gate on channels"):
        Scores(readout="weight_x_norm").explain(gated("test_resnet", site="input"))


def test_a_model_without_a_gate_and_a_flat_ranking_are_told() -> None:
    with pytest.raises(ExplainerRefused, match="has no gate: the ranking is read from exactly one"):
        Scores().explain(made("test_resnet"))
    model = made("test_resnet")
    found = Scores().explain(model.around(GatedClassifier().wrap(model)))

    assert "nearly flat: the largest weight is 1.00 times the mean" in found.warnings[0]


def test_the_history_is_read_from_the_log_beside_the_card(tmp_path: Path) -> None:
    model = gated("test_resnet")
    rows = [GatedClassifier().epoch_end(model.module, epoch) for epoch in (1, 2)]
    with (tmp_path / "log.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "objective"])
        writer.writerows([epoch, json.dumps(row)] for epoch, row in enumerate(rows))
    model.card = type(model.card)(name="x", base=str(tmp_path))

    found = Scores().explain(model).history

    assert found is not None
    assert found.shape == (2, 96)
    (tmp_path / "log.csv").write_text("objective\nnonsense\n", encoding="utf-8")
    assert Scores().explain(model).history is None


def test_shap_and_permutation_rank_the_channels_that_count() -> None:
    model = made("test_resnet")
    head: Any = model.module.fc  # type: ignore[union-attr]
    with torch.no_grad():
        head.weight[:, 8:] = 0  # only eight channels reach the classes
    x = torch.randn(24, *model.input_size)

    for explainer in (GlobalSHAP(rows=4, background=6), PermutationImportance(repeats=2)):
        found = explainer.explain(model, x)
        assert found.weights[8:].abs().max() < 1e-6
        assert set(found.order[:3].tolist()) <= set(range(8))
        assert found.metadata["layer"] == "fc"
        assert found.metadata["forward_passes"] == 24


def test_permutation_importance_is_the_loss_of_likelihood() -> None:
    model = made("test_resnet")
    x, labels = torch.randn(12, *model.input_size), torch.arange(12) % 4
    features = model.module.forward_head(model.module.forward_features(x), pre_logits=True)  # type: ignore[operator]
    head: Any = model.module.fc  # type: ignore[union-attr]

    found = PermutationImportance(repeats=40).explain(model, x, labels)

    # A second implementation, with shuffles of its own: the means of both are near each other.
    def quality(table: Tensor) -> float:
        return float(head(table).log_softmax(1)[torch.arange(12), labels].mean())

    expected = []
    with torch.no_grad():
        for column in order_of(found.weights)[:3].tolist():
            losses = []
            for repeat in range(200):
                changed = features.clone()
                changed[:, column] = features[
                    torch.randperm(12, generator=torch.Generator().manual_seed(repeat)), column
                ]
                losses.append(quality(features) - quality(changed))
            expected.append(sum(losses) / len(losses))
    assert found.weights[order_of(found.weights)[:3]].tolist() == pytest.approx(expected, rel=0.3)
    assert found.warnings == []
    assert "own predictions" in PermutationImportance(repeats=1).explain(model, x).warnings[0]


@pytest.mark.parametrize("explainer", [GlobalSHAP(), PermutationImportance()])
def test_estimates_need_images(explainer: Any) -> None:
    with pytest.raises(ExplainerRefused, match="what it does to images|needs images to rank features"):
        explainer.explain(made("test_resnet"))
    assert explainer.needs_images


def test_everything_is_registered_under_its_name() -> None:
    hub = Hub()

    assert isinstance(hub.get_objective("scores_activation", site="positions", fold="false"), GatedClassifier)
    assert isinstance(hub.get_global_explainer(), Scores)
    assert isinstance(hub.get_global_explainer("shap_global", rows="3"), GlobalSHAP)
    assert isinstance(hub.get_global_explainer("permutation_importance"), PermutationImportance)
