"""The completeness gap and the cost of a map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.plugins.fidelity_cases import (
    SIZE,
    STD,
    LinearScores,
    Network,
    case_of,
    image,
    scene_of,
    shuffled,
    value,
)
from xaihub import (
    Case,
    Explainer,
    Metric,
    MetricRefused,
    Model,
    ResolvedTarget,
)
from xaihub_metrics_fidelity.completeness import CompletenessGap
from xaihub_metrics_fidelity.cost import CostForwards, CostSeconds


class Complete(Explainer):
    completeness = True

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        return inputs


class Silent(Complete):
    completeness = False


def test_completeness_gap_is_the_relative_error_of_the_sum() -> None:
    weights = image(1)
    scene = scene_of(LinearScores(weights), image())
    exact = scene.image * weights
    for values, gap in ((exact, 0), (shuffled(exact), 0), (1.25 * exact, 0.25), (0 * exact, 1), (-exact, 2)):
        assert value(CompletenessGap(), case_of(scene, values, explainer=Complete())) == pytest.approx(gap, abs=1e-5)


def test_completeness_gap_uses_the_baseline_and_score_that_the_explainer_used() -> None:
    weights = image(1)
    scene = scene_of(LinearScores(weights), image())
    white = torch.tensor(STD).reciprocal().view(3, 1, 1)
    against_white = (scene.image - white) * weights
    case = case_of(scene, against_white, explainer=Complete(), parameters={"baseline": "white"})
    assert value(CompletenessGap(), case) == pytest.approx(0, abs=1e-5)
    assert value(CompletenessGap(baseline="zero"), case) > 0.1
    chance = scene.logits.softmax(0)[0] - torch.tensor([0.3, -0.15]).softmax(0)[0]
    values = torch.full(SIZE, float(chance) / 432)
    case = case_of(scene, values, explainer=Complete(), parameters={"baseline": "inpaint", "output": "probability"})
    assert value(CompletenessGap(), case) == pytest.approx(0, abs=1e-5)
    assert value(CompletenessGap(output="logit"), case) > 0.1


def test_completeness_gap_that_the_explainer_reported_is_made_relative() -> None:
    weights = image(1)
    scene = scene_of(LinearScores(weights), image())
    difference = float((scene.image * weights).sum())
    case = case_of(scene, image(5), completeness_gap=abs(difference) / 8)  # whatever the pixels sum to
    measured, _ = CompletenessGap().measure(case)
    assert measured.value == pytest.approx(0.125, rel=1e-5)
    assert measured.details["source"] == "reported"
    assert value(CompletenessGap(claim="ignored"), case) == pytest.approx(
        abs(float(image(5).sum()) - difference) / abs(difference), rel=1e-4
    )


def test_completeness_gap_is_refused_where_nobody_claims_it() -> None:
    scene = scene_of(LinearScores(image(1)), image())
    for explainer in (None, Silent()):
        with pytest.raises(MetricRefused, match="does not claim that its values sum to the score"):
            CompletenessGap().measure(case_of(scene, image(2), explainer=explainer))


def test_completeness_gap_is_refused_where_the_baseline_scores_as_the_image() -> None:
    scene = scene_of(LinearScores(torch.zeros(SIZE)), image())
    with pytest.raises(MetricRefused, match="baseline 'zero' has the same score as the image"):
        CompletenessGap().measure(case_of(scene, image(2), explainer=Complete()))


def test_costs_are_those_of_the_record() -> None:
    class Twice(Explainer):
        def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
            model(inputs)
            inputs.requires_grad_()
            return torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0]

    scene = scene_of(Network(), image())
    explanation = Twice().explain(scene.model, scene.image[None])[0]
    case = Case(scene=scene, explanation=explanation)
    measured, counts = CostForwards().measure(case)
    assert measured.value == 3
    assert measured.details == {"forward_passes": 2, "backward_passes": 1}
    assert counts.forward_passes == 0
    assert value(CostSeconds(), case) == explanation.metadata["seconds"] > 0


@pytest.mark.parametrize("metric", [CostForwards(), CostSeconds()], ids=repr)
def test_a_map_without_a_record_has_no_cost(metric: Metric) -> None:
    scene = scene_of(Network(), image())
    with pytest.raises(MetricRefused, match="record lacks"):
        metric.measure(case_of(scene, image(1)))


def test_a_gap_to_another_baseline_than_was_reported_is_not_taken_for_it() -> None:
    scene = scene_of(LinearScores(image(1)), image())
    case = case_of(scene, image(5), completeness_gap=0.1)
    with pytest.raises(MetricRefused, match="not for white"):
        CompletenessGap(baseline="white").measure(case)
    assert CompletenessGap(baseline="white", claim="ignored").measure(case)[0].details["source"] == "measured"
