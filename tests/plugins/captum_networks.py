"""Networks and images for the tests of what goes through captum."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from xaihub import Explainer, Model, Preprocessing, Runtime

NAMES = [
    "deeplift",
    "feature_ablation",
    "gradient_shap",
    "guided_backprop",
    "input_x_gradient",
    "integrated_gradients",
    "kernel_shap",
    "lime",
    "occlusion",
    "saliency",
    "smoothgrad",
]


CHEAP = {
    "gradient_shap": {"samples": 3},
    "smoothgrad": {"samples": 3},
    "integrated_gradients": {"steps": 6},
    "kernel_shap": {"samples": 12, "features": "grid:2"},
    "lime": {"samples": 12, "features": "grid:2"},
    "feature_ablation": {"features": "grid:3"},
    "occlusion": {"window": 48, "stride": 24},
}


SIDE = 96  # of the networks from timm, in pixels
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def randomised(network: nn.Module) -> nn.Module:
    """Give biases and running statistics random values: with those of a fresh network every rule agrees."""
    draw = torch.Generator().manual_seed(1)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name.endswith(("bias", "running_mean")):
            tensor.data = torch.randn(tensor.shape, generator=draw) * 0.1
        if name.endswith("running_var"):
            tensor.data = torch.rand(tensor.shape, generator=draw) + 0.5
    return network


def wrapped(network: nn.Module, size: tuple[int, int, int], name: str = "toy", **runtime: int) -> Model:
    channels = size[0]
    return Model(
        network,
        name=name,
        preprocessing=Preprocessing(spatial=[], size=size, mean=MEAN[:channels], std=STD[:channels]),
        runtime=Runtime(**runtime),
    )


def from_timm(name: str, **runtime: int) -> Model:
    torch.manual_seed(0)
    options = {"img_size": SIDE} if "vit" in name else {}
    return wrapped(randomised(timm.create_model(name, **options)), (3, SIDE, SIDE), name, **runtime)


def images(count: int, size: tuple[int, ...] = (3, SIDE, SIDE)) -> Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(2))


def values(
    explainer: Explainer, model: Model, inputs: Tensor, target: str | int | None = None, seed: int = 0
) -> Tensor:
    return torch.stack([one.values for one in explainer.explain(model, inputs, target, seed=seed)])


class ToyConv(nn.Module):
    """The network with one convolution of captum's tests, which its package does not always have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 2, 3), nn.ReLU()
        self.fc1, self.relu2 = nn.Linear(8, 4), nn.ReLU()
        with torch.no_grad():
            self.conv1.weight.fill_(1)
            self.conv1.bias.copy_(torch.tensor([-50.0, -75.0]))  # type: ignore[union-attr]
            self.fc1.weight.copy_(torch.tensor([1.0] * 5 + [-1.0] * 3).expand(4, 8))
            self.fc1.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.fc1(self.relu1(self.conv1(x)).reshape(-1, 8)))
