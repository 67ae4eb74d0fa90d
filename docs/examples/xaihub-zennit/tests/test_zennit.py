"""Tests of LRP: relevance is conserved where every operation has a rule; other networks are refused."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from xaihub import ExplainerRefused, Model, Preprocessing
from xaihub.testing import conformance
from xaihub_zennit.method import LRP


@conformance(LRP)
def test_conforms(check) -> None:
    check()


def prepared(module: nn.Module) -> Model:
    """Randomise biases and running statistics of a new network, without which all rules agree."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.running_mean, 0, 0.2)
        if getattr(layer, "bias", None) is not None:
            nn.init.normal_(layer.bias, 0, 0.2)
    plain = Preprocessing(spatial=[], size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
    return Model(module.requires_grad_(False), name="net", preprocessing=plain)


def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def plain_network() -> nn.Module:
    """Two convolutions with batch norms, a max and an average pooling, and two linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


NETWORKS = {
    "plain": plain_network,
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "squeezenet": lambda: torchvision.models.squeezenet1_1(num_classes=10),
}


@pytest.mark.parametrize("rules", ["epsilon_plus_flat", "epsilon_gamma_box"])
@pytest.mark.parametrize("network", NETWORKS)
def test_relevance_sums_to_the_score_and_the_network_is_unchanged(network: str, rules: str) -> None:
    model = prepared(NETWORKS[network]())
    before = {name: value.clone() for name, value in model.module.state_dict().items()}

    for found in LRP(rules=rules).explain(model, images(), 3):
        assert float(found.values.sum()) == pytest.approx(found.target.logit, rel=1e-2)
        assert float(found.values.std()) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


def test_a_contrast_sums_to_the_difference_of_two_scores() -> None:
    model = prepared(plain_network())

    (found,) = LRP().explain(model, images()[:1], "1 vs 2")

    logits = model.predict(images()[:1])[0]
    assert float(found.values.sum()) == pytest.approx(float(logits[1] - logits[2]), rel=1e-2)


def test_one_linear_layer_matches_the_epsilon_rule_computed_by_hand() -> None:
    linear = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64 * 64, 2))
    model = prepared(linear)
    image = images()[:1]

    (found,) = LRP(rules="epsilon_plus_flat").explain(model, image, 0)

    # Epsilon at the linear layer (biases receive nothing), then flat at the convolution: each channel's relevance is
    # spread evenly over the three colours of its pixel.
    hidden = linear[1](linear[0](image)).flatten()
    parts = hidden * linear[3].weight[0]
    relevance = parts / parts.sum() * model.predict(image)[0, 0]
    expected = relevance.reshape(4, 64, 64).sum(0).expand(3, 64, 64) / 3
    assert torch.allclose(found.values, expected, rtol=1e-3, atol=1e-6)


REFUSED = {
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10),
    "densenet121": lambda: torchvision.models.densenet121(num_classes=10),
    "vision transformer": lambda: timm.create_model("test_vit", num_classes=10, img_size=64),
}


@pytest.mark.parametrize("network", REFUSED)
def test_it_refuses_where_an_operation_has_no_rule(network: str) -> None:
    model = prepared(REFUSED[network]())
    before = {name: value.clone() for name, value in model.module.state_dict().items()}

    with pytest.raises(ExplainerRefused, match=r"relevance differs from the score|zennit fails"):
        LRP().explain(model, images(), 3)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
