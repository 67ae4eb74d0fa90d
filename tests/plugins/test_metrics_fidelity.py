"""Fidelity metrics against analytic values, slow literal formulas, captum and Quantus."""

from __future__ import annotations

from typing import Any

import captum.metrics
import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, rankdata, spearmanr
from torch import Tensor, nn

from xaihub import (
    Case,
    ClassScore,
    Explainer,
    Explanation,
    Metric,
    MetricRefused,
    Model,
    ParameterError,
    Preprocessing,
    ResolvedTarget,
    Runtime,
    Scene,
    Target,
)
from xaihub.masking import make_features
from xaihub_metrics_fidelity import xaihub_register_metrics
from xaihub_metrics_fidelity.completeness import CompletenessGap
from xaihub_metrics_fidelity.correlations import FaithfulnessCorrelation, MuFidelity, SensitivityN
from xaihub_metrics_fidelity.cost import CostForwards, CostSeconds
from xaihub_metrics_fidelity.infidelity import Infidelity, draw_noise, draw_squares, without_squares
from xaihub_metrics_fidelity.subsets import random_subsets, ranks

SIZE = (3, 12, 12)
STD = (0.2, 0.25, 0.5)


class LinearScores(nn.Module):
    """Two classes: a weighted sum of the input plus a bias, and its negative half."""

    def __init__(self, weights: Tensor, bias: float = 0.3) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.bias = bias

    def forward(self, inputs: Tensor) -> Tensor:
        score = (inputs * self.weights).flatten(1).sum(1) + self.bias
        return torch.stack([score, -0.5 * score], dim=1)


class Planted(nn.Module):
    """The first class saturates with the brightness of one square; everything else hardly matters."""

    def forward(self, inputs: Tensor) -> Tensor:
        evidence = inputs[:, :, 2:8, 5:11].mean((1, 2, 3))
        score = 4 * torch.tanh(1.5 * evidence) + 0.02 * inputs.mean((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], dim=1)


