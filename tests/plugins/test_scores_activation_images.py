"""ScoresActivation in image models: where the gate stands, training, saved models, global explainers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from tests.plugins.gate_networks import gated, made
from xaihub import ModelError, ParameterError, Step
from xaihub.ranking import agreement, order_of
from xaihub_scores_activation.gate import ScoresActivation, gates, param_groups
from xaihub_scores_activation.objective import GatedClassifier
from xaihub_scores_activation.placement import GatedHead
from xaihub_scores_activation.shap_importance import shap_importance

FAMILIES = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "mobilenetv3_small_050"]
STEP = Step(number=0, total=1, generator=torch.Generator())


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


@pytest.mark.parametrize(
    ("seeds", "lost"), [((0,), 0.03), pytest.param((0, 1, 2), 0.015, marks=pytest.mark.slow)], ids=["one", "three"]
)
def test_a_gate_on_pooled_channels_keeps_the_accuracy_and_ranks_what_matters(
    seeds: tuple[int, ...], lost: float
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

    assert mean(with_gate) >= mean(bare) - lost
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
