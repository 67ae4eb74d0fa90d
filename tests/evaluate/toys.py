"""A model, explainers and metrics of no cost, as a plugin, and what the tests ask of a run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from xaihub import (
    AdapterSpec,
    Case,
    Explainer,
    ExplainerSpec,
    Measurement,
    Metric,
    MetricSpec,
    Model,
    ModelAdapter,
    ModelRequest,
    Preprocessing,
    ResolvedTarget,
    hookimpl,
)
from xaihub.errors import ExplainerRefused, MetricRefused
from xaihub.evaluation.config import Config
from xaihub.evaluation.store import RunStore
from xaihub.masking import BaselineName, baseline_image

CALLS: list[str] = []


class ToyAdapter(ModelAdapter):
    """Offers "toy", a small convolutional network with fixed weights."""

    def knows(self, name: str) -> bool:
        return name in ("toy", "toy2")

    def build(self, request: ModelRequest, device: torch.device) -> Model:
        generator = torch.Generator().manual_seed(len(request.name))
        module = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )
        for weight in module.parameters():
            weight.data = torch.randn(weight.shape, generator=generator)
        preprocessing = Preprocessing(
            spatial=[lambda image: image.resize((16, 16))], size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3
        )
        return Model(module, name=request.name, preprocessing=preprocessing, classes=("a", "b", "c"), device=device)


class ToyGradient(Explainer):
    """The gradient."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        CALLS.append("explain")
        inputs.requires_grad_()
        return torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0]


class ToyNoise(Explainer):
    """Noise of a width."""

    stochastic = True

    def __init__(self, *, width: float = 1.0) -> None:
        self.width = width

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        return torch.randn(len(inputs), 1, *inputs.shape[2:]) * self.width


class ToyFilled(Explainer):
    """What is hidden by a fill, over the whole image."""

    def __init__(self, *, baseline: BaselineName = "mean") -> None:
        self.baseline = baseline

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        return torch.stack([row - baseline_image(self.baseline, model, row) for row in inputs])


class ToyRefusing(Explainer):
    """Refuses."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        raise ExplainerRefused("this network is too small")


class ToyMean(Metric):
    """The mean of the map."""

    def score(self, case: Case) -> float:
        CALLS.append("score")
        return float(case.heat.mean())


class ToyDrawn(Metric):
    """A random number plus the masked score: depends on the seed, uses the model, has a curve."""

    def __init__(self, *, label: str = "") -> None:
        self.label = label

    def score(self, case: Case) -> Measurement:
        drop = case.scene.memory.once("drop", lambda: float(case.scene.score(case.model(case.scene.image[None] * 0))))
        value = float(torch.rand(())) + drop
        return Measurement(value=value, curve=([0.0, 1.0], [value, 0.0]), details={"drop": drop})


class ToyTruth(Metric):
    """Needs a mask."""

    needs_truth = True

    def score(self, case: Case) -> float:
        assert case.scene.truth is not None
        return float(case.scene.truth.float().mean())


class ToyPool(Metric):
    """Looks at other images."""

    needs_pool = True

    def score(self, case: Case) -> float:
        if not len(case.scene.pool):
            raise MetricRefused("there is no other image")
        return float(sum(float(image.mean()) for image, _ in case.scene.pool))


class Toys:
    """The toys as a plugin."""

    @hookimpl
    def xaihub_register_model_adapters(self) -> list[AdapterSpec]:
        return [AdapterSpec(name="toys", target=f"{__name__}:ToyAdapter")]

    @hookimpl
    def xaihub_register_explainers(self) -> list[ExplainerSpec]:
        made = {"toy_gradient": "ToyGradient", "toy_refusing": "ToyRefusing", "toy_filled": "ToyFilled"}
        specs = [ExplainerSpec(name=name, target=f"{__name__}:{target}") for name, target in made.items()]
        return [*specs, ExplainerSpec(name="toy_noise", target=f"{__name__}:ToyNoise", tags=("control",))]

    @hookimpl
    def xaihub_register_metrics(self) -> list[MetricSpec]:
        made = {"toy_mean": "ToyMean", "toy_drawn": "ToyDrawn", "toy_truth": "ToyTruth", "toy_pool": "ToyPool"}
        return [MetricSpec(name=name, target=f"{__name__}:{target}") for name, target in made.items()]


def config(photos: Path, **changes: object) -> Config:
    settings = {
        "images": [str(photos)], "models": ["toy"], "explainers": ["toy_gradient"],
        "metrics": ["toy_mean", "toy_drawn", "toy_pool"], **changes,
    }  # fmt: skip
    return Config(**settings)  # type: ignore[arg-type]


def values(store: RunStore) -> list[tuple[str, str, str, str, float | None, int, str | None]]:
    return [(r.image, r.model, r.explainer, r.metric, r.value, r.forward_passes, r.error) for r in store.rows()]
