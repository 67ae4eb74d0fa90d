"""ScoresActivation in image models: where the gate stands, training, saved models, global explainers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from xaihub import ExplainerRefused, Hub, Model, ModelError, ParameterError, Preprocessing, Step
from xaihub.ranking import agreement, order_of
from xaihub_scores_activation.gate import ScoresActivation, gates, param_groups
from xaihub_scores_activation.global_explainers import GlobalSHAP, PermutationImportance, Scores
from xaihub_scores_activation.objective import GatedClassifier
from xaihub_scores_activation.placement import GatedHead
from xaihub_scores_activation.shap_importance import shap_importance

FAMILIES = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "mobilenetv3_small_050"]
STEP = Step(number=0, total=1, generator=torch.Generator())


def made(name: str, classes: int = 4, **options: Any) -> Model:
    """A timm model with random weights, its biases and running statistics included."""
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=classes, **options)
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if key.endswith(("bias", "running_mean")):
                value.normal_(0, 0.1)
    size = module.default_cfg["input_size"]
    preprocessing = Preprocessing(spatial=[], size=size, mean=(0,) * 3, std=(1,) * 3)
    return Model(module, name=name, preprocessing=preprocessing, classes=tuple("abcd"))


def gated(name: str, **options: Any) -> Model:
    """The same with a gate whose scores are random."""
    model = made(name)
    network = GatedClassifier(**options).wrap(model)
    with torch.no_grad():
        gates(network)[0][1].scores.normal_(generator=torch.Generator().manual_seed(1))
    return model.around(network)


class Tiny(nn.Module):
    """A small CNN with 64 pooled channels for the digits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()
        )
        self.head: nn.Module = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).mean((2, 3)))
        return out


def digits_cnn(seed: int, *, gate: bool, data: list[Tensor], epochs: int = 15) -> Tiny:
    torch.manual_seed(seed)
    network = Tiny()
    heads = {True: GatedHead(ScoresActivation(64, gain="d"), network.head), False: network.head}  # type: ignore[arg-type]
    network.head = heads[gate]
    groups = [group for group in param_groups(network, 1e-3, 10.0) if group["params"]]
    optimiser = torch.optim.Adam(groups)
    for _ in range(epochs):
        for rows in torch.randperm(len(data[0])).split(32):
            loss = nn.functional.cross_entropy(network(data[0][rows]), data[2][rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()


@pytest.mark.parametrize("seeds", [(0, 1), pytest.param((0, 1, 2), marks=pytest.mark.slow)], ids=["two", "three"])
def test_a_gate_on_pooled_channels_keeps_the_accuracy_and_ranks_what_matters(
    seeds: tuple[int, ...],
) -> None:
    bunch = load_digits()
    x = torch.from_numpy(bunch.images / 16).float().unsqueeze(1)
    parts = train_test_split(
        x, torch.from_numpy(bunch.target).long(), test_size=0.2, stratify=bunch.target, random_state=0
    )
    bare, with_gate, top, bottom, pearson = [], [], [], [], []
    for seed in seeds:
        plain, network = (digits_cnn(seed, gate=gate, data=parts) for gate in (False, True))
        with torch.no_grad():
            bare.append(float((plain(parts[1]).argmax(1) == parts[3]).float().mean()))
            features = network.body(parts[1]).mean((2, 3))

            def right(table: Tensor, network: Tiny = network) -> float:
                with torch.no_grad():
                    return float((network.head(table).argmax(1) == parts[3]).float().mean())

            with_gate.append(right(features))
            order = network.head.gate.ranking()  # type: ignore[union-attr, operator]
            top.append(right(features.index_fill(1, order[:16], 0)))
            bottom.append(right(features.index_fill(1, order[-16:], 0)))
            shap = shap_importance(
                lambda z, network=network: network.head(z).softmax(1), features[:30], features[-30:], permutations=2
            )
            pearson.append(agreement(network.head.gate.weights(), shap).pearson)  # type: ignore[union-attr, operator]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    assert mean(with_gate) >= mean(bare) - 0.015
    assert mean(with_gate) - mean(top) >= 0.15
    assert mean(with_gate) - mean(bottom) <= 0.03
    assert mean(pearson) >= 0.85


@pytest.mark.parametrize(
    ("name", "site"),
    [
        *((name, site) for name in FAMILIES for site in ("channels", "patches", "input")),
        *((name, "positions") for name in ("test_resnet", "test_efficientnet", "swin_tiny_patch4_window7_224")),
    ],
)
def test_a_gate_with_gain_d_leaves_the_outputs_unchanged(name: str, site: Any) -> None:
    model = made(name)
    x = torch.randn(2, *model.input_size)
    before = model.predict(x)

    after = model.around(GatedClassifier(site=site).wrap(model)).predict(x)

    assert torch.allclose(after, before, atol=1e-5)
    assert before.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "mobilenetv3_small_050"])
def test_positions_are_refused_where_the_classifier_reads_no_average_of_them(name: str) -> None:
    model = made(name)
    x = torch.randn(1, *model.input_size)
    before = model.predict(x)

    with pytest.raises(ModelError, match="does not average the positions of its last map"):
        GatedClassifier(site="positions").wrap(model)
    assert torch.equal(model.predict(x), before)  # and nothing was changed on the way


