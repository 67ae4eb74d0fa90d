"""Metrics that hide and show: known values, literal second implementations, and equality with peers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.plugins.curve_cases import case_of, distinct_heat, model_of, network, photo, scene_of, value
from xaihub import (
    Case,
    Metric,
    MetricRefused,
    ParameterError,
    Scene,
)
from xaihub.masking import baseline_image, batch_rows
from xaihub_metrics_curves import xaihub_register_metrics
from xaihub_metrics_curves.areas import Deletion, Insertion
from xaihub_metrics_curves.confidence import AverageDrop, IncreaseInConfidence
from xaihub_metrics_curves.imputation import impute
from xaihub_metrics_curves.order import ranking
from xaihub_metrics_curves.road import ROAD
from xaihub_metrics_curves.steps import AOPC, LogOdds, Monotonicity

SPECS = {spec.name: spec for spec in xaihub_register_metrics()}


class Formula(nn.Module):
    """A network that is a formula over its (n, C, H, W) input."""

    def __init__(self, formula: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x)


def against_zero(value: Tensor) -> Tensor:
    return torch.stack([value, torch.zeros_like(value)], dim=1)


def of_probability(value: Tensor) -> Tensor:
    return torch.stack([value.log(), (1 - value).log()], dim=1)


def forward_passes(metric: Metric, case: Case) -> int:
    return metric.measure(case)[1].forward_passes


@pytest.fixture
def scene() -> Scene:
    return scene_of(model_of(network(), (3, 48, 48)), photo(), target=2)


@pytest.mark.parametrize("steps", [16, 64])
def test_a_model_of_one_pixel_is_deleted_and_inserted_by_the_first_step(steps: int) -> None:
    model = model_of(Formula(lambda x: against_zero(x[:, 0, 2, 5])), (1, 8, 8))
    heat = torch.zeros(8, 8)
    heat[2, 5] = 1
    case = case_of(scene_of(model, torch.ones(1, 8, 8)), heat)
    # The first trapezoid, half of one step, is all that is lost.
    assert value(Deletion(steps=steps, output="logit"), case) == pytest.approx(1 / (2 * steps))
    assert value(Insertion(steps=steps, output="logit", baseline="zero"), case) == pytest.approx(1 - 1 / (2 * steps))


def test_every_map_scores_one_half_on_the_mean_of_a_white_image() -> None:
    model = model_of(Formula(lambda x: against_zero(4 * x.mean((1, 2, 3)))), (1, 8, 8))
    case = case_of(scene_of(model, torch.ones(1, 8, 8)), torch.randn(8, 8))
    options = {"steps": 16, "output": "logit", "baseline": "zero"}
    assert value(Deletion(**options), case) == pytest.approx(4 * 0.5)
    assert value(Insertion(**options, normalised=True), case) == pytest.approx(0.5)
    assert value(AOPC(**options), case) == pytest.approx(4 * 0.5)
    assert value(AOPC(**options, order="difference"), case) == pytest.approx(0, abs=1e-6)
    assert value(Monotonicity(**options), case) == 1


def test_log_odds_fall_by_the_weight_of_what_is_hidden() -> None:
    # Against a class whose logit is 0 the log-odds are the logit itself, also where p rounds to 1.
    model = model_of(Formula(lambda x: against_zero(60 * x.mean((1, 2, 3)))), (1, 8, 8))
    case = case_of(scene_of(model, torch.ones(1, 8, 8)), torch.randn(8, 8))
    expected = -60 * (1 + 2 + 3) / 3 / 16  # three of sixteen steps lie within 20 %
    assert value(LogOdds(steps=16), case) == pytest.approx(expected, rel=1e-6)


def test_log_odds_of_the_form_probability_are_logarithms_of_probabilities() -> None:
    model = model_of(Formula(lambda x: of_probability(0.1 + x.mean((1, 2, 3)))), (1, 8, 8))
    case = case_of(scene_of(model, torch.full((1, 8, 8), 0.8)), torch.randn(8, 8))
    expected = sum(math.log((0.9 - 0.8 * k / 16) / 0.9) for k in (1, 2, 3)) / 3
    assert value(LogOdds(steps=16, form="probability"), case) == pytest.approx(expected, rel=1e-5)


def test_average_drop_is_the_share_of_the_probability_that_is_lost() -> None:
    model = model_of(Formula(lambda x: of_probability(x.mean((1, 2, 3)))), (1, 8, 8))
    heat = torch.zeros(8, 8)
    heat[:, :2] = 5
    case = case_of(scene_of(model, torch.full((1, 8, 8), 0.8)), heat)
    assert value(AverageDrop(), case) == pytest.approx(0.75)  # a quarter of the image stays
    assert value(IncreaseInConfidence(), case) == 0


def test_confidence_increases_when_the_map_leaves_out_what_speaks_against() -> None:
    model = model_of(Formula(lambda x: of_probability(0.8 - 0.5 * x[:, :, 4:].mean((1, 2, 3)))), (1, 8, 8))
    heat = torch.zeros(8, 8)
    heat[:4] = 1
    scene = scene_of(model, torch.ones(1, 8, 8))
    assert value(IncreaseInConfidence(), case_of(scene, heat)) == 1
    assert value(AverageDrop(), case_of(scene, heat)) == 0
    assert value(IncreaseInConfidence(), case_of(scene, 1 - heat)) == 0


def test_road_erases_a_bright_pixel_that_comes_first_and_keeps_it_when_it_comes_last() -> None:
    model = model_of(Formula(lambda x: of_probability(x[:, 0, 8, 8].clamp(0.01, 0.99))), (1, 16, 16))
    image, heat = torch.full((1, 16, 16), 0.1), torch.zeros(16, 16)
    image[0, 8, 8], heat[8, 8] = 0.9, 1
    case = case_of(scene_of(model, image), heat)
    assert value(ROAD(order="morf", noise=0), case) == pytest.approx(0.8, abs=1e-6)
    assert value(ROAD(order="lerf", noise=0), case) == pytest.approx(0, abs=1e-6)
    assert value(ROAD(noise=0), case) == pytest.approx(0.4, abs=1e-6)


def test_imputation_continues_a_ramp_exactly() -> None:
    ramp = torch.arange(20.0).expand(3, 20, 20).clone()
    shown = torch.ones(20, 20, dtype=torch.bool)
    shown[5:14, 3:16] = False
    torch.testing.assert_close(impute(ramp.masked_fill(~shown, 99.0), shown), ramp, rtol=0, atol=1e-4)


PLANTED = [
    (Insertion(baseline="zero"), 0.3),
    (Deletion(), 0.3),
    (AOPC(), 0.3),
    (AOPC(order="difference", output="logit"), 0.3),
    (LogOdds(), 0.3),
    (AverageDrop(), 0.3),
    (ROAD(), 0.3),
    (ROAD(order="morf", output="logit"), 0.3),
    (ROAD(order="lerf", output="logit"), 0.3),
    (Monotonicity(), 0.9),
]


NAMES = {
    Insertion: "insertion",
    Deletion: "deletion",
    AOPC: "aopc",
    LogOdds: "log_odds",
    AverageDrop: "average_drop",
    IncreaseInConfidence: "increase_in_confidence",
    ROAD: "road",
    Monotonicity: "monotonicity",
}


@pytest.mark.parametrize(("metric", "clutter"), PLANTED, ids=lambda item: repr(item)[:40])
def test_the_planted_evidence_beats_a_shuffled_map_and_that_beats_its_inverse(metric: Metric, clutter: float) -> None:
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[10:18, 8:16] = True

    def formula(x: Tensor) -> Tensor:
        evidence, rest = x[:, 0, inside].mean(1), x[:, 0, ~inside].mean(1) / 0.5
        return against_zero(6 * evidence * (1 - clutter * rest))

    generator = torch.Generator().manual_seed(0)
    image = torch.where(inside, 1.0, 0.5)[None]
    oracle = inside.float() + 0.1 * torch.rand(32, 32, generator=generator)
    shuffled = oracle.flatten()[torch.randperm(1024, generator=generator)].view(32, 32)
    scene = scene_of(model_of(Formula(formula), (1, 32, 32)), image)
    sign = 1 if SPECS[NAMES[type(metric)]].higher_is_better else -1
    best, middle, worst = (sign * value(metric, case_of(scene, heat)) for heat in (oracle, shuffled, -oracle))
    assert best > middle + 0.01
    assert middle > worst + 0.01


def test_deletion_by_patches_is_the_written_out_loop(scene: Scene) -> None:
    heat, patch, steps = distinct_heat(), 16, 4
    pieces = sorted(
        ((r, c) for r in range(3) for c in range(3)),
        key=lambda rc: -heat[rc[0] * patch : (rc[0] + 1) * patch, rc[1] * patch : (rc[1] + 1) * patch].mean(),
    )
    baseline = baseline_image("mean", scene.model, scene.image)
    counts = [math.floor(k * 9 / steps) for k in range(steps + 1)]
    scores = []
    for count in counts:
        image = scene.image.clone()
        for r, c in pieces[:count]:
            where = (slice(None), slice(r * patch, (r + 1) * patch), slice(c * patch, (c + 1) * patch))
            image[where] = baseline[where]
        scores.append(float(scene.model.predict(image[None]).softmax(1)[0, 2]))
    area = sum((b - a) / 9 * (y + z) / 2 for a, b, y, z in zip(counts, counts[1:], scores, scores[1:], strict=False))
    options = {"steps": steps, "unit": "patches", "patch": patch, "baseline": "mean"}
    assert value(Deletion(**options), case_of(scene, heat)) == pytest.approx(area, abs=1e-6)
    falls = [scores[0] - y for y in scores]
    assert value(AOPC(**options), case_of(scene, heat)) == pytest.approx(sum(falls) / len(falls), abs=1e-6)
    odds = [math.log(y / (1 - y)) for y in scores]
    assert value(LogOdds(**options, removed=0.5), case_of(scene, heat)) == pytest.approx(
        sum(o - odds[0] for o in odds[1:3]) / 2, rel=1e-4
    )
    shown = scores[::-1][1:]  # least relevant first is the same curve, read backward passes
    rises = [b >= a for a, b in pairwise(shown)]
    assert value(Monotonicity(**options), case_of(scene, heat)) == pytest.approx(sum(rises) / len(rises))


def test_patches_cut_off_by_the_edge_count_by_their_mean() -> None:
    model = model_of(Formula(lambda x: against_zero(x.mean((1, 2, 3)))), (1, 10, 10))
    heat = torch.zeros(10, 10)
    heat[8:, 8:] = 3  # the smallest patch, 2 x 2
    heat[:8, :8] = 1
    ranks = ranking(case_of(scene_of(model, torch.ones(1, 10, 10)), heat), unit="patches", patch=8).ranks
    assert int(ranks[9, 9]) == 0
    assert int(ranks[0, 0]) == 1


def test_a_normalised_area_is_the_area_of_the_rescaled_score(scene: Scene) -> None:
    plain = Insertion(output="logit").measure(case_of(scene, distinct_heat()))[0]
    nothing, whole = plain.details["empty"], plain.details["whole"]
    rescaled = value(Insertion(output="logit", normalised=True), case_of(scene, distinct_heat()))
    assert rescaled == pytest.approx((plain.value - nothing) / (whole - nothing), rel=1e-6)
    assert plain.curve is not None
    assert (plain.curve[0][0], plain.curve[0][-1]) == (0, 1)
    assert plain.curve[1][-1] == pytest.approx(whole)


def test_imputation_solves_the_weighted_mean_of_neighbours_at_every_hidden_pixel() -> None:
    shown = torch.rand(12, 9, generator=torch.Generator().manual_seed(0)) > 0.7
    image = torch.randn(2, 12, 9, generator=torch.Generator().manual_seed(1))
    filled = impute(image, shown)
    assert torch.equal(filled[:, shown], image[:, shown])
    for r, c in (~shown).nonzero().tolist():
        near = [
            (filled[:, r + dr, c + dc], 1 / 12 if dr and dc else 1 / 6)
            for dr in (-1, 0, 1)
            for dc in (-1, 0, 1)
            if (dr or dc) and 0 <= r + dr < 12 and 0 <= c + dc < 9
        ]
        mean = sum(pixel * weight for pixel, weight in near) / sum(weight for _, weight in near)
        torch.testing.assert_close(filled[:, r, c], mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_monotonicity_of_all_steps_is_the_published_procedure(weight: float) -> None:
    net = Formula(lambda x: against_zero(weight * (x[:, 0] * (1 + distinct_heat(12))).sum((1, 2))))
    scene = scene_of(model_of(net, (1, 12, 12)), photo(1, side=12).abs())
    heat, scores = distinct_heat(12, seed=4), []
    image = torch.zeros(1, 1, 144)
    for pixel in heat.flatten().argsort().tolist():  # from the least relevant pixel on, one by one
        image[..., pixel] = scene.image.view(1, 144)[:, pixel]
        scores.append(float(scene.model.predict(image.view(1, 1, 12, 12)).softmax(1)[0, 0]))
    expected = all(b >= a for a, b in pairwise(scores))
    assert value(Monotonicity(steps=144, summary="all"), case_of(scene, heat)) == expected == (weight > 0)


def test_imputed_pixels_carry_the_noise_and_visible_ones_do_not() -> None:
    seen: list[Tensor] = []

    def formula(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return against_zero(x.mean((1, 2, 3)))

    scene = scene_of(model_of(Formula(formula), (1, 64, 64)), torch.full((1, 64, 64), 0.5))
    batch_rows(scene.model)  # measures a row with a pass of its own
    scene.model.check_rows()
    seen.clear()
    case = case_of(scene, distinct_heat(64), seed=3)
    value(ROAD(percentiles="40,70", noise=0.02, order="morf"), case)
    first, second = torch.cat(seen)[:, 0] - 0.5
    hidden = ranking(case).ranks < round(0.4 * 64 * 64)
    assert float(first[~hidden].abs().max()) == 0
    assert float(first[hidden].std()) == pytest.approx(0.02, rel=0.05)
    torch.testing.assert_close(first[hidden], second[hidden])  # one field for all masks


def test_metrics_of_one_curve_share_its_forward_passes_and_the_image_its_ends(scene: Scene) -> None:
    first, second = case_of(scene, distinct_heat(seed=1)), case_of(scene, distinct_heat(seed=2))

    def made(metric: Metric, case: Case) -> int:
        """Return the passes that really ran; those charged do not depend on what ran before."""
        with case.model.counting() as counts:
            charged = forward_passes(metric, case)
        assert charged == forward_passes(metric, case_of(scene, case.heat))
        return counts.forward_passes

    assert made(Deletion(), first) == 27 + 1  # the whole image is known, the baseline alone is not
    assert [made(metric, first) for metric in (AOPC(), LogOdds(), Monotonicity(), Deletion(output="logit"))] == [0] * 4
    assert made(Insertion(baseline="zero"), first) == 27
    assert made(AOPC(order="difference"), first) == 0
    assert made(AOPC(order="difference"), second) == 2 * 27
    assert made(Deletion(steps=14), second) == 13
    assert [made(metric, second) for metric in (AverageDrop(), IncreaseInConfidence())] == [1, 0]
    assert [made(ROAD(order=order), second) for order in ("morf", "combined", "lerf")] == [9, 9, 0]


@pytest.mark.parametrize(
    "metric", [Insertion(), Deletion(baseline="noise"), ROAD(percentiles="30,60"), AverageDrop()], ids=repr
)
def test_scores_do_not_depend_on_batch_size_or_on_which_metric_came_first(metric: Metric) -> None:
    scenes = [scene_of(model_of(network(), (3, 48, 48), batch_size=rows), photo(), target=2) for rows in (1, 7)]
    alone, after = (case_of(scene, distinct_heat(), seed=5) for scene in scenes)
    value(LogOdds(baseline="noise"), after)
    value(ROAD(noise=0.5, order="lerf"), after)
    assert value(metric, alone) == pytest.approx(value(metric, after), abs=1e-6)


def test_a_constant_map_is_not_a_raster_scan() -> None:
    model = model_of(Formula(lambda x: against_zero(x[:, 0, :4].mean((1, 2)))), (1, 8, 8))
    case = case_of(scene_of(model, torch.ones(1, 8, 8)), torch.full((8, 8), 0.3))
    # A raster scan would hide the upper half, all of the evidence, first: an area of 0.25.
    assert value(Deletion(steps=64, output="logit"), case) == pytest.approx(0.5, abs=0.12)


def test_ties_are_ordered_alike_wherever_they_stand() -> None:
    model = model_of(Formula(lambda x: against_zero(x.mean((1, 2, 3)))), (1, 8, 8))
    scene = scene_of(model, torch.ones(1, 8, 8))
    heat = torch.zeros(8, 8)
    heat[2:5, 3:6] = 1
    ranks = ranking(case_of(scene, heat)).ranks
    assert sorted(ranks.flatten().tolist()) == list(range(64))
    assert sorted(ranks[2:5, 3:6].flatten().tolist()) == list(range(9))
    assert torch.equal(ranks, ranking(case_of(scene, heat * 7 - 2, seed=9)).ranks)
    assert not torch.equal(ranks[2:5, 3:6].flatten(), torch.arange(9))


def test_the_log_odds_of_a_contrast_are_the_difference_of_two_logits() -> None:
    model = model_of(network(), (3, 48, 48))
    contrast = case_of(scene_of(model, photo(), target=2, against=4), distinct_heat())
    area = Deletion(output="logit", steps=5).measure(contrast)[0]
    assert area.curve is not None
    mean = np.mean([y - area.curve[1][0] for y in area.curve[1][1:2]])
    assert value(LogOdds(steps=5), contrast) == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("metric", [AverageDrop(), IncreaseInConfidence()], ids=repr)
def test_a_constant_map_cannot_be_scaled(scene: Scene, metric: Metric) -> None:
    with pytest.raises(MetricRefused, match="the map is constant, 0.3"):
        value(metric, case_of(scene, torch.full((48, 48), 0.3)))


def test_a_drop_from_a_negative_contrast_is_refused() -> None:
    scene = scene_of(
        model_of(Formula(lambda x: against_zero(-x.mean((1, 2, 3)))), (1, 8, 8)), torch.ones(1, 8, 8), 0, 1
    )
    with pytest.raises(MetricRefused, match="score of the image is -0.462"):
        value(AverageDrop(), case_of(scene, distinct_heat(8)))


def test_a_normalised_area_is_refused_where_the_baseline_scores_higher() -> None:
    scene = scene_of(model_of(Formula(lambda x: against_zero(-x.mean((1, 2, 3)))), (1, 8, 8)), torch.ones(1, 8, 8))
    with pytest.raises(MetricRefused, match="does not exceed that of the baseline 'zero', 0.5"):
        value(Deletion(normalised=True), case_of(scene, distinct_heat(8)))


def test_too_few_steps_are_refused(scene: Scene) -> None:
    case = case_of(scene, distinct_heat())
    with pytest.raises(MetricRefused, match="the first of 4 steps masks more than the fraction 0.2"):
        value(LogOdds(steps=4), case)
    with pytest.raises(MetricRefused, match="a single step"):
        value(Monotonicity(steps=1), case)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (ROAD(percentiles="10,100"), "percentiles cannot be '10,100'"),
        (ROAD(percentiles="few"), "percentiles cannot be 'few'"),
        (Deletion(unit="patches", patch=49), "a patch of 49 pixels is larger than the input"),
        (Deletion(baseline="fog"), "no baseline is named 'fog'"),
        (Deletion(steps=0), "parameter 'steps' of Deletion cannot be 0"),
        (AOPC(removed=0.0), "parameter 'removed' of AOPC cannot be 0.0"),
    ],
    ids=repr,
)
def test_a_parameter_that_cannot_be_is_named(scene: Scene, metric: Metric, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        value(metric, case_of(scene, distinct_heat()))


def test_the_registered_names_lead_to_the_classes() -> None:
    assert {name: spec.load() for name, spec in SPECS.items()} == {name: kind for kind, name in NAMES.items()}
