"""Tiny networks with fixed random weights, one for each kind of network that methods must expect."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from xaihub.models.model import Model
from xaihub.models.preprocessing import Preprocessing
from xaihub.models.structure import Hints

SIDE = 64  # pixels; the minimum for maps of 8 x 8 cells in every toy
CLASSES = ("ant", "bee", "cat", "dog", "elk")
# Standard deviation of the logits over images: enough for a probability to change from almost 0 to almost 1 when parts
# are masked.
SPREAD = 2.0


class _TinyCNN(nn.Module):
    """Four convolutions with batch norms, one skip connection, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _block(3, 8, stride=2)
        self.middle = _block(8, 16, stride=2)
        self.down = _block(16, 16, stride=2)
        self.branch = _block(16, 16, stride=1)
        self.join = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.head = nn.Linear(16, len(CLASSES))

    def forward(self, inputs: Tensor) -> Tensor:
        down = self.down(self.middle(self.stem(inputs)))
        features = self.join(self.branch(down) + down)
        logits: Tensor = self.head(self.flat(self.pool(features)))
        return logits


def _block(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def tiny_cnn(*, seed: int = 0) -> Model:
    """Return a convolutional network of four layers, with batch norms and a skip connection; 8 x 8 cells."""
    return _model("tiny_cnn", _TinyCNN, Hints(heads=("head",)), seed)


def tiny_plain(*, seed: int = 0) -> Model:
    """Return a chain of convolutions, ReLUs and linear layers, for methods that support few operations."""
    return _model("tiny_plain", _chain, Hints(heads=("head",)), seed)


def _chain() -> nn.Module:
    features = [
        *(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU()),
    ]
    hidden = {"pool": nn.AvgPool2d(2), "flat": nn.Flatten(), "hidden": nn.Linear(256, 32), "last": nn.ReLU()}
    return nn.Sequential(OrderedDict(features=nn.Sequential(*features), **hidden, head=nn.Linear(32, len(CLASSES))))


def tiny_mixed(*, seed: int = 0) -> Model:
    """Return a convolutional network with ReLU in place, ReLU6, SiLU and GELU, in this order."""
    return _model("tiny_mixed", _mixed, Hints(heads=("head",)), seed)


def _mixed(outputs: int = len(CLASSES)) -> nn.Module:
    activations = (nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.SiLU(), nn.GELU())
    blocks = [
        nn.Sequential(nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.BatchNorm2d(after), activation)
        for before, after, stride, activation in zip(
            (3, 8, 16, 16), (8, 16, 16, 16), (2, 2, 2, 1), activations, strict=True
        )
    ]
    end = {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": nn.Linear(16, outputs)}
    return nn.Sequential(OrderedDict(features=nn.Sequential(*blocks), **end))


def tiny_one_output(*, seed: int = 0) -> Model:
    """Return a network with a single logit, as binary classifiers have."""
    return _model("tiny_one_output", _one_output, Hints(heads=("head",)), seed, outputs="binary")


def tiny_labels(*, seed: int = 0) -> Model:
    """Return a network of several labels, none of which excludes another; each logit belongs to a sigmoid."""
    return _model("tiny_labels", _mixed, Hints(heads=("head",)), seed, outputs="multilabel")


def _one_output() -> nn.Module:
    return _mixed(1)


class _Output(NamedTuple):
    """What a network of transformers returns."""

    logits: Tensor
    hidden: Tensor


class _Pair(nn.Module):
    """A layer that returns a tuple."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.block = _block(before, after, stride=2)

    def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
        return self.block(inputs), None


class _Structured(nn.Module):
    """Layers that return tuples, and a head whose logits are part of a record."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = _Pair(3, 8), _Pair(8, 16), _Pair(16, 16)
        self.head = nn.Linear(16, len(CLASSES))

    def forward(self, inputs: Tensor) -> _Output:
        hidden = inputs
        for layer in (self.first, self.second, self.third):
            hidden, _ = layer(hidden)
        return _Output(logits=self.head(hidden.mean((2, 3))), hidden=hidden)


class _Logits(nn.Module):
    """A network of transformers as an adapter presents it: the scores alone."""

    def __init__(self) -> None:
        super().__init__()
        self.network = _Structured()

    def forward(self, inputs: Tensor) -> Tensor:
        found: _Output = self.network(inputs)
        return found.logits


def tiny_structured(*, seed: int = 0) -> Model:
    """Return a network whose parts return tuples and a record with `.logits`, as those of transformers do."""
    return _model("tiny_structured", _Logits, Hints(heads=("network.head",)), seed)


def tiny_record(*, seed: int = 0) -> Model:
    """Return the network inside `tiny_structured`, which returns the record itself; it needs a head."""
    model = tiny_structured(seed=seed)
    return model.around(model.module.network)


def tiny_vit(*, seed: int = 0) -> Model:
    """Return timm's vision transformer with two blocks of two heads, a class token and 8 x 8 patches."""
    return _model("tiny_vit", _vit, Hints(prefix_tokens=1, heads=("head",)), seed)


def _vit() -> nn.Module:
    from timm.models import VisionTransformer

    return VisionTransformer(img_size=SIDE, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=len(CLASSES))


def tiny_nhwc(*, seed: int = 0) -> Model:
    """Return timm's Swin transformer with two stages of one block; its feature maps are (B, 8, 8, C)."""
    return _model("tiny_nhwc", _swin, Hints(channels_last=True, heads=("head.fc",)), seed)


def _swin() -> nn.Module:
    from timm.models import SwinTransformer

    size, classes = {"img_size": SIDE, "patch_size": 4, "window_size": 4}, len(CLASSES)
    return SwinTransformer(embed_dim=16, depths=(1, 1), num_heads=(1, 2), num_classes=classes, **size)  # type: ignore[arg-type]


# By the names of their models. The first ones are where methods that support few networks are at home.
TOYS: Mapping[str, Callable[..., Model]] = MappingProxyType(
    {
        "tiny_cnn": tiny_cnn,
        "tiny_vit": tiny_vit,
        "tiny_nhwc": tiny_nhwc,
        "tiny_mixed": tiny_mixed,
        "tiny_structured": tiny_structured,
        "tiny_one_output": tiny_one_output,
        "tiny_labels": tiny_labels,
    }
)


def images(count: int, *, seed: int = 0) -> Tensor:
    """Return (count, 3, 64, 64) images in a toy's units: coarse coloured blobs with some noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    noise = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return (smooth + 0.05 * noise).clamp(0, 1) * 4 - 2


def randomise(module: nn.Module, *, seed: int = 0) -> None:
    """Randomise every weight and running statistic of a network, biases and norms included.

    In a new network, biases are 0 and norms have no effect, so that different attribution rules give equal maps.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            _randomise_own(child, generator)


def _randomise_own(module: nn.Module, generator: torch.Generator) -> None:
    for name, weight in module.named_parameters(recurse=False):
        if weight.ndim > 1:
            fan = weight[0].numel()
            weight.copy_(torch.randn(weight.shape, generator=generator) * (2 / fan) ** 0.5)
        elif name == "bias":
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
        else:  # gains of norms and layer scales
            weight.copy_(torch.rand(weight.shape, generator=generator) + 0.5)
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
        module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.2)
        module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)


def _model(name: str, make: Callable[[], nn.Module], hints: Hints, seed: int, *, outputs: str | None = None) -> Model:
    module = copy.deepcopy(_network(make, hints.heads[0], seed))
    preprocessing = Preprocessing(spatial=[], size=(3, SIDE, SIDE), mean=(0.5,) * 3, std=(0.25,) * 3)
    classes = CLASSES[: module.get_parameter(f"{hints.heads[0]}.weight").shape[0]]
    return Model(module, name=name, preprocessing=preprocessing, classes=classes, hints=hints, outputs=outputs)


@lru_cache(maxsize=32)  # the kit makes each toy many times, and a copy takes a tenth of the time
def _network(make: Callable[[], nn.Module], head: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make()
    randomise(module, seed=seed)
    module.eval().requires_grad_(False)
    weight, bias = module.get_submodule(head).parameters()
    with torch.no_grad():
        logits = module(torch.cat([images(12, seed=1), images(4, seed=2) * 0.1]))
        weight.mul_(SPREAD / logits.std(0).mean())  # so that class scores vary over images as in a trained network
        bias.sub_(module(images(12, seed=1)).mean(0))  # so that the predicted class varies as well
    return module
