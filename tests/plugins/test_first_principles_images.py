"""The explainer on images: against enumeration, its forward passes, its refusals, its standard errors."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from math import factorial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from xaihub import Case, ExplainerRefused, Model, ParameterError, Preprocessing, Scene, Target
from xaihub.masking import Segments, make_features, make_removal
from xaihub_first_principles import mask_families
from xaihub_first_principles.evaluation import PointOutputs, evaluate_points
from xaihub_first_principles.families import NOT_MEASURES
from xaihub_first_principles.method import FirstPrinciples
from xaihub_first_principles.regions import make_regions
from xaihub_first_principles.registry import GROUP, NAMES, FamilySettings, make_family
from xaihub_metrics_curves.areas import Deletion, Insertion

SIDE = 12


def _network(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    first, second, head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)
    pool, mean = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(first, activation(), pool, second, activation(), mean, nn.Flatten(), head)


def _model(module: nn.Module | None = None) -> Model:
    plain = Preprocessing(spatial=(), size=(1, SIDE, SIDE), mean=(0.5,), std=(0.25,))
    return Model(module or _network(), name="small", preprocessing=plain)


def _image(seed: int = 0) -> Tensor:
    return torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def _explain(model: Model | None = None, target: Any = 1, seed: int = 0, **parameters: Any) -> Any:
    smooth = parameters.get("family") == "shapley"  # Shapley values are never interpolated
    values = {"features": "grid:3", "baseline": "black", "smooth": smooth, "output": "logit", **parameters}
    return FirstPrinciples(**values).explain(model or _model(), _image(), target, seed=seed)[0]


def _cells(values: Tensor) -> Tensor:
    """The values at the middle of each of the 3 x 3 cells."""
    return values[0, 1::4, 1::4].flatten().double()


def _game(model: Model, baseline: str = "black") -> dict[tuple[int, ...], float]:
    """The logit of class 1 for each of the 512 coalitions of the 3 x 3 cells."""
    shown = torch.tensor(list(product((0.0, 1.0), repeat=9)))
    maps = shown.view(-1, 1, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    removal = make_removal(baseline, model, _image()[0])
    with torch.no_grad():
        logits = removal(model, _image()[0], maps)[:, 1]
    return {tuple(int(v) for v in row): float(logit) for row, logit in zip(shown, logits, strict=True)}


def test_shapley_is_the_definition_over_every_coalition_and_complete() -> None:
    game = _game(_model())
    found = _explain(family="shapley", budget=512)
    for j in range(9):
        expected = sum(
            factorial(sum(kept) - 1) * factorial(9 - sum(kept)) / factorial(9)
            * (score - game[(*kept[:j], 0, *kept[j + 1:])])
            for kept, score in game.items()
            if kept[j]
        )  # fmt: skip
        assert float(_cells(found.values)[j] * 16) == pytest.approx(expected, abs=1e-6)
    assert float(found.values.sum()) == pytest.approx(game[(1,) * 9] - game[(0,) * 9], abs=1e-5)
    assert found.metadata["completeness_gap"] < 1e-5
    assert found.metadata["details"]["exact"]
    assert found.metadata["forward_passes"] == 512


@pytest.mark.parametrize("centre", [False, True])
def test_keep_p_is_the_mean_score_while_a_region_is_shown(centre: bool) -> None:
    game, p = _game(_model()), 0.4
    found = _explain(family="keep_p", budget=600, p=p, centre=centre)
    likely = {kept: p ** sum(kept) * (1 - p) ** (9 - sum(kept)) for kept in game}
    mean = sum(likely[kept] * score for kept, score in game.items())
    for j in range(9):
        given = sum(likely[kept] * score for kept, score in game.items() if kept[j]) / p
        assert float(_cells(found.values)[j]) == pytest.approx(given - centre * mean, abs=1e-6)


def test_occlusion_and_partial_dependence_need_one_pass_per_region() -> None:
    game, whole = _game(_model()), (1,) * 9
    without = [(*whole[:j], 0, *whole[j + 1 :]) for j in range(9)]
    alone = [tuple(1 - v for v in kept) for kept in without]
    occlusion, pdp = _explain(family="occlusion"), _explain(family="pdp")
    assert _cells(occlusion.values).tolist() == pytest.approx([game[whole] - game[k] for k in without], abs=1e-6)
    assert _cells(pdp.values).tolist() == pytest.approx([game[k] - game[(0,) * 9] for k in alone], abs=1e-6)
    assert (occlusion.metadata["forward_passes"], pdp.metadata["forward_passes"]) == (10, 10)


def test_several_replacements_are_averaged() -> None:
    both = _explain(family="occlusion", baseline="black,white").values
    apart = [_explain(family="occlusion", baseline=name).values for name in ("black", "white")]
    assert torch.allclose(both, (apart[0] + apart[1]) / 2, atol=1e-6)


def test_independent_replacements_differ_from_whole_ones_only_if_there_are_several() -> None:
    one, alone = _explain(family="independent"), _explain(family="pdp")
    assert torch.equal(one.values, alone.values)
    several, whole = (_explain(family=name, baseline="black,white") for name in ("independent", "pdp"))
    assert not torch.allclose(several.values, whole.values, atol=1e-4)


def test_independent_replacements_are_drawn_so_their_values_have_errors_and_no_exact_route() -> None:
    found = [_explain(family="independent", baseline="black,white", tolerance=0, seed=seed) for seed in range(30)]
    values = torch.stack([_cells(part.values) for part in found])
    details = found[0].metadata["details"]
    claimed = torch.tensor([part.metadata["details"]["stderr"][0] for part in found]).square().mean(0).sqrt()
    assert not details["exact"]
    assert float((claimed / values.std(0)).log().abs().max()) < 0.7  # within a factor of 2 over 30 seeds
    with pytest.raises(ExplainerRefused, match="no exact route for independent"):
        _explain(family="independent", baseline="black,white", exact=True)


def test_mosaics_are_cut_along_the_regions_of_their_own_grid() -> None:
    explainer = FirstPrinciples(family="independent", baseline="black,white", features="grid:3")
    model, image = _model(), _image()[0]
    generator = torch.Generator().manual_seed(0)
    for grid in make_regions("grid:3", model, image, shifts=3, generator=generator):
        for removal in explainer._mosaics(model, image, grid.features, generator):
            for cell in range(grid.features.count):
                assert len(removal.baseline[0][grid.features.labels == cell].unique()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_family_is_deterministic_within_budget_and_reports_its_measure(name: str) -> None:
    baseline = "inpaint" if name == "conditional" else "blur"
    first, again, other = (
        _explain(family=name, baseline=baseline, budget=200, shifts=2, smooth=True, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.values, again.values)
    assert first.metadata["forward_passes"] <= 200
    assert not torch.equal(first.values, other.values)  # the second grid lies elsewhere
    details = first.metadata["details"]
    assert details["family"] == name
    assert abs(details["mass"]) < 1e-6
    assert details["total_variation"] > 0
    assert [len(errors) for errors in details["stderr"]] == details["regions"]


@pytest.mark.parametrize("name", ["keep_p", "signed_keep_p", "shapley", "lime_fixed", "smoothgrad"])
def test_sampled_families_meet_their_own_standard_errors(name: str) -> None:
    runs = [_explain(family=name, budget=120, tolerance=0, seed=seed) for seed in range(12)]
    scale = 16 if name == "shapley" else 1
    spread = torch.stack([_cells(run.values) * scale for run in runs]).std(0).mean()
    claimed = torch.tensor([run.metadata["details"]["stderr"][0] for run in runs]).mean()
    assert 0.5 < float(claimed / spread) < 2


def test_a_run_ends_early_once_the_standard_error_is_small() -> None:
    long, short = (_explain(family="shapley", budget=480, tolerance=tolerance) for tolerance in (0.0, 0.2))
    assert long.metadata["forward_passes"] == 480
    assert short.metadata["forward_passes"] < 400
    assert short.metadata["details"]["stderr_to_spread"] < 0.2


def test_the_standard_error_is_checked_after_each_sixteenth_of_the_budget() -> None:
    model, image = _model(), _image()[0]
    features, removals = make_features("grid:6", model, image), [make_removal("black", model, image)]
    family = make_family("keep_p", FamilySettings(count=36, budget=640))
    points = family.points(torch.ones(36).double(), torch.Generator().manual_seed(0))
    seen: list[int] = []

    def enough(found: PointOutputs) -> bool:
        seen.append(len(found.logits))
        return len(found.logits) >= 200

    found = evaluate_points(model, image, points, features=features, removals=removals, enough=enough)
    assert seen == [40, 80, 120, 160, 200]
    assert len(found.points) == 200
    assert torch.equal(found.points.masks, points.masks[:200])


def test_a_map_that_is_mostly_noise_says_so() -> None:
    (warning,) = _explain(family="keep_p", features="patches:1", budget=40).metadata["warnings"]
    assert re.fullmatch(r"the standard error is \d+% of the map's spread: .*budget.*", warning)


def test_the_budget_that_a_warning_names_makes_the_standard_error_small_enough() -> None:
    settings: dict[str, Any] = {"tolerance": 0, "features": "grid:5", "adjust": False}
    (warning,) = _explain(budget=100, **settings).metadata["warnings"]
    wanted = int(re.search(r"budget=(\d+) should give 30%", warning)[1])  # type: ignore[index]
    assert _explain(budget=wanted, **settings).metadata["details"]["stderr_to_spread"] < 0.35


def test_a_run_does_not_end_before_its_error_can_be_judged() -> None:
    # With hardly more masks than regions the fit is nearly exact, so its residuals look small.
    found = _explain(features="grid:6", budget=320, tolerance=1e6)
    assert found.metadata["forward_passes"] >= 3 * 37


@pytest.mark.parametrize(
    ("name", "value"), [("p", 0.3), ("adjust", False), ("sizes", "uniform"), ("tolerance", 0.1), ("centre", False)]
)
def test_a_parameter_that_a_family_does_not_use_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=f"'{name}' of FirstPrinciples has no effect with family=occlusion"):
        _explain(family="occlusion", **{name: value})


def test_a_parameter_of_random_points_is_noted_if_every_point_is_evaluated() -> None:
    found = _explain(budget=512, sizes="uniform", adjust=False, exact=True)
    assert found.metadata["details"]["exact"]
    assert [note.partition(" ")[0] for note in found.metadata["warnings"]] == ["sizes", "adjust", "exact"]


def test_axis_dirac_keeps_to_its_budget() -> None:
    with pytest.raises(ParameterError, match="a budget of 9 is too small for axis_dirac on 9 regions"):
        _explain(family="axis_dirac", budget=9)


def test_masks_drawn_once_serve_families_and_targets() -> None:
    model, image = _model(), _image()[0]
    features, removals = make_features("grid:3", model, image), [make_removal("black", model, image)]
    settings = FamilySettings(count=9, budget=400, law="shared")
    with model.counting() as counts:
        points = make_family("keep_p", settings).points(torch.ones(9).double(), torch.Generator().manual_seed(0))
        outputs = evaluate_points(model, image, points, features=features, removals=removals)
        maps = {
            name: outputs.measure(family, lambda logits: logits)  # (9, 3): every target
            for name, family in (
                ("shapley", mask_families.Shapley()),
                *((f"keep {p}", mask_families.KeepP(p=p, centre=True)) for p in (0.2, 0.5, 0.8)),
            )
        }
    assert counts.forward_passes == 400
    for name, family, p in (("shapley", "shapley", 0.5), ("keep 0.2", "keep_p", 0.2), ("keep 0.8", "keep_p", 0.8)):
        for target in (0, 1, 2):
            exact = _cells(_explain(target=target, family=family, p=p, budget=512).values)
            exact = exact * (16 if name == "shapley" else 1)
            values, errors = maps[name].values[:, target], maps[name].stderr[:, target]
            assert bool(((values - exact).abs() < 4 * errors).all())
            assert float(errors.mean()) < float(exact.std())


def test_planted_evidence_is_found_by_every_signed_family() -> None:
    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            evidence = x[:, 0, 8:12, 4:8].mean((1, 2))
            return torch.stack([-evidence, evidence, torch.zeros_like(evidence)], 1)

    model = _model(Corner())
    for name in ("keep_p", "signed_keep_p", "shapley", "occlusion", "pdp", "lime_fixed", "axis_lebesgue", "fd_ig"):
        heat = (
            FirstPrinciples(family=name, features="grid:3", baseline="black", budget=400, output="logit")
            .explain(model, torch.ones(1, 1, SIDE, SIDE), 1)[0]
            .values[0]
        )
        row, column = divmod(int(heat.argmax()), SIDE)
        assert 8 <= row <= 11
        assert 4 <= column <= 7


# Exact lines.


@pytest.mark.parametrize("name", ["axis_lebesgue", "fd_ig"])
def test_exact_lines_are_what_quadrature_approaches(name: str) -> None:
    exact = _explain(family=name, exact=True)
    coarse, fine = (_explain(family=name, budget=budget) for budget in (60, 20_000))
    assert exact.metadata["details"]["exact"]
    assert not fine.metadata["details"]["exact"]
    error = [float((_cells(found.values) - _cells(exact.values)).abs().max()) for found in (coarse, fine)]
    assert error[1] < 2e-4 * float(_cells(exact.values).std()) + 2e-5
    assert error[1] < error[0]


def test_the_network_is_left_in_single_precision_after_exact_lines() -> None:
    model = _model()
    _explain(model, family="axis_lebesgue", exact=True)
    assert next(model.module.parameters()).dtype is torch.float32


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"family": "keep_p", "budget": 511}, "no exact route for keep_p on 9 regions"),
        ({"family": "smoothgrad"}, "no exact route for smoothgrad"),
        ({"family": "length_weighted"}, "no exact route for length_weighted"),
    ],
)
def test_exact_says_why_no_route_applies(parameters: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExplainerRefused, match=reason):
        _explain(exact=True, **parameters)


def test_exact_lines_are_never_claimed_for_smooth_networks_or_probabilities() -> None:
    with pytest.raises(ExplainerRefused, match="calls 'gelu'"):
        _explain(_model(_network(nn.GELU)), family="axis_lebesgue", exact=True)
    with pytest.raises(ParameterError, match="output=logit"):
        _explain(family="axis_lebesgue", exact=True, output="probability")
    smooth = _explain(_model(_network(nn.GELU)), family="axis_lebesgue")
    assert not smooth.metadata["details"]["exact"]


# Refusals and names.


@pytest.mark.parametrize("name", NOT_MEASURES)
def test_what_is_not_a_measure_is_refused(name: str) -> None:
    with pytest.raises(ExplainerRefused, match=f"{name} is not a measure: "):
        _explain(family=name)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"family": "unknown"}, "no family is named 'unknown'"),
        ({"family": "occlusion", "budget": 9}, "a budget of 9 is too small for occlusion on 9 regions"),
        ({"family": "conditional"}, "replacements that depend on visible regions, not 'black'"),
        ({"family": "smoothgrad", "baseline": "black,white"}, "fades regions over a single image"),
        ({"family": "axis_lebesgue", "baseline": "inpaint"}, "fades regions over a single image"),
        ({"features": "superpixels:9", "shifts": 2}, "have no grid to shift"),
        ({"baseline": "black,,white"}, "baseline cannot be 'black,,white'"),
    ],
)
def test_what_cannot_be_computed_is_a_parameter_error(parameters: dict[str, Any], reason: str) -> None:
    with pytest.raises(ParameterError, match=reason):
        _explain(**parameters)


def test_a_family_of_another_package_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        def load(self) -> Any:
            return lambda settings: mask_families.KeepP(budget=settings.budget, p=0.5, centre=settings.centre)

    def entry_points(*, group: str, name: str) -> list[Point]:
        assert group == GROUP
        return [Point()]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    plain = _explain(family="keep_p", budget=100, adjust=False)
    assert torch.equal(_explain(family="theirs", budget=100).values, plain.values)


# Regions.


def test_grids_are_partitions_and_smooth_maps_interpolate_between_centres() -> None:
    generator = torch.Generator().manual_seed(0)
    found = make_regions("grid:3", _model(), _image()[0], shifts=3, generator=generator)
    assert torch.equal(found[0].features.labels, make_features("grid:3", _model(), _image()[0]).labels)
    for regions in found:
        assert isinstance(regions.features, Segments)
        constant = regions.paint(torch.full((regions.features.count,), 2.0).double(), smooth=True)
        assert torch.allclose(constant, torch.full((SIDE, SIDE), 2.0).double())
    values = torch.arange(9).double()
    plain, smooth = found[0].paint(values, smooth=False), found[0].paint(values, smooth=True)
    assert plain[5, 5] == 4
    assert float(smooth[5:7, 5:7].mean()) == pytest.approx(4)
    enlarged = nn.functional.interpolate(values.view(1, 1, 3, 3), size=(SIDE, SIDE), mode="bilinear")
    assert torch.allclose(smooth, enlarged[0, 0], atol=1e-12)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_on_backbones_two_seeds_agree_and_maps_are_better_than_chance(name: str) -> None:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5)
    channels, side, _ = net.pretrained_cfg["input_size"]
    plain = Preprocessing(spatial=(), size=(channels, side, side), mean=(0.5,) * 3, std=(0.25,) * 3)
    model = Model(net, name=name, preprocessing=plain)
    image = torch.randn(1, 3, side, side) + torch.linspace(-1, 1, side)
    explainer = FirstPrinciples(features="grid:3", budget=400, output="logit", shifts=1)
    first, second, again = (explainer.explain(model, image, 0, seed=seed)[0] for seed in (0, 1, 0))
    maps = torch.stack([first.values.flatten(), second.values.flatten()])
    assert bool(maps.isfinite().all())
    assert torch.equal(first.values, again.values)
    assert float(torch.corrcoef(maps)[0, 1]) > 0.8
    logits = model.predict(image)
    scene = Scene(model=model, image=image[0], logits=logits[0], target=Target(index=0).resolve(logits))
    metrics = Insertion(steps=6, output="logit"), Deletion(steps=6, output="logit", baseline="blur")

    def difference(explanation: Any) -> float:
        case = Case(scene=scene, explanation=explanation)
        insertion, deletion = (metric.measure(case)[0].value for metric in metrics)
        return insertion - deletion

    patches = torch.rand(8, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    chance = nn.functional.interpolate(patches, size=(side, side), mode="bilinear")
    assert difference(first) > sum(difference(replace(first, values=heat)) for heat in chance) / 8