def test_the_gate_has_as_many_features_as_the_classifier_takes() -> None:
    # The head has a hidden layer of its own, so num_features of the model would be wrong.
    model = made("mobilenetv3_small_050")

    assert gates(GatedClassifier().wrap(model))[0][1].num_features == 1024 != model.module.num_features


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deit_tiny_distilled_patch16_224", "several classifiers whose scores are averaged"),
        ("resnetv2_50", "is a convolution"),
    ],
)
def test_two_headed_and_convolutional_classifiers_are_refused_with_a_reason(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        GatedClassifier().wrap(made(name))


def test_a_second_gate_and_a_gate_that_cannot_be_folded_are_refused() -> None:
    with pytest.raises(ModelError, match="has a gate already"):
        GatedClassifier().wrap(gated("test_resnet"))
    with pytest.raises(ModelError, match="a gate on patches cannot be folded"):
        GatedClassifier(site="patches", fold=True).wrap(made("test_resnet"))


def test_positions_are_weighted_averages_of_the_last_map() -> None:
    model = gated("test_resnet", site="positions")
    x = torch.randn(2, *model.input_size)
    network: Any = model.module
    maps, w = network.trunk(x), network.tail.gate.weights()  # (B, C, h, w)

    pooled = torch.zeros(2, maps.shape[1])
    for t in range(maps.shape[2] * maps.shape[3]):
        pooled += w[t] * maps[:, :, t // maps.shape[3], t % maps.shape[3]]

    assert torch.allclose(network.tail.head(pooled), model.predict(x), atol=1e-4)


def test_patches_are_cells_of_the_image() -> None:
    model = gated("test_resnet", site="patches", patches=2)
    network: Any = model.module
    height, width = model.input_size[1:]
    x = torch.randn(1, *model.input_size)
    factors, hidden = network.gate.factors(), x.clone()
    hidden[:, :, : height // 2, : width // 2] *= factors[0]
    hidden[:, :, : height // 2, width // 2 :] *= factors[1]
    hidden[:, :, height // 2 :, : width // 2] *= factors[2]
    hidden[:, :, height // 2 :, width // 2 :] *= factors[3]

    assert torch.allclose(network.network(hidden), model.predict(x), atol=1e-5)


def test_the_loss_is_cross_entropy_and_the_scores_learn() -> None:
    model = made("test_resnet")
    objective = GatedClassifier()
    network = objective.wrap(model).requires_grad_()
    x, y = torch.randn(4, *model.input_size), torch.tensor([0, 1, 2, 3])

    losses = objective.loss(network, x, y, STEP)
    losses.total.backward()

    assert list(losses.terms) == ["cross_entropy"]
    assert torch.allclose(losses.total, nn.functional.cross_entropy(network(x), y))
    (group,) = objective.groups(network)
    assert group.weights[0].grad is not None
    assert group.weights[0].grad.abs().max() > 0
    assert (group.lr_scale, group.weight_decay, group.like_head) == (10, 0, True)


def test_entropy_is_a_term_only_where_it_is_asked_for() -> None:
    model = made("test_resnet")
    objective = GatedClassifier(entropy=0.5)
    losses = objective.loss(objective.wrap(model), torch.randn(2, *model.input_size), torch.tensor([0, 1]), STEP)
    entropy = losses.terms["entropy"].item()

    # Equal weights of d channels have the entropy log d.
    assert entropy == pytest.approx(0.5 * torch.tensor(96.0).log().item(), rel=1e-5)


@pytest.mark.parametrize(("times", "flat"), [(1.4, True), (1.6, False)])
def test_training_reports_the_largest_weight_and_warns_where_the_weights_are_nearly_equal(
    times: float, flat: bool
) -> None:
    network, objective = gated("test_resnet").module, GatedClassifier()
    gate = gates(network)[0][1]
    assert objective.figures(network, {})["largest_weight_times_mean"] == pytest.approx(
        float(gate.weights().max() / gate.weights().mean())
    )
    with torch.no_grad():  # one of d weights is `times` / d, the others share the rest
        gate.scores.zero_()[3] = float(
            torch.tensor(times * (gate.num_features - 1) / (gate.num_features - times)).log()
        )
    found = objective.figures(network, {})
    assert found["largest_weight_times_mean"] == pytest.approx(times, rel=1e-4)
    assert [f"{times:.2f} times the mean" in text for text in objective.advice(found)] == [True] * flat


@pytest.mark.parametrize(
    ("options", "message"), [({"patches": 3}, "'patches' of GatedClassifier has no effect with site=channels")]
)
def test_parameters_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        gated("test_resnet", **options)


def test_an_epoch_leaves_the_weights_in_the_record() -> None:
    network = gated("test_resnet").module
    record = GatedClassifier().epoch_end(network, 1)["scores"]
    weights = gates(network)[0][1].weights()

    assert json.loads(json.dumps(record)) == record
    assert record["top"] == order_of(weights)[:10].tolist()
    assert record["weights"] == pytest.approx(weights.tolist(), rel=1e-5)


@pytest.mark.parametrize("site", ["channels", "positions"])
def test_what_learns_behind_a_frozen_backbone_is_the_gate_with_the_classifier(site: Any) -> None:
    model = made("test_resnet")
    head = model.module.get_classifier()
    objective = GatedClassifier(site=site)
    part = objective.trainable(objective.wrap(model), head)

    assert {name.rpartition(".")[0] for name, _ in part.named_parameters()} == {"gate", "head"}


@pytest.mark.parametrize("site", ["patches", "input"])
def test_a_gate_before_a_frozen_backbone_is_refused(site: Any) -> None:
    model = made("test_resnet")
    objective = GatedClassifier(site=site)

    with pytest.raises(ModelError, match=f"a gate on {site} lies before the backbone"):
        objective.trainable(objective.wrap(model), nn.Identity())


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
