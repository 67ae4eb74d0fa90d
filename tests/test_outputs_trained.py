"""A trained binary network is explained by the evidence that it learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xaihub
from tests import networks
from tests.networks import peak

CELLS, SIDE = networks.CELLS, networks.SIDE


class Trained(nn.Module):
    """Two convolutions and one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, 2, 1),
            nn.ReLU(),
        )
        self.logit = nn.Linear(16, 1)

    def forward(self, inputs: Tensor) -> Any:
        return self.logit(self.body(inputs).amax((2, 3)))


def photos(count: int, seed: int) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Noise, half of it with a red and green checkered square in one cell; the labels, and the cells."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, SIDE, SIDE, generator=generator) * 0.4
    places = [tuple(torch.randint(CELLS, (2,), generator=generator).tolist()) for _ in range(count)]
    step = SIDE // CELLS
    checks = (torch.arange(step)[:, None] // 4 + torch.arange(step) // 4) % 2
    square = torch.stack([checks * 4.0 - 2, 2 - checks * 4.0, torch.zeros(step, step)])
    labels = torch.arange(count) % 2
    for row in labels.nonzero().flatten().tolist():
        top, left = places[row]
        inputs[row, :, top * step : (top + 1) * step, left * step : (left + 1) * step] = square
    return inputs, labels.float(), places  # type: ignore[return-value]


@pytest.fixture(scope="module")
def detector() -> xaihub.Model:
    """A network trained with binary cross-entropy to say whether the square is present."""
    torch.manual_seed(0)
    network = Trained()
    inputs, labels, _ = photos(128, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(network(inputs)[:, 0], labels).backward()
        optimizer.step()
    return networks.model(network, outputs="binary", classes=("square",))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gradcam", {}),
        ("rise", {"masks": 800, "cell": 6}),
        ("lime", {"samples": 200, "features": "grid:4"}),
        ("shap", {}),
        ("convad", {"baseline": "zero"}),
        ("first_principles", {}),
    ],
)
def test_a_trained_binary_network_is_explained_by_the_evidence(
    detector: xaihub.Model, name: str, parameters: dict[str, Any]
) -> None:
    inputs, labels, places = photos(6, 2)
    assert (detector.predict(inputs).argmax(1) == labels.long()).all()
    explainer = xaihub.get_explainer(name, **parameters)
    for row in labels.nonzero().flatten().tolist():
        (found,) = explainer.explain(detector, inputs[row : row + 1])
        assert found.predicted.name == "square"
        assert peak(found) == places[row]
