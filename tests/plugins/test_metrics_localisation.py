"""Localisation metrics: hand-made maps and mosaics whose scores are known, and Quantus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from xaihub import (
    Case,
    Explainer,
    Measurement,
    Metric,
    MetricRefused,
    Model,
    Preprocessing,
    ResolvedTarget,
    Scene,
    Target,
)
from xaihub_controls.method import CentreControl, RandomControl
from xaihub_metrics_localisation import xaihub_register_metrics
from xaihub_metrics_localisation.grid import GridPointing, make_mosaic
from xaihub_metrics_localisation.masks import PointingGame, RelevanceMass, RelevanceRank

SIDE = 24
CLASSES = 12
Draw = Callable[[Tensor, int], Tensor]


class Colours(nn.Module):
    """Class k's logit is the mean of channel k: the evidence of a class is where its channel is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.gain * inputs.mean((2, 3))


def the_model(side: int = SIDE) -> Model:
    preprocessing = Preprocessing(spatial=[], size=(CLASSES, side, side), mean=(0.0,) * CLASSES, std=(1.0,) * CLASSES)
    return Model(Colours(), name="colours", preprocessing=preprocessing)


def class_image(label: int, side: int = SIDE) -> Tensor:
    image = torch.zeros(CLASSES, side, side)
    image[label] = 1
    return image


def explainer_of(draw: Draw) -> Explainer:
    """Explain with `draw(image, class)`, an (H, W) map."""

    class Given(Explainer):
        def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
            maps = [draw(image, int(index)) for image, index in zip(inputs, target.index, strict=True)]
            return torch.stack(maps).unsqueeze(1)

    return Given()


def case_of(
    explainer: Explainer,
    *,
    image: Tensor | None = None,
    truth: Tensor | None = None,
    pool: Sequence[tuple[Tensor, int]] = (),
    target: int = 0,
    seed: int = 0,
) -> Case:
    image = class_image(0) if image is None else image
    model = the_model(image.shape[1])
    logits = model.predict(image[None])
    wanted = Target(index=target)
    scene = Scene(model=model, image=image, logits=logits[0], target=wanted.resolve(logits), truth=truth, pool=pool)
    (explanation,) = explainer.explain(model, image[None], wanted, seed=seed)
    return Case(scene=scene, explanation=explanation, explainer=explainer, seed=seed)


def measured(metric: Metric, heat: Tensor, truth: Tensor) -> Measurement:
    case = case_of(explainer_of(lambda _image, _label: heat), image=torch.zeros(CLASSES, *heat.shape), truth=truth)
    return metric.measure(case)[0]


def a_mask() -> Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[4:12, 6:18] = True
    return mask


# With masks

MASKED = [PointingGame(tolerance=0), RelevanceMass(), RelevanceRank()]


def test_mass_is_the_share_of_positive_values_inside() -> None:
    heat = torch.zeros(SIDE, SIDE)
    heat[5, 7], heat[20, 20], heat[6, 8], heat[21, 21] = 3.0, 1.0, -5.0, -7.0
    assert measured(RelevanceMass(), heat, a_mask()).value == pytest.approx(3 / 4)


def test_rank_is_the_share_of_the_largest_values_inside() -> None:
    heat = torch.arange(SIDE * SIDE).float().view(SIDE, SIDE)  # the 96 largest are the last four rows
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[-1] = mask[0] = mask[1] = mask[2] = True
    assert measured(RelevanceRank(), heat, mask).value == pytest.approx(1 / 4)


def test_rank_with_ties_is_the_mean_over_all_their_orders() -> None:
    heat = torch.tensor([[5.0, 1.0, 1.0], [0.0, 1.0, 1.0], [7.0, 0.0, 1.0]])
    mask = torch.tensor([[True, True, False], [False, False, True], [False, True, True]])
    tied = [index for index, value in enumerate(heat.flatten().tolist()) if value == 1]
    flags = mask.flatten().tolist()
    scores = [sum(flags[index] for index in [6, 0, *order][: sum(flags)]) / sum(flags) for order in permutations(tied)]
    case = case_of(explainer_of(lambda _i, _l: heat), image=torch.zeros(CLASSES, 3, 3), truth=mask)
    assert RelevanceRank().measure(case)[0].value == pytest.approx(float(np.mean(scores)))
    assert len(set(scores)) > 1


