"""Fidelity metrics against analytic values, slow literal formulas, captum and Quantus."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

from tests.plugins.fidelity_cases import (
    SIZE,
    LinearScores,
    Network,
    case_of,
    image,
    scene_of,
    shuffled,
    value,
)
from xaihub import (
    Metric,
    MetricRefused,
    ParameterError,
    Scene,
)
from xaihub.masking import make_features
from xaihub_metrics_fidelity import xaihub_register_metrics
from xaihub_metrics_fidelity.completeness import CompletenessGap
from xaihub_metrics_fidelity.correlations import FaithfulnessCorrelation, MuFidelity, SensitivityN
from xaihub_metrics_fidelity.infidelity import Infidelity
from xaihub_metrics_fidelity.subsets import random_subsets


class Planted(nn.Module):
    """The first class saturates with the brightness of one square; everything else hardly matters."""

    def forward(self, inputs: Tensor) -> Tensor:
        evidence = inputs[:, :, 2:8, 5:11].mean((1, 2, 3))
        score = 4 * torch.tanh(1.5 * evidence) + 0.02 * inputs.mean((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], dim=1)


CORRELATIONS = [
    SensitivityN(features="grid:4", sizes=4, samples=30),
    FaithfulnessCorrelation(features="pixels", subset=0.2, samples=40),
    MuFidelity(features="grid:4", subset=0.3, samples=60),
]


@pytest.mark.parametrize("metric", CORRELATIONS, ids=repr)
def test_input_times_weight_of_a_linear_model_scores_one_and_its_opposite_minus_one(metric: Metric) -> None:
    weights = image(1)
    scene = scene_of(LinearScores(weights), image())
    exact = scene.image * weights
    assert value(metric, case_of(scene, exact)) == pytest.approx(1, abs=1e-6)
    assert value(metric, case_of(scene, -exact)) == pytest.approx(-1, abs=1e-6)
    assert value(metric, case_of(scene, exact * 1e-20)) == pytest.approx(1, abs=1e-6)


def test_mu_fidelity_of_a_sum_is_one_for_the_input_and_minus_one_for_its_negative() -> None:
    scene = scene_of(LinearScores(torch.ones(SIZE), bias=0.0), image())
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
    scene = scene_of(Network(), image())
    values = torch.randn(SIZE, generator=torch.Generator().manual_seed(8))
    players = make_features(features, scene.model, scene.image).count
    chosen = random_subsets(players, [round(0.3 * players)], 12, seed=4)
    sums, drops = literal_drops(scene, features, chosen, values.sum(0))
    pearson = FaithfulnessCorrelation(features=features, subset=0.3, samples=12)
    spearman = MuFidelity(features=features, subset=0.3, samples=12)
    assert value(pearson, case_of(scene, values, seed=4)) == pytest.approx(pearsonr(sums, drops)[0], abs=1e-4)
    assert value(spearman, case_of(scene, values, seed=4)) == pytest.approx(spearmanr(sums, drops)[0], abs=1e-9)


def test_sensitivity_n_is_the_mean_of_pearsons_correlation_at_each_size() -> None:
    scene = scene_of(Network(), image())
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
    scene = scene_of(network, image(2, size))
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
    scene = scene_of(Network(), image())
    assert value(metric, case_of(scene, torch.full(SIZE, 0.1))) == 0
    assert value(metric, case_of(scene, torch.zeros(SIZE))) == 0


@pytest.mark.parametrize("metric", CORRELATIONS, ids=repr)
def test_random_maps_score_as_chance(metric: Metric) -> None:
    scene = scene_of(Planted(), image().abs())
    seeds = (torch.Generator().manual_seed(seed) for seed in range(60))
    found = torch.tensor([value(metric, case_of(scene, torch.rand(SIZE, generator=seed))) for seed in seeds])
    assert abs(float(found.mean())) < 3 * float(found.std()) / 60**0.5


@pytest.mark.parametrize("metric", CORRELATIONS, ids=repr)
def test_a_score_that_does_not_react_is_refused(metric: Metric) -> None:
    scene = scene_of(LinearScores(torch.zeros(SIZE)), image())
    with pytest.raises(MetricRefused, match="the same whichever features are removed"):
        metric.measure(case_of(scene, image(1)))


def test_rounding_of_the_score_is_no_reaction() -> None:
    class Rounding(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return 5 + 1e-6 * inputs.mean((2, 3))

    scene = scene_of(Rounding(), 2 + image())
    drops = scene.logits[0] - scene.model.predict(torch.zeros(1, *SIZE))[0, 0]
    assert 0 < float(drops) < 5e-6
    with pytest.raises(MetricRefused, match="the same whichever features are removed"):
        MuFidelity(features="grid:4").measure(case_of(scene, image(1)))


def test_a_size_without_effect_is_left_out_of_sensitivity_n() -> None:
    class NeedsMany(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            score = (0.9 - inputs.mean((1, 2, 3))).clamp(min=0)  # one cell of sixteen is not enough
            return torch.stack([-score, score], dim=1)

    scene = scene_of(NeedsMany(), torch.ones(SIZE) + image() / 8)
    values = scene.image
    measured, _ = SensitivityN(features="grid:4", sizes=2, samples=20).measure(case_of(scene, values))
    assert measured.details == {"sizes": [1, 13], "used": [False, True]}
    assert measured.value == pytest.approx(1, abs=1e-4)


def test_a_single_feature_is_refused() -> None:
    scene = scene_of(Network(), image())
    with pytest.raises(ParameterError, match="'grid:1' gives only 1 region"):
        MuFidelity(features="grid:1").measure(case_of(scene, image(1)))


def test_a_contrast_is_scored_as_one() -> None:
    weights = image(1)
    scene = scene_of(LinearScores(weights), image(), target="0 vs 1")
    assert value(MuFidelity(features="grid:4"), case_of(scene, scene.image * weights)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("metric", [*CORRELATIONS, Infidelity(samples=25)], ids=repr)
def test_all_maps_of_a_scene_share_the_forward_passes(metric: Metric) -> None:
    scene = scene_of(Network(), image())
    count = getattr(metric, "sizes", 1) * metric.parameters["samples"]
    with scene.model.counting() as made:
        charged = [metric.measure(case_of(scene, image(seed)))[1].forward_passes for seed in (1, 2)]
    assert made.forward_passes == count
    assert charged == [count, count]


@pytest.mark.parametrize("kind", [SensitivityN, FaithfulnessCorrelation, MuFidelity, Infidelity])
def test_the_result_does_not_depend_on_what_ran_before_or_on_batches(kind: type[Any]) -> None:
    metric = kind(baseline="noise", samples=11)
    alone = value(metric, case_of(scene_of(Network(), image(size=(3, 16, 16))), image(1, (3, 16, 16)), seed=6))
    scene = scene_of(Network(), image(size=(3, 16, 16)), batch_size=4)
    CompletenessGap(baseline="noise", claim="ignored").measure(case_of(scene, image(3, (3, 16, 16)), seed=6))
    metric.measure(case_of(scene, image(2, (3, 16, 16)), seed=6))
    after = value(metric, case_of(scene, image(1, (3, 16, 16)), seed=6))
    assert after == pytest.approx(alone, rel=1e-4, abs=1e-5)
    other = value(metric, case_of(scene, image(1, (3, 16, 16)), seed=7))
    assert other != pytest.approx(alone, rel=1e-3)


def test_subsets_have_their_size_and_reach_every_feature_equally() -> None:
    chosen = random_subsets(10, [1, 4], 3000, seed=0)
    assert chosen[:3000].sum(1).unique().tolist() == [1]
    assert chosen[3000:].sum(1).unique().tolist() == [4]
    torch.testing.assert_close(chosen[3000:].float().mean(0), torch.full((10,), 0.4), atol=0.04, rtol=0)
    assert not torch.equal(chosen, random_subsets(10, [1, 4], 3000, seed=1))


@pytest.mark.parametrize("metric", [*CORRELATIONS, Infidelity(samples=60)], ids=repr)
@pytest.mark.parametrize("output", ["logit", "probability"])
def test_the_oracle_beats_a_shuffled_map_and_that_its_opposite(metric: Metric, output: str) -> None:
    scene = scene_of(Planted(), image().abs() + 0.2)
    oracle = torch.zeros(1, 12, 12)
    oracle[:, 2:8, 5:11] = scene.image[:, 2:8, 5:11].mean(0)
    judge = type(metric)(**{**metric.parameters, "output": output})
    maps = (oracle, shuffled(oracle), -oracle)
    sign = -1 if isinstance(metric, Infidelity) else 1
    best, middle, worst = (sign * value(judge, case_of(scene, values)) for values in maps)
    assert best > middle > worst


def test_every_record_loads_a_metric_with_defaults() -> None:
    specs = list(xaihub_register_metrics())
    assert [spec.name for spec in specs] == [
        "sensitivity_n",
        "faithfulness_correlation",
        "mu_fidelity",
        "infidelity",
        "completeness_gap",
        "cost_forward_passes",
        "cost_seconds",
    ]
    assert all(isinstance(spec.load()(), Metric) for spec in specs)
