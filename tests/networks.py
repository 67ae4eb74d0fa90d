"""Small networks that behave oddly, and models of them, for the tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import Resize

from xaihub import Explanation, Model, Preprocessing

SIDE = 64
CELLS = 4  # per side, for `peak`


class Net(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(32, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(inputs).mean((2, 3)))
        return logits


class Normalising(Net):
    """Normalises its input, in place or not."""

    in_place = False

    def forward(self, inputs: Tensor) -> Tensor:
        if self.in_place:
            inputs -= 0.5
            inputs *= 3
        else:
            inputs = (inputs - 0.5) * 3
        return super().forward(inputs)


class InPlace(Normalising):
    in_place = True


class Detached(Net):
    """Has no gradient path to the input."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).detach()


class Plain(nn.Module):
    """One cell per block of 8 x 8 pixels; a bright block supports class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(3, 4, 1), nn.ReLU())
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            self.features[1].weight.fill_(1.0)
            self.features[1].bias.zero_()
            self.head.weight[0].fill_(1.0)
            self.head.weight[1].fill_(-1.0)

    def once(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(inputs).mean((2, 3)))
        return logits

    def forward(self, inputs: Tensor) -> Tensor:
        return self.once(inputs)


class Flips(Plain):
    """Averages over the image and its mirror image."""

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.once(inputs) + self.once(inputs.flip(3))) / 2


class Again(Net):
    """Calls one activation several times; the last call returns what the classifier reads."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)])
        self.act = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        for conv in self.convs:
            inputs = self.act(conv(inputs))
        logits: Tensor = self.head(inputs.mean((2, 3)))
        return logits


def model(module: nn.Module | type[nn.Module] = Net, **values: Any) -> Model:
    """Return a model of a network, or of a class of networks with fixed random weights."""
    if isinstance(module, type):
        torch.manual_seed(0)
        module = module()
    preprocessing = Preprocessing(
        spatial=[Resize((SIDE, SIDE))], size=(3, SIDE, SIDE), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    return Model(module, name="mine", preprocessing=preprocessing, **values)


def noise(rows: int = 1) -> Tensor:
    """Return (rows, 3, 64, 64) inputs."""
    return torch.randn(rows, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def peak(explanation: Explanation, *, lowest: bool = False) -> tuple[int, int]:
    """The row and column of the cell with the highest mean value."""
    cells = nn.functional.avg_pool2d(explanation.heatmap()[None, None], SIDE // CELLS).flatten()
    where = int(cells.argmin() if lowest else cells.argmax())
    return where // CELLS, where % CELLS