@pytest.mark.parametrize(("column", "hit"), [(17, 1), (18, 0), (20, 0)])
def test_the_peak_must_lie_on_the_mask(column: int, hit: int) -> None:
    heat = torch.zeros(SIDE, SIDE)
    heat[8, column] = 1
    assert measured(PointingGame(tolerance=0), heat, a_mask()).value == hit


@pytest.mark.parametrize(
    ("row", "column", "hit"),
    # The mask's corner is at row 11, column 17: 3-4-5 triangles are within reach, one pixel more is not.
    [(14, 21, 1), (15, 20, 1), (15, 21, 0), (11, 22, 1), (11, 23, 0), (16, 10, 1), (17, 10, 0)],
)
def test_the_tolerance_is_a_euclidean_distance(row: int, column: int, hit: int) -> None:
    heat = torch.zeros(SIDE, SIDE)
    heat[row, column] = 1
    assert measured(PointingGame(tolerance=5), heat, a_mask()).value == hit


def test_tied_peaks_count_by_their_share_of_hits() -> None:
    heat = torch.zeros(SIDE, SIDE)
    heat[5, 7] = heat[20, 20] = heat[21, 20] = heat[22, 20] = 2
    assert measured(PointingGame(tolerance=0), heat, a_mask()).value == 0.25


@pytest.mark.parametrize("metric", MASKED, ids=repr)
def test_oracle_beats_shuffled_beats_inverted(metric: Metric) -> None:
    mask = a_mask()
    oracle = mask.float() + 0.01 * torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    orders = [torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(seed)) for seed in range(60)]
    shuffled = [measured(metric, oracle.flatten()[order].view(SIDE, SIDE), mask).value for order in orders]
    best, worst = measured(metric, oracle, mask).value, measured(metric, 1.01 - oracle, mask).value
    assert best > float(np.mean(shuffled)) > worst
    assert best == pytest.approx(1, abs=0.03)
    assert worst == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("metric", [*MASKED, PointingGame(tolerance=3)], ids=repr)
def test_a_constant_map_scores_exactly_chance(metric: Metric) -> None:
    found = measured(metric, torch.full((SIDE, SIDE), 0.7), a_mask())
    assert found.value == pytest.approx(found.details["chance"], abs=1e-12)


