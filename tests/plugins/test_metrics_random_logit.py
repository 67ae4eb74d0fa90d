"""Maps of another class: random-logit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from tests.plugins.sanity_cases import KINDS, SIDE, Gradient, case_of, model_of, perceptron, trained
from xaihub import (
    Explainer,
    MetricRefused,
)
from xaihub_controls.method import CentreControl, EdgesControl, RandomControl
from xaihub_metrics_sanity.random_logit import RandomLogit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("control", [RandomControl(), EdgesControl(), CentreControl()], ids=repr)
def test_a_class_agnostic_map_scores_one(control: Explainer, kind: str) -> None:
    found = RandomLogit(similarity=kind).measure(case_of(control, model_of(perceptron())))[0]
    assert found.value == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("absolute", [True, False])
def test_the_gradient_of_a_linear_model_scores_the_cosine_of_two_classes(absolute: bool) -> None:
    module = trained(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 6)))
    metric = RandomLogit(similarity="cosine", absolute=absolute)
    found = metric.measure(case_of(Gradient(), model_of(module), target=3))[0]
    kept = {True: Tensor.abs, False: Tensor.clone}[absolute]
    rows = kept(module[1].weight.detach())
    assert found.value == pytest.approx(
        cosine_similarity(rows[3], rows[found.details["class"]], dim=0).item(), abs=1e-6
    )


def test_the_other_class_of_two_is_the_other_one() -> None:
    model = model_of(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)))
    others = [RandomLogit().measure(case_of(Gradient(), model, target=target))[0].details["class"] for target in (0, 1)]
    assert others == [1, 0]


def test_the_other_class_varies_with_image_and_seed_but_not_with_the_explainer() -> None:
    model = model_of(perceptron())
    images = torch.rand(40, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(4))

    def other(explainer: Explainer, image: Tensor, seed: int = 0) -> int:
        return RandomLogit().measure(case_of(explainer, model, image=image, seed=seed))[0].details["class"]

    drawn = [other(EdgesControl(), image) for image in images]
    assert set(drawn) == {1, 2, 3, 4}
    assert drawn[:5] == [other(Gradient(), image) for image in images[:5]]
    assert {other(EdgesControl(), images[0], seed) for seed in range(40)} == {1, 2, 3, 4}


def test_a_contrast_keeps_what_it_is_contrasted_with() -> None:
    module = trained(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3)))
    metric = RandomLogit(similarity="cosine")
    found = metric.measure(case_of(Gradient(), model_of(module), target="0 vs 1"))[0]
    rows = module[1].weight.detach()
    assert found.details["class"] == 2
    assert found.value == pytest.approx(cosine_similarity(rows[0] - rows[1], rows[2] - rows[1], dim=0).item(), abs=1e-6)


def test_a_model_without_another_class_is_refused() -> None:
    model = model_of(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)))
    with pytest.raises(MetricRefused, match="no other class"):
        RandomLogit().measure(case_of(Gradient(), model, target="0 vs 1"))
