"""A good explainer, and explainers whose parameters or maps have one fault each, for the tests of the kit's checks."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from xaihub import (
    Attribution,
    Explainer,
    ExplainerRefused,
    Layout,
    Meta,
    Model,
    Preprocessing,
    ResolvedTarget,
)
from xaihub.masking import baseline_image
from xaihub.testing import randomise

Count = Annotated[int, Meta(ge=1, description="Points.")]


class Good(Explainer):
    """The gradient times the input."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        """Return (B, 3, H, W) values."""
        return self.gradient(model, inputs, target) * inputs.detach()

    def gradient(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        points = inputs.detach().clone().requires_grad_()
        return torch.autograd.grad(target.score(model(points)).sum(), points)[0]


class Works(Good):
    def __init__(self, *, samples: Count = 4) -> None:
        self.samples = samples * 1


class TakesPositions(Good):
    def __init__(self, samples: Count = 4) -> None:
        self.samples = samples


class SaysNothing(Good):
    def __init__(self, *, samples: int = 4) -> None:
        self.samples = samples


class BreaksItsLimits(Good):
    def __init__(self, *, samples: Count = 0) -> None:
        self.samples = samples

    def check_parameters(self) -> str:
        return "it"


class KeepsMore(Good):
    def __init__(self, *, samples: Count = 4) -> None:
        self.samples = samples
        self.cache: list[Tensor] = []


class KeepsMoreInPublic(Good):
    samples: Count = 4
    cache: list[Tensor] = field(default_factory=list, init=False)


class KeepsHiddenState(Good):
    def __init__(self, *, samples: Count = 4) -> None:
        self.samples = samples
        self._cache: list[Tensor] = []


class DeclaresItsParameters(Good):
    """Parameters as annotated attributes, with private state."""

    samples: Count = 4
    _last: Tensor | None = field(default=None, init=False)


class InheritsParameters(DeclaresItsParameters):
    points: Count = 2


class WritesItsConstructor(Good):
    def __init__(self, *, samples: Count = 4) -> None:
        self.samples = samples


class NeedsAParameter(Good):
    samples: Count


class DescribesNothing(Good):
    samples: int = 4


class HalfSize(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        return super().attribute(model, inputs, target)[:, :, ::2, ::2]


class NoTensor(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        return super().attribute(model, inputs, target).numpy()


class DividesByNothing(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        return super().attribute(model, inputs, target) / inputs.detach().std((1, 2, 3), keepdim=True)


class OwnRandomness(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        noise = torch.from_numpy(np.random.default_rng().standard_normal(inputs.shape)).float()
        values = super().attribute(model, inputs, target)
        return values + 1e-6 * values.abs().max() * noise


class RemembersTheFirst(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        scale = vars(self).setdefault("scale", 1 + 1e-5 * float(inputs[0, 0, 0, 0]))
        return values * scale


class LooksAtTheBatch(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        return values / values.abs().max()


class HiddenRandomness(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        return super().attribute(model, inputs + 0.3 * torch.randn_like(inputs), target)


class NoisyFirst(Good):
    plain_first = True

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        model(inputs + 0.01)
        return super().attribute(model, inputs, target)


class TakesTheMaximum(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        inputs.requires_grad_()
        return torch.autograd.grad(model(inputs).amax(1).sum(), inputs)[0]


class ClaimsNoClass(Good):
    class_agnostic = True


class NeverAsks(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        return inputs * (1 + target.index[:, None, None, None]) ** 2


class OnlyScalesTheImage(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        return inputs.abs() * target.score(model(inputs))[:, None, None, None]


class _ByLayout(Good):
    missing: ClassVar[Layout]

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        axes = {layout: 0 for layout in Layout if layout is not self.missing}
        assert axes[model.layer().layout] == 0
        return super().attribute(model, inputs, target)


class NoConvolutions(_ByLayout):
    missing = Layout.NCHW


class NoTokens(_ByLayout):
    missing = Layout.NTC


class NoChannelsLast(_ByLayout):
    missing = Layout.NHWC


class RefusesWithoutAWord(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        if model.layer().layout is Layout.NTC:
            raise ExplainerRefused("no")
        return super().attribute(model, inputs, target)


class RefusesAll(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        if model.input_size != (1, 48, 32):
            raise ExplainerRefused(f"{model.name!r} has images of another size")
        return super().attribute(model, inputs, target)


class BringsItsOwn(RefusesAll):
    @staticmethod
    def example_model(*, seed: int = 0) -> Model:
        module = nn.Sequential(nn.Conv2d(1, 8, 3, stride=4, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 96, 4))
        randomise(module, seed=seed)
        preprocessing = Preprocessing(spatial=[], size=(1, 48, 32), mean=(0.5,), std=(0.5,))
        return Model(module.requires_grad_(False), name="own", preprocessing=preprocessing)


class NoGap(Good):
    completeness = True


class WrongSum(Good):
    completeness = True

    def __init__(self, *, baseline: Annotated[str, Meta(description="The start.")] = "zero") -> None:
        self.baseline = baseline

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        starts = torch.stack([baseline_image(self.baseline, model, image) for image in inputs])
        values = self.gradient(model, inputs, target) * (inputs - starts)
        return Attribution(values=values, completeness_gap=torch.zeros(len(inputs)))


class _Fails(Good):
    """Fails on one network."""

    toy: ClassVar[str]

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        assert model.name != self.toy
        return super().attribute(model, inputs, target)


class NoGELU(_Fails):
    toy = "tiny_mixed"


class NoTuples(_Fails):
    toy = "tiny_structured"


class NoSecondClass(_Fails):
    toy = "tiny_one_output"


class NoLabels(_Fails):
    toy = "tiny_labels"