@cache
def noise_cases() -> list[Case]:
    images = torch.rand(150, CLASSES, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return [case_of(RandomControl(), image=image, truth=a_mask()) for image in images]


@pytest.mark.parametrize("metric", [*MASKED, PointingGame(tolerance=3)], ids=repr)
def test_the_random_control_scores_chance_on_average(metric: Metric) -> None:
    found = [metric.measure(case)[0] for case in noise_cases()]
    # The pointing game is a coin: four standard errors of 150 throws.
    chance = found[0].details["chance"]
    allowed = 4 * np.sqrt(chance * (1 - chance) / 150)
    assert float(np.mean([item.value for item in found])) == pytest.approx(chance, abs=allowed)


@pytest.mark.parametrize("metric", MASKED, ids=repr)
def test_a_mask_that_says_nothing_is_refused(metric: Metric) -> None:
    heat = torch.rand(SIDE, SIDE)
    with pytest.raises(MetricRefused, match="empty"):
        measured(metric, heat, torch.zeros(SIDE, SIDE, dtype=torch.bool))
    with pytest.raises(MetricRefused, match="covers the model's whole input"):
        measured(metric, heat, torch.ones(SIDE, SIDE, dtype=torch.bool))
    with pytest.raises(MetricRefused, match="shape"):
        measured(metric, heat, torch.ones(SIDE, 3, dtype=torch.bool))


def test_masks_are_demanded() -> None:
    with pytest.raises(MetricRefused, match="needs masks or boxes"):
        RelevanceMass().measure(case_of(RandomControl()))


def test_a_tolerance_that_reaches_everywhere_is_refused() -> None:
    with pytest.raises(MetricRefused, match="within 40 pixels"):
        measured(PointingGame(tolerance=40), torch.rand(SIDE, SIDE), a_mask())


def test_mass_of_a_map_without_positive_values_is_refused() -> None:
    with pytest.raises(MetricRefused, match="no pixel of the map is positive"):
        measured(RelevanceMass(), -torch.rand(SIDE, SIDE), a_mask())


@pytest.mark.parametrize(
    ("metric", "peer"),
    [
        (PointingGame(tolerance=0), "PointingGame"),
        (RelevanceMass(), "RelevanceMassAccuracy"),
        (RelevanceRank(), "RelevanceRankAccuracy"),
    ],
)
def test_equals_quantus_on_positive_maps_without_ties(metric: Metric, peer: str) -> None:
    quantus = pytest.importorskip("quantus")
    generator = torch.Generator().manual_seed(2)
    maps = torch.rand(12, SIDE, SIDE, generator=generator)
    masks = torch.rand(12, SIDE, SIDE, generator=generator) < torch.linspace(0.1, 0.9, 12).view(-1, 1, 1)
    theirs = getattr(quantus, peer)(disable_warnings=True)(
        model=the_model().module,
        x_batch=np.zeros((12, CLASSES, SIDE, SIDE), dtype=np.float32),
        y_batch=np.zeros(12, dtype=int),
        a_batch=maps.double().unsqueeze(1).numpy(),
        s_batch=masks.unsqueeze(1).numpy(),
        channel_first=True,
    )
    ours = [measured(metric, heat, mask).value for heat, mask in zip(maps, masks, strict=True)]
    assert ours == pytest.approx([float(value) for value in theirs], abs=1e-6)
    assert len(set(ours)) > 1


# With mosaics

POOL = [(class_image(label), label) for label in range(1, CLASSES)]
ORACLE = explainer_of(lambda image, label: image[label])
INVERTED = explainer_of(lambda image, label: 1 - image[label])
UNIFORM = explainer_of(lambda image, _label: torch.ones(image.shape[1:]))


@pytest.mark.parametrize("cells", [2, 3])
def test_mosaics_give_an_oracle_all_a_uniform_map_its_share_and_an_inverted_one_nothing(cells: int) -> None:
    scores = [
        GridPointing(cells=cells).measure(case_of(explainer, pool=POOL))[0].value
        for explainer in (ORACLE, UNIFORM, INVERTED)
    ]
    assert scores == pytest.approx([1, 1 / cells**2, 0], abs=1e-6)


def test_negative_attribution_outside_does_not_count() -> None:
    signed = explainer_of(lambda image, label: image[label] * 2 - 1)
    assert GridPointing().measure(case_of(signed, pool=POOL))[0].value == pytest.approx(1)


@pytest.mark.parametrize("control", [RandomControl(), CentreControl()], ids=repr)
def test_controls_score_chance_on_mosaics(control: Explainer) -> None:
    generator = torch.Generator().manual_seed(3)
    images = [class_image(0) + 0.01 * torch.rand(CLASSES, SIDE, SIDE, generator=generator) for _ in range(20)]
    scores = [GridPointing().measure(case_of(control, image=image, pool=POOL))[0].value for image in images]
    assert float(np.mean(scores)) == pytest.approx(0.25, abs=0.01)


def test_a_mosaic_holds_the_whole_of_each_image_scaled_to_its_cell() -> None:
    generator = torch.Generator().manual_seed(4)
    image = torch.randn(CLASSES, SIDE, SIDE, generator=generator)
    pool = [(torch.randn(CLASSES, SIDE, SIDE, generator=generator), label) for label in range(CLASSES)]
    case = case_of(ORACLE, image=image, pool=pool, target=5)
    mosaic = make_mosaic(case.scene, 2, 0)
    by_class = {label: other for other, label in [*pool, (image, 5)]}
    half = SIDE // 2
    for cell, label in enumerate(mosaic.classes):
        top, left = cell // 2 * half, cell % 2 * half
        small = interpolate(by_class[label][None], size=(half, half), mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(mosaic.image[:, top : top + half, left : left + half], small)
    assert mosaic.classes[mosaic.cell] == 5
    assert len(set(mosaic.classes)) == 4
    assert int(case.scene.logits.argmax()) not in mosaic.classes


def test_cells_of_an_indivisible_side_cover_it_without_gaps() -> None:
    case = case_of(
        UNIFORM, image=class_image(0, 32), pool=[(class_image(label, 32), label) for label in range(1, CLASSES)]
    )
    found = GridPointing(cells=3).measure(case)[0]
    assert found.value == pytest.approx(found.details["chance"])
    assert found.details["chance"] in [pytest.approx(a * b / 32**2) for a in (10, 11) for b in (10, 11)]
    assert make_mosaic(case.scene, 3, 0).image.sum().item() == pytest.approx(32**2)  # one channel is 1 at each pixel


def test_every_explainer_meets_the_same_mosaic_and_one_seed_repeats_it() -> None:
    seen: list[Tensor] = []

    def look(image: Tensor, label: int) -> Tensor:
        seen.append(image.clone())
        return image[label]

    case = case_of(explainer_of(look), pool=POOL)
    scene = case.scene
    other = Case(scene=scene, explanation=case.explanation, explainer=explainer_of(look), seed=0)
    again = case_of(explainer_of(look), pool=POOL)
    seen.clear()
    for item in (case, other, again):
        GridPointing().measure(item)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_images_of_one_run_take_different_cells() -> None:
    generator = torch.Generator().manual_seed(5)
    images = [class_image(0) + 0.01 * torch.rand(CLASSES, SIDE, SIDE, generator=generator) for _ in range(60)]
    cells = [make_mosaic(case_of(ORACLE, image=image, pool=POOL).scene, 2, 0).cell for image in images]
    assert min(cells.count(cell) for cell in range(4)) >= 5
    assert (
        len({make_mosaic(case_of(ORACLE, image=images[0], pool=POOL).scene, 2, seed).cell for seed in range(30)}) == 4
    )


def test_too_few_other_classes_are_refused_however_many_images_there_are() -> None:
    pool = [(class_image(label), label) for label in (1, 1, 1, 0, 0, 2, 2)]
    with pytest.raises(MetricRefused, match="images of 3 other predicted classes; the run has 2"):
        GridPointing().measure(case_of(ORACLE, pool=pool))


def test_a_map_without_positive_values_is_refused() -> None:
    with pytest.raises(MetricRefused, match="no pixel of the mosaic's map is positive"):
        GridPointing().measure(case_of(explainer_of(lambda image, label: -image[label]), pool=POOL))


def test_an_input_smaller_than_the_mosaic_is_refused() -> None:
    pool = [(class_image(label, 4), label) for label in range(1, CLASSES)]
    with pytest.raises(MetricRefused, match="cannot hold 8x8"):
        GridPointing(cells=8).measure(case_of(ORACLE, image=class_image(0, 4), pool=pool))


def test_a_map_of_unknown_origin_is_refused() -> None:
    case = case_of(ORACLE, pool=POOL)
    stored = Case(scene=case.scene, explanation=case.explanation)
    with pytest.raises(MetricRefused, match="the map's explainer is unknown"):
        GridPointing().measure(stored)


def test_the_record_names_the_cell_the_classes_and_whether_the_model_saw_the_image() -> None:
    details = GridPointing().measure(case_of(ORACLE, pool=POOL))[0].details
    row, column = details["cell"]
    assert details["classes"][2 * row + column] == 0
    # Each of four classes fills a quarter of the mosaic, the other eight classes none.
    assert details["probability_in_mosaic"] == pytest.approx(np.exp(0.25) / (4 * np.exp(0.25) + 8))
    assert details["chance"] == 0.25


def test_every_record_loads_and_names_its_metric() -> None:
    specs = {spec.name: spec for spec in xaihub_register_metrics()}
    assert set(specs) == {"grid_pointing", "pointing_game", "relevance_mass", "relevance_rank"}
    assert specs["grid_pointing"].load().needs_pool
    assert all(specs[name].load().needs_truth for name in ("pointing_game", "relevance_mass", "relevance_rank"))
    assert all(spec.bounds == (0, 1) and spec.higher_is_better for spec in specs.values())
