"""Metrics of sufficient pixels: known values, literal second implementations, and planted evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xaihub import (
    Case,
    ClassScore,
    Explanation,
    Hub,
    Metric,
    MetricRefused,
    Model,
    ParameterError,
    PixelSet,
    Preprocessing,
    ResolvedTarget,
    Runtime,
    Scene,
)
from xaihub_metrics_sufficiency import xaihub_register_metrics
from xaihub_metrics_sufficiency.area import SufficientArea, SufficientDrop
from xaihub_metrics_sufficiency.sets import sets_of
from xaihub_metrics_sufficiency.transplant import TransplantColours, TransplantCurve, TransplantPhotos, backgrounds

SIDE = 32
ALL: list[Metric] = [SufficientArea(), SufficientDrop(), TransplantColours(), TransplantPhotos(), TransplantCurve()]


class Formula(nn.Module):
    """A network that is a formula over its (n, 1, H, W) input, against a class whose logit is 0."""

    def __init__(self, formula: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        value = self.formula(x)
        return torch.stack([value, torch.zeros_like(value)], dim=1)


def white_square(x: Tensor) -> Tensor:
    """Class 0 wants the square of rows 8 to 15 and columns 4 to 11 to be nearly white everywhere."""
    return 20 * ((x[:, 0, 8:16, 4:12] > 0.9).float().mean((1, 2)) - 0.75)


def scene_of(formula: Callable[[Tensor], Tensor], *, rows: int = 8, pool: Any = (), **target: Any) -> Scene:
    size = (1, SIDE, SIDE)
    plain = Preprocessing(spatial=[], size=size, mean=(0.0,), std=(1.0,))
    model = Model(Formula(formula), name="tiny", preprocessing=plain, runtime=Runtime(batch_size=rows))
    image = torch.ones(size)
    wanted = {"index": torch.tensor([0]), **target}
    logits = model.predict(image[None])[0]
    return Scene(model=model, image=image, logits=logits, target=ResolvedTarget(**wanted), pool=pool)


def case_of(scene: Scene, heat: Tensor, mask: Tensor | None = None, baseline: str = "zero", seed: int = 0) -> Case:
    score = ClassScore(index=0, name="0", logit=0.0, probability=0.0)
    sets = () if mask is None else (PixelSet(mask=mask.bool(), baseline=baseline),)
    made = Explanation(values=heat[None], target=score, predicted=score, sets=sets)
    return Case(scene=scene, explanation=made, seed=seed)


def measured(metric: Metric, case: Case) -> float:
    return metric.measure(case)[0].value


def square() -> Tensor:
    mask = torch.zeros(SIDE, SIDE)
    mask[8:16, 4:12] = 1
    return mask


def distinct(seed: int = 0) -> Tensor:
    return torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(seed)).view(SIDE, SIDE).float()


POOL = [(torch.zeros(1, SIDE, SIDE), 1), (torch.ones(1, SIDE, SIDE), 0), (torch.full((1, SIDE, SIDE), 0.5), 1)]


# Known values


def test_the_area_is_the_evidence_that_is_needed_to_the_resolution_of_the_search() -> None:
    heat = square() * 2000 + distinct()
    for confidence, share in ((0.0, 0.75), (0.5, 0.75), (0.99, None)):
        case = case_of(scene_of(white_square), heat)
        found = measured(SufficientArea(confidence=confidence), case)
        whole = torch.tensor(5.0).sigmoid()
        needed = share or 0.75 + float((0.99 * whole).logit()) / 20
        assert 0 <= found - needed * 64 / SIDE**2 <= 3 / SIDE**2


def test_a_map_that_puts_the_evidence_last_needs_nearly_everything() -> None:
    case = case_of(scene_of(white_square), distinct() - square() * 2000)
    assert measured(SufficientArea(), case) == pytest.approx(1 - 16 / SIDE**2, abs=3 / SIDE**2)


def test_an_answer_that_stays_without_any_pixel_needs_none() -> None:
    case = case_of(scene_of(lambda x: 1 + x.mean((1, 2, 3))), distinct())
    assert measured(SufficientArea(), case) == 0
    assert measured(SufficientArea(confidence=1.0), case) == 1


def test_the_drop_is_what_a_returned_set_loses() -> None:
    scene = scene_of(lambda x: 4 * x.mean((1, 2, 3)) - 1)
    for share in (0.375, 0.5, 1.0):
        mask = torch.zeros(SIDE, SIDE)
        mask[: int(share * SIDE)] = 1
        expected = torch.tensor(3.0).sigmoid() - torch.tensor(4 * share - 1).sigmoid()
        case = case_of(scene, distinct(), mask)
        assert measured(SufficientDrop(), case) == pytest.approx(float(expected), abs=1e-6)
        assert measured(SufficientArea(), case) == share


def test_evidence_alone_is_recognised_anywhere_and_the_rest_nowhere() -> None:
    for share, expected in ((square(), 1.0), (1 - square(), 0.0)):
        case = case_of(scene_of(white_square, pool=POOL), distinct(), share)
        assert measured(TransplantColours(), case) == expected
        assert measured(TransplantPhotos(), case) == expected


def test_transplants_count_the_colours_that_the_model_can_bear() -> None:
    scene = scene_of(lambda x: x.mean((1, 2, 3)) - 0.6)
    mask = torch.zeros(SIDE, SIDE)
    mask[: SIDE // 2] = 1
    colours = backgrounds(scene, "colours", 40, 0)[:, 0, 0, 0]
    expected = float((0.5 + 0.5 * colours > 0.6).double().mean())  # half of the image is white
    assert 0.5 < expected < 1
    assert measured(TransplantColours(count=40), case_of(scene, distinct(), mask)) == expected


# Literal second implementations


def literal_prefix(scene: Scene, heat: Tensor, confidence: float) -> int:
    """Grow by one pixel at a time."""
    order = heat.flatten().argsort(descending=True)
    whole = scene.model.module(scene.image[None]).softmax(1)[0, 0]
    for count in range(SIDE * SIDE + 1):
        mask = torch.zeros(SIDE * SIDE)
        mask[order[:count]] = 1
        logits = scene.model.module(scene.image[None] * mask.view(1, 1, SIDE, SIDE))
        if int(logits.argmax()) == 0 and logits.softmax(1)[0, 0] >= confidence * whole - 1e-5:
            return count
    raise AssertionError


@pytest.mark.parametrize("confidence", [0.0, 0.5, 0.9])
@torch.inference_mode()
def test_a_prefix_is_the_smallest_where_more_is_better(confidence: float) -> None:
    scene = scene_of(lambda x: 6 * x.mean((1, 2, 3)) - 2)
    heat = distinct(3)
    count = literal_prefix(scene, heat, confidence)
    found = sets_of(case_of(scene, heat), "ranking", "zero").sets([confidence])[0]
    assert count <= int(found.mask.sum()) <= count + SIDE * SIDE // 512
    assert found.verdict.keeps


@torch.inference_mode()
def test_the_curve_equals_one_image_at_a_time() -> None:
    scene = scene_of(lambda x: x.mean((1, 2, 3)) - 0.6)
    heat = distinct(2)
    metric = TransplantCurve(shares="0.1,0.35,0.6", count=12)
    result = metric.measure(case_of(scene, heat))[0]
    expected = []
    for share in (0.1, 0.35, 0.6):
        best = heat.flatten().argsort(descending=True)[: round(share * SIDE * SIDE)]
        votes = []
        for background in backgrounds(scene, "colours", 12, 0):
            image = background.clone().contiguous()
            image.view(-1)[best] = scene.image.flatten()[best]
            votes.append(int(scene.model.module(image[None]).argmax()) == 0)
        expected.append(sum(votes) / 12)
    assert result.curve is not None
    assert result.curve[1] == pytest.approx(expected)
    assert result.value == pytest.approx(sum(expected) / 3)
    assert 0 < min(expected[1:]) < max(expected)


def test_only_metrics_that_take_photos_depend_on_the_other_images_of_a_run() -> None:
    metrics = [*ALL, TransplantCurve(family="photos")]
    assert [metric.needs_pool for metric in metrics] == [isinstance(metric, TransplantPhotos) for metric in ALL] + [
        True
    ]


# Order


def noisy(x: Tensor) -> Tensor:
    """The square is evidence, and a bright surrounding helps."""
    return 6 * x[:, 0, 8:16, 4:12].mean((1, 2)) + x.mean((1, 2, 3)) - 4.5


def ranked(metric: Metric, *maps: Tensor, masks: bool = False) -> list[float]:
    """Score maps, or the 64 best pixels of each as a returned set, so that better is larger."""
    spec = next(spec for spec in xaihub_register_metrics() if spec.target.endswith(type(metric).__name__))
    found = []
    for heat in maps:
        best = (heat >= heat.flatten().sort(descending=True).values[63]).float() if masks else None
        found.append(
            measured(metric, case_of(scene_of(noisy, pool=POOL), heat, best)) * (1 if spec.higher_is_better else -1)
        )
    return found


@pytest.mark.parametrize(
    ("metric", "masks"),
    [
        (SufficientArea(), False),
        (SufficientArea(confidence=0.9), False),
        (SufficientDrop(), True),
        (TransplantColours(), True),
        (TransplantCurve(), False),
        (TransplantCurve(family="photos"), False),
    ],
    ids=repr,
)
def test_the_evidence_beats_a_shuffled_map_and_that_its_inverse(metric: Metric, masks: bool) -> None:
    oracle = square() * 2000 + distinct()
    half = oracle.clone()
    half[8:12], half[20:24] = oracle[20:24], oracle[8:12]  # half of the evidence is elsewhere
    shuffled = {False: oracle.flatten()[distinct(5).long().flatten()].view(SIDE, SIDE), True: half}[masks]
    best, middle, worst = ranked(metric, oracle, shuffled, -oracle, masks=masks)
    assert best >= middle >= worst
    assert best > worst


def test_a_constant_map_is_a_random_one_and_no_raster_scan() -> None:
    scene = scene_of(white_square)
    flat = measured(SufficientArea(), case_of(scene, torch.zeros(SIDE, SIDE)))
    raster = measured(SufficientArea(), case_of(scene, -torch.arange(SIDE * SIDE).float().view(SIDE, SIDE)))
    assert raster == pytest.approx(14 / SIDE, abs=0.03)
    assert 0.6 < flat < 0.9


# Sets


def test_a_returned_set_is_evaluated_with_the_baseline_it_was_found_with() -> None:
    scene = scene_of(lambda x: 2 - 4 * (x[:, 0] < 0.1).float().mean((1, 2)))  # black spoils it
    mask = torch.zeros(SIDE, SIDE)
    mask[:4] = 1
    case = case_of(scene, distinct(), mask, baseline="white")
    assert measured(SufficientArea(), case) == 0.125
    assert measured(SufficientDrop(), case) == pytest.approx(0, abs=1e-6)
    with pytest.raises(MetricRefused, match="does not keep the target when the other pixels are replaced by 'zero'"):
        SufficientArea(baseline="zero").measure(case)
    assert 0.45 < measured(SufficientArea(pixels="ranking"), case) < 0.55


def test_the_first_set_that_claims_to_keep_the_target_is_evaluated() -> None:
    sides = [torch.zeros(SIDE, SIDE, dtype=torch.bool) for _ in range(3)]
    for number, mask in enumerate(sides):
        mask[: 8 * (number + 1)] = True
    roles = ("background", "complete", "sufficient")
    case = case_of(scene_of(lambda x: 1 + x.mean((1, 2, 3))), distinct())
    sets = tuple(PixelSet(mask=mask, role=role) for mask, role in zip(sides, roles, strict=True))
    returned = Case(scene=case.scene, explanation=replace(case.explanation, sets=sets))
    assert measured(SufficientArea(), returned) == 0.5
    only = Case(scene=case.scene, explanation=replace(case.explanation, sets=sets[:1]))
    assert measured(SufficientArea(), only) == 0  # no claim: the smallest prefix, which is empty here


def test_masks_of_a_round_share_batches_and_metrics_share_verdicts() -> None:
    scene = scene_of(lambda x: 6 * x.mean((1, 2, 3)) - 2, rows=64)
    case = case_of(scene, distinct())
    module: Any = scene.model.module
    scene.model.check_rows()
    module.rows.clear()
    first = TransplantColours(count=16).measure(case)[1].forward_passes
    assert len(module.rows) <= 5 + 2  # rounds of the search, and 80 rows of transplants
    assert first < 17 + 5 * 4 * 4 + 80
    module.rows.clear()
    assert SufficientArea(confidence=0.5).measure(case)[1].forward_passes > 0
    assert not module.rows
    assert TransplantColours(count=16).measure(case)[1].forward_passes == first
    assert sum(module.rows) == 80


@pytest.mark.parametrize("metric", ALL, ids=repr)
def test_the_passes_charged_do_not_depend_on_what_was_measured_before(metric: Metric) -> None:
    fresh, used = case_of(scene_of(noisy, pool=POOL), distinct()), case_of(scene_of(noisy, pool=POOL), distinct())
    for other in reversed(ALL):
        other.measure(used)
    assert metric.measure(used)[1] == metric.measure(fresh)[1]


@pytest.mark.parametrize("metric", ALL, ids=repr)
def test_the_batch_size_and_the_company_do_not_matter(metric: Metric) -> None:
    heat = distinct(4)
    alone = [measured(metric, case_of(scene_of(noisy, rows=rows, pool=POOL), heat)) for rows in (1, 7, 300)]
    case = case_of(scene_of(noisy, pool=POOL), heat)
    for other in reversed(ALL):
        other.measure(case)
    assert measured(metric, case) == pytest.approx(alone[0], abs=1e-6)
    assert alone == pytest.approx([alone[0]] * 3, abs=1e-6)


def test_backgrounds_depend_on_the_seed_and_fewer_are_the_first_of_more() -> None:
    scene = scene_of(white_square, pool=POOL)
    few, more, other = (backgrounds(scene, "colours", n, seed) for n, seed in ((3, 0), (8, 0), (8, 1)))
    assert torch.equal(few, more[:3])
    assert not torch.equal(more, other)
    assert more.flatten(2).std(2).max() == 0
    photos = backgrounds(scene, "photos", 9, 0)
    assert sorted(float(photo.mean()) for photo in photos) == [0.0, 0.5]  # the white one is of the target's class


def test_a_class_that_is_not_first_keeps_its_rank_and_a_contrast_its_lead() -> None:
    second = scene_of(white_square, index=torch.tensor([1]))
    assert measured(SufficientArea(), case_of(second, distinct())) == 0
    contrast = scene_of(white_square, against=torch.tensor([1]))
    assert measured(SufficientArea(), case_of(contrast, square() * 2000 + distinct())) == pytest.approx(
        48 / SIDE**2, abs=3 / SIDE**2
    )
    reverse = scene_of(white_square, index=torch.tensor([1]), against=torch.tensor([0]))
    with pytest.raises(MetricRefused, match="does not prefer the first class"):
        SufficientArea().measure(case_of(reverse, distinct()))


# Mistakes


def test_wrong_inputs_are_named() -> None:
    case = case_of(scene_of(white_square), distinct())
    with pytest.raises(ParameterError, match="confidences cannot be '0,2'"):
        TransplantColours(confidences="0,2").measure(case)
    with pytest.raises(ParameterError, match="shares cannot be 'half'"):
        TransplantCurve(shares="half").measure(case)
    with pytest.raises(ParameterError, match="no baseline is named 'zeros'"):
        SufficientArea(baseline="zeros").measure(case)
    with pytest.raises(MetricRefused, match="no image of another predicted class"):
        TransplantPhotos().measure(case)


def test_every_metric_is_registered_with_its_facts() -> None:
    for spec in xaihub_register_metrics():
        assert spec.paper is not None
        assert all([spec.formula, spec.variant, spec.cost, spec.limits])
        assert spec.bounds[1] == 1
        assert isinstance(Hub().get_metric(spec.name), Metric)
