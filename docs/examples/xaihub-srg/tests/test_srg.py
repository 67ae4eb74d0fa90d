"""Tests of SRG: against its definition, written out step by step, and on maps with known scores."""

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

import xaihub_srg
from xaihub import Case, Explainer, MetricRefused, Model, Preprocessing, Scene, Target
from xaihub.testing import conformance
from xaihub_srg.method import SRG

WEIGHTS = torch.tensor([[5.0, -1.0], [2.0, 0.5]])  # contribution of each quarter of the image to the logit


@conformance(xaihub_srg.xaihub_register_metrics()[0])
def test_conforms(check) -> None:
    check()


class Quarters(nn.Module):
    """The logit of class 0 is the weighted sum of the brightness of the four quarters."""

    def forward(self, inputs: Tensor) -> Tensor:
        bright = nn.functional.avg_pool2d(inputs.mean(1), 4)
        logit = (bright * WEIGHTS).sum((1, 2))
        return torch.stack([logit, torch.zeros_like(logit)], dim=1)


class Given(Explainer):
    """A given map, with one value per quarter."""

    values: tuple[float, ...] = ()

    def attribute(self, model: Model, inputs: Tensor, target: object) -> Tensor:
        return torch.tensor(self.values).reshape(1, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)


def scored(values: Tensor) -> float:
    plain = Preprocessing(spatial=[], size=(3, 8, 8), mean=(0,) * 3, std=(1,) * 3)
    model = Model(Quarters(), name="quarters", preprocessing=plain)
    image = torch.ones(3, 8, 8)
    logits = model(image[None])
    scene = Scene(model=model, image=image, logits=logits[0], target=Target(index=0).resolve(logits))
    (explanation,) = Given(values=tuple(values.flatten().tolist())).explain(model, image[None], 0)
    metric = SRG(features="grid:2", baseline="zero", output="logit")
    return metric.measure(Case(scene=scene, explanation=explanation))[0].value


def written_out(values: Tensor) -> float:
    """The definition, for a game in which the value of a quarter is its weight."""
    order = sorted(range(4), key=lambda quarter: -float(values.flatten()[quarter]))
    worth = WEIGHTS.flatten().tolist()
    total = 0.0
    for hidden in range(5):
        lif = sum(worth[quarter] for quarter in order[: 4 - hidden])
        mif = sum(worth[quarter] for quarter in order[hidden:])
        total += (lif - mif) / 5
    return total


def test_it_equals_the_definition_for_any_map() -> None:
    for seed in range(5):
        values = torch.randn(2, 2, generator=torch.Generator().manual_seed(seed))
        assert scored(values) == pytest.approx(written_out(values), abs=1e-5)


def test_the_true_map_scores_highest_and_its_negative_lowest() -> None:
    every = [scored(torch.tensor(values).reshape(2, 2)) for values in permutations([1.0, 2.0, 3.0, 4.0])]

    assert scored(WEIGHTS) == pytest.approx(max(every), abs=1e-5)
    assert scored(-WEIGHTS) == pytest.approx(min(every), abs=1e-5)
    assert sum(every) == pytest.approx(0, abs=1e-4)


def test_a_constant_map_is_refused() -> None:
    with pytest.raises(MetricRefused, match="constant"):
        scored(torch.ones(2, 2))