class Network(nn.Module):
    """A small network with curvature and random biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Softplus())
        self.head = nn.Linear(8, 4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs).mean((2, 3)))


def model_of(module: nn.Module, size: tuple[int, int, int] = SIZE, batch_size: int | None = None) -> Model:
    return Model(
        module,
        name="toy",
        preprocessing=Preprocessing(spatial=[], size=size, mean=(0.0,) * size[0], std=STD[: size[0]]),
        runtime=Runtime(batch_size=batch_size),
    )


def scene_of(module: nn.Module, image: Tensor, target: int | str = 0, batch_size: int | None = None) -> Scene:
    model = model_of(module, (image.shape[0], image.shape[1], image.shape[2]), batch_size)
    logits = model.predict(image[None])
    return Scene(model=model, image=image, logits=logits[0], target=Target.parse(target).resolve(logits))


def case_of(scene: Scene, values: Tensor, seed: int = 0, explainer: Explainer | None = None, **record: Any) -> Case:
    best = ClassScore(index=0, name="class 0", logit=0.0, probability=0.5)
    explanation = Explanation(values=values, target=best, predicted=best, metadata=record)
    return Case(scene=scene, explanation=explanation, seed=seed, explainer=explainer)


def value(metric: Metric, case: Case) -> float:
    return metric.measure(case)[0].value


def picture(seed: int = 0, size: tuple[int, int, int] = SIZE) -> Tensor:
    """Multiples of 1/32, so that sums are exact and true ties are ties."""
    return torch.randint(-32, 33, size, generator=torch.Generator().manual_seed(seed)) / 32


def shuffled(values: Tensor) -> Tensor:
    flat = values.flatten(1)
    order = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(3))
    return flat[:, order].view_as(values)


CORRELATIONS = [
    SensitivityN(features="grid:4", sizes=4, samples=30),
    FaithfulnessCorrelation(features="pixels", subset=0.2, samples=40),
    MuFidelity(features="grid:4", subset=0.3, samples=60),
]


# Correlations


@pytest.mark.parametrize("metric", CORRELATIONS, ids=repr)
def test_input_times_weight_of_a_linear_model_scores_one_and_its_opposite_minus_one(metric: Metric) -> None:
    weights = picture(1)
    scene = scene_of(LinearScores(weights), picture())
    exact = scene.image * weights
    assert value(metric, case_of(scene, exact)) == pytest.approx(1, abs=1e-6)
    assert value(metric, case_of(scene, -exact)) == pytest.approx(-1, abs=1e-6)
    assert value(metric, case_of(scene, exact * 1e-20)) == pytest.approx(1, abs=1e-6)


def test_mu_fidelity_of_a_sum_is_one_for_the_input_and_minus_one_for_its_negative() -> None:
    scene = scene_of(LinearScores(torch.ones(SIZE), bias=0.0), picture())
    metric = MuFidelity(features="grid:9", samples=50)
    assert value(metric, case_of(scene, scene.image)) == pytest.approx(1, abs=1e-9)
    assert value(metric, case_of(scene, -scene.image)) == pytest.approx(-1, abs=1e-9)


def literal_drops(scene: Scene, features: str, chosen: Tensor, heat: Tensor) -> tuple[list[float], list[float]]:
    """One forward pass a subset, pixel by pixel."""
    labels = make_features(features, scene.model, scene.image).labels
    sums, drops = [], []
    for subset in chosen:
        left, total = scene.image.clone(), 0.0
        for row in range(left.shape[1]):
            for column in range(left.shape[2]):
                if subset[labels[row, column]]:
                    left[:, row, column] = 0
                    total += float(heat[row, column])
        sums.append(total)
        drops.append(float(scene.logits[0] - scene.model.predict(left[None])[0, 0]))
    return sums, drops


@pytest.mark.parametrize("features", ["grid:5", "pixels", "patches:5"])
def test_correlations_over_one_size_equal_the_literal_formula(features: str) -> None:
    scene = scene_of(Network(), picture())
    values = torch.randn(SIZE, generator=torch.Generator().manual_seed(8))
    players = make_features(features, scene.model, scene.image).count
    chosen = random_subsets(players, [round(0.3 * players)], 12, seed=4)
    sums, drops = literal_drops(scene, features, chosen, values.sum(0))
    pearson = FaithfulnessCorrelation(features=features, subset=0.3, samples=12)
    spearman = MuFidelity(features=features, subset=0.3, samples=12)
    assert value(pearson, case_of(scene, values, seed=4)) == pytest.approx(pearsonr(sums, drops)[0], abs=1e-4)
    assert value(spearman, case_of(scene, values, seed=4)) == pytest.approx(spearmanr(sums, drops)[0], abs=1e-9)


def test_sensitivity_n_is_the_mean_of_pearsons_correlation_at_each_size() -> None:
    scene = scene_of(Network(), picture())
    values = torch.randn(SIZE, generator=torch.Generator().manual_seed(8))
    sizes = [1, 3, 7, 20]  # 20 ** (k / 3), rounded
    chosen = random_subsets(25, sizes, 10, seed=2)
    sums, drops = literal_drops(scene, "grid:5", chosen, values.sum(0))
    found = [pearsonr(sums[i : i + 10], drops[i : i + 10])[0] for i in range(0, 40, 10)]
    metric = SensitivityN(features="grid:5", sizes=4, largest=0.8, samples=10)
    measured, _ = metric.measure(case_of(scene, values, seed=2))
    assert measured.details["sizes"] == sizes
    assert measured.value == pytest.approx(np.mean(found), abs=1e-4)
    assert measured.curve is not None
    assert measured.curve[0] == [0.04, 0.12, 0.28, 0.8]
    assert measured.curve[1] == pytest.approx(found, abs=1e-4)


def test_faithfulness_correlation_equals_quantus_for_the_same_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    quantus = pytest.importorskip("quantus")
    size = (1, 10, 10)
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(384, 3))
    scene = scene_of(network, picture(2, size))
    values = torch.randn(size, generator=torch.Generator().manual_seed(8))
    chosen = iter(random_subsets(100, [20], 30, seed=1))
    monkeypatch.setattr(np.random, "choice", lambda *_, **__: next(chosen).nonzero().flatten().numpy())
    peer = quantus.FaithfulnessCorrelation(
        nr_runs=30, subset_size=20, normalise=False, perturb_baseline=0.0, disable_warnings=True
    )
    theirs = peer(model=network, x_batch=scene.image[None].numpy(), y_batch=np.array([0]), a_batch=values[None].numpy())
    ours = value(FaithfulnessCorrelation(features="pixels", subset=0.2, samples=30), case_of(scene, values, seed=1))
    assert ours == pytest.approx(theirs[0], abs=1e-5)


@pytest.mark.parametrize("metric", CORRELATIONS, ids=repr)
def test_a_constant_map_scores_zero(metric: Metric) -> None:
    scene = scene_of(Network(), picture())
    assert value(metric, case_of(scene, torch.full(SIZE, 0.1))) == 0
    assert value(metric, case_of(scene, torch.zeros(SIZE))) == 0


@pytest.mark.parametrize("metric", CORRELATIONS, ids=repr)
def test_random_maps_score_as_chance(metric: Metric) -> None:
    scene = scene_of(Planted(), picture().abs())
    seeds = (torch.Generator().manual_seed(seed) for seed in range(60))
    found = torch.tensor([value(metric, case_of(scene, torch.rand(SIZE, generator=seed))) for seed in seeds])
    assert abs(float(found.mean())) < 3 * float(found.std()) / 60**0.5


@pytest.mark.parametrize("metric", CORRELATIONS, ids=repr)
def test_a_score_that_does_not_react_is_refused(metric: Metric) -> None:
    scene = scene_of(LinearScores(torch.zeros(SIZE)), picture())
    with pytest.raises(MetricRefused, match="the same whichever features are removed"):
        metric.measure(case_of(scene, picture(1)))


def test_rounding_of_the_score_is_no_reaction() -> None:
    class Rounding(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return 5 + 1e-6 * inputs.mean((2, 3))

    scene = scene_of(Rounding(), 2 + picture())
    drops = scene.logits[0] - scene.model.predict(torch.zeros(1, *SIZE))[0, 0]
    assert 0 < float(drops) < 5e-6
    with pytest.raises(MetricRefused, match="the same whichever features are removed"):
        MuFidelity(features="grid:4").measure(case_of(scene, picture(1)))


def test_a_size_without_effect_is_left_out_of_sensitivity_n() -> None:
    class NeedsMany(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            score = (0.9 - inputs.mean((1, 2, 3))).clamp(min=0)  # one cell of sixteen is not enough
            return torch.stack([-score, score], dim=1)

    scene = scene_of(NeedsMany(), torch.ones(SIZE) + picture() / 8)
    values = scene.image
    measured, _ = SensitivityN(features="grid:4", sizes=2, samples=20).measure(case_of(scene, values))
    assert measured.details == {"sizes": [1, 13], "judged": [False, True]}
    assert measured.value == pytest.approx(1, abs=1e-4)


def test_a_single_feature_is_refused() -> None:
    scene = scene_of(Network(), picture())
    with pytest.raises(ParameterError, match="'grid:1' are one single feature"):
        MuFidelity(features="grid:1").measure(case_of(scene, picture(1)))


def test_a_contrast_is_scored_as_one() -> None:
    weights = picture(1)
    scene = scene_of(LinearScores(weights), picture(), target="0 vs 1")
    assert value(MuFidelity(features="grid:4"), case_of(scene, scene.image * weights)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("metric", [*CORRELATIONS, Infidelity(samples=25)], ids=repr)
def test_all_maps_of_a_scene_share_the_forwards(metric: Metric) -> None:
    scene = scene_of(Network(), picture())
    _, first = metric.measure(case_of(scene, picture(1)))
    _, second = metric.measure(case_of(scene, picture(2)))
    assert first.forwards == getattr(metric, "sizes", 1) * metric.parameters["samples"]
    assert second.forwards == 0


@pytest.mark.parametrize("kind", [SensitivityN, FaithfulnessCorrelation, MuFidelity, Infidelity])
def test_the_result_does_not_depend_on_what_ran_before_or_on_batches(kind: type[Any]) -> None:
    metric = kind(baseline="noise", samples=11)
    alone = value(metric, case_of(scene_of(Network(), picture(size=(3, 16, 16))), picture(1, (3, 16, 16)), seed=6))
    scene = scene_of(Network(), picture(size=(3, 16, 16)), batch_size=4)
    CompletenessGap(baseline="noise", claim="ignored").measure(case_of(scene, picture(3, (3, 16, 16)), seed=6))
    metric.measure(case_of(scene, picture(2, (3, 16, 16)), seed=6))
    after = value(metric, case_of(scene, picture(1, (3, 16, 16)), seed=6))
    assert after == pytest.approx(alone, rel=1e-4, abs=1e-5)
    other = value(metric, case_of(scene, picture(1, (3, 16, 16)), seed=7))
    assert other != pytest.approx(alone, rel=1e-3)


def test_subsets_have_their_size_and_reach_every_feature_equally() -> None:
    chosen = random_subsets(10, [1, 4], 3000, seed=0)
    assert chosen[:3000].sum(1).unique().tolist() == [1]
    assert chosen[3000:].sum(1).unique().tolist() == [4]
    torch.testing.assert_close(chosen[3000:].float().mean(0), torch.full((10,), 0.4), atol=0.04, rtol=0)
    assert not torch.equal(chosen, random_subsets(10, [1, 4], 3000, seed=1))


def test_noise_and_squares_have_their_distribution() -> None:
    model = model_of(Network())
    noise = torch.cat(list(draw_noise(200, 0.1, model, seed=0)))
    torch.testing.assert_close(noise.std((0, 2, 3)), 0.1 / torch.tensor(STD), rtol=0.02, atol=0)
    top, left, side = draw_squares(3000, 0.5, (12, 20), seed=0).unbind(1)
    assert side.unique().tolist() == [1, 2, 3, 4, 5, 6]
    assert top[side == 6].unique().tolist() == list(range(7))
    assert left[side == 6].unique().tolist() == list(range(15))
    assert not torch.equal(side, draw_squares(3000, 0.5, (12, 20), seed=1)[:, 2])


def test_ranks_share_ties() -> None:
    rows = torch.tensor([[3.0, 1.0, 3.0, -2.0, 3.0], [0.1 + 0.2, 0.3, 5.0, 4.0, 4.0]], dtype=torch.float64)
    expected = [rankdata(rows[0]), rankdata([0.3, 0.3, 5, 4, 4])]
    np.testing.assert_array_equal(ranks(rows).numpy(), expected)


# Infidelity


def test_infidelity_of_the_exact_attribution_of_a_linear_model_is_zero() -> None:
    weights = picture(1)
    scene = scene_of(LinearScores(weights), picture())
    exact = scene.image * weights  # gradient times what the baseline of zeros takes away
    for scaling in ("optimal", "none"):
        measured, _ = Infidelity(scaling=scaling, samples=30).measure(case_of(scene, exact))
        assert measured.value == pytest.approx(0, abs=1e-8)
        assert measured.details["scale"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("options", [{"baseline": "white"}, {"baseline": "blur"}, {"perturbation": "noise"}], ids=str)
def test_infidelity_of_the_gradient_of_a_linear_model_is_zero(options: dict[str, str]) -> None:
    weights = picture(1)
    scene = scene_of(LinearScores(weights), picture())
    measured, _ = Infidelity(units="gradient", scaling="none", samples=30, **options).measure(case_of(scene, weights))
    assert measured.details["zero_map"] > 0.1
    assert measured.value == pytest.approx(0, abs=1e-7)


def test_infidelity_of_a_wrong_scale_is_known() -> None:
    weights = picture(1)
    scene = scene_of(LinearScores(weights), picture())
    exact = scene.image * weights
    zero = Infidelity(scaling="none", samples=30).measure(case_of(scene, exact))[0].details["zero_map"]
    plain, best = Infidelity(scaling="none", samples=30), Infidelity(samples=30)
    assert value(plain, case_of(scene, 3 * exact)) == pytest.approx(4 * zero, rel=1e-5)
    assert value(plain, case_of(scene, 0 * exact)) == pytest.approx(zero, rel=1e-9)
    assert value(best, case_of(scene, 3 * exact)) == pytest.approx(0, abs=1e-7)
    # A negative scale would make the opposite of the map perfect.
    assert value(best, case_of(scene, -exact)) == pytest.approx(zero, rel=1e-9)


@pytest.mark.parametrize("scaling", ["none", "optimal"])
@pytest.mark.parametrize("perturbation", ["squares", "noise"])
def test_infidelity_equals_captum(perturbation: str, scaling: str) -> None:
    scene = scene_of(Network(), picture())
    inputs = scene.image[None].clone().requires_grad_()
    scene.model.module(inputs)[0, 0].backward()
    assert inputs.grad is not None
    values = inputs.grad + 0.01 * picture(4)
    kept = without_squares(draw_squares(20, 0.5, (12, 12), seed=3), (12, 12))
    perturbations = {
        "squares": ~kept * scene.image,
        "noise": torch.cat(list(draw_noise(20, 0.1, scene.model, seed=3))),
    }[perturbation]
    theirs = captum.metrics.infidelity(
        scene.model.module,
        lambda rows: (perturbations, rows - perturbations),
        scene.image[None],
        values,
        target=0,
        n_perturb_samples=20,
        normalize=scaling == "optimal",
    )
    metric = Infidelity(perturbation=perturbation, units="gradient", scaling=scaling, samples=20)
    measured, _ = metric.measure(case_of(scene, values[0], seed=3))
    assert measured.details["scale"] > 0
    assert measured.value == pytest.approx(float(theirs[0]), rel=1e-3)


def test_infidelity_sums_the_map_over_each_square() -> None:
    scene = scene_of(Network(), picture(size=(3, 12, 20)))
    values = picture(4, (3, 12, 20))
    errors = []
    for top, left, side in draw_squares(15, 1.0, (12, 20), seed=3).tolist():
        assert top + side <= 12
        assert left + side <= 20
        rest = scene.image.clone()
        rest[:, top : top + side, left : left + side] = 0
        foretold = values[:, top : top + side, left : left + side].sum()
        errors.append(float(foretold - (scene.logits[0] - scene.model.predict(rest[None])[0, 0])) ** 2)
    metric = Infidelity(scaling="none", samples=15, largest=1.0)
    assert value(metric, case_of(scene, values, seed=3)) == pytest.approx(np.mean(errors), rel=1e-5)


def test_noise_is_refused_for_values_in_units_of_the_score() -> None:
    scene = scene_of(Network(), picture())
    with pytest.raises(ParameterError, match="'noise' cannot be used with units 'attribution'"):
        Infidelity(perturbation="noise").measure(case_of(scene, picture(1)))


# Planted evidence


@pytest.mark.parametrize("metric", [*CORRELATIONS, Infidelity(samples=60)], ids=repr)
@pytest.mark.parametrize("output", ["logit", "probability"])
def test_the_oracle_beats_a_shuffled_map_and_that_its_opposite(metric: Metric, output: str) -> None:
    scene = scene_of(Planted(), picture().abs() + 0.2)
    oracle = torch.zeros(1, 12, 12)
    oracle[:, 2:8, 5:11] = scene.image[:, 2:8, 5:11].mean(0)
    judge = type(metric)(**{**metric.parameters, "output": output})
    maps = (oracle, shuffled(oracle), -oracle)
    sign = -1 if isinstance(metric, Infidelity) else 1
    best, middle, worst = (sign * value(judge, case_of(scene, values)) for values in maps)
    assert best > middle > worst


# Completeness


class Complete(Explainer):
    completeness = True

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        return inputs


class Silent(Complete):
    completeness = False


def test_completeness_gap_is_the_relative_error_of_the_sum() -> None:
    weights = picture(1)
    scene = scene_of(LinearScores(weights), picture())
    exact = scene.image * weights
    for values, gap in ((exact, 0), (shuffled(exact), 0), (1.25 * exact, 0.25), (0 * exact, 1), (-exact, 2)):
        assert value(CompletenessGap(), case_of(scene, values, explainer=Complete())) == pytest.approx(gap, abs=1e-5)


def test_completeness_gap_uses_the_baseline_and_score_that_the_explainer_used() -> None:
    weights = picture(1)
    scene = scene_of(LinearScores(weights), picture())
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
    weights = picture(1)
    scene = scene_of(LinearScores(weights), picture())
    difference = float((scene.image * weights).sum())
    case = case_of(scene, picture(5), completeness_gap=abs(difference) / 8)  # whatever the pixels sum to
    measured, _ = CompletenessGap().measure(case)
    assert measured.value == pytest.approx(0.125, rel=1e-5)
    assert measured.details["source"] == "reported"
    assert value(CompletenessGap(claim="ignored"), case) == pytest.approx(
        abs(float(picture(5).sum()) - difference) / abs(difference), rel=1e-4
    )


def test_completeness_gap_is_refused_where_nobody_claims_it() -> None:
    scene = scene_of(LinearScores(picture(1)), picture())
    for explainer in (None, Silent()):
        with pytest.raises(MetricRefused, match="does not claim that its values sum to the score"):
            CompletenessGap().measure(case_of(scene, picture(2), explainer=explainer))


def test_completeness_gap_is_refused_where_the_baseline_scores_as_the_picture() -> None:
    scene = scene_of(LinearScores(torch.zeros(SIZE)), picture())
    with pytest.raises(MetricRefused, match="baseline 'zero' is that of the picture"):
        CompletenessGap().measure(case_of(scene, picture(2), explainer=Complete()))


# Cost


def test_costs_are_those_of_the_record() -> None:
    class Twice(Explainer):
        def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
            model(inputs)
            inputs.requires_grad_()
            return torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0]

    scene = scene_of(Network(), picture())
    explanation = Twice().explain(scene.model, scene.image[None])[0]
    case = Case(scene=scene, explanation=explanation)
    measured, counts = CostForwards().measure(case)
    assert measured.value == 3
    assert measured.details == {"forwards": 2, "backwards": 1}
    assert counts.forwards == 0
    assert value(CostSeconds(), case) == explanation.metadata["seconds"] > 0


@pytest.mark.parametrize("metric", [CostForwards(), CostSeconds()], ids=repr)
def test_a_map_without_a_record_has_no_cost(metric: Metric) -> None:
    scene = scene_of(Network(), picture())
    with pytest.raises(MetricRefused, match="does not say how many"):
        metric.measure(case_of(scene, picture(1)))


# Registration


def test_every_record_loads_a_metric_with_defaults() -> None:
    specs = list(xaihub_register_metrics())
    assert [spec.name for spec in specs] == [
        "sensitivity_n",
        "faithfulness_correlation",
        "mu_fidelity",
        "infidelity",
        "completeness_gap",
        "cost_forwards",
        "cost_seconds",
    ]
    assert all(isinstance(spec.load()(), Metric) for spec in specs)
