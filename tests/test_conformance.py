"""The conformance kit, on every built-in explainer, metric, adapter and card."""

from __future__ import annotations

import math
import warnings
from functools import cache
from importlib import import_module

import pytest

from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.plugin_tools.conformance import check_plugin
from xaihub.testing import planted_case, planted_scenes
from xaihub.testing.catalogue import CheckResult
from xaihub.testing.kit import check_names

# Checks that a thing may pass by refusing with a reason.
MAY_REFUSE = {
    "works_on_a_cnn",
    "works_on_a_vit",
    "works_with_channels_last",
    "works_with_other_activations",
    "works_with_structured_outputs",
    "works_with_one_output",
    "works_with_independent_labels",
}
# A removal operator of networks that were trained with its objective; it refuses every network of the kit.
REFUSES = {"shapley/own_masking"}


# Each is checked in a process forked from this one, where what is imported here is not imported again.
LIBRARIES = ("captum.attr", "scipy.ndimage", "scipy.sparse.linalg", "shap", "sklearn.linear_model")


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    with warnings.catch_warnings(action="ignore"):
        for name in LIBRARIES:
            import_module(name)


@cache
def hub() -> Hub:
    return Hub(PluginHost(environ={"XAIHUB_LOAD_PLUGINS": "", "XAIHUB_STRICT_PLUGINS": "1"}).load())


def names(*kinds: str) -> list[str]:
    return [f"{spec.plugin}/{spec.name}" for kind in kinds for spec in getattr(hub(), kind)]


# Dear checks: a hundred runs of a method, or runs whose every allocation is traced. The slow tests make them of all
# methods, the others of a few.
DEAR = ("every_parameter_has_an_effect", "memory_is_bounded", "nothing_is_left_behind")
METHODS = names("explainers", "metrics", "objectives")


def failures(results: list[CheckResult]) -> list[str]:
    return [f"{result.check}: {result.advice}" for result in results if result.outcome == "failed"]


@pytest.mark.parametrize("name", [*METHODS, *names("baselines", "adapters", "models")])
def test_a_built_in_passes_every_check(name: str) -> None:
    results = check_plugin(name, hub(), only=[check for check in check_names() if check not in DEAR])

    refused = {result.check for result in results if result.outcome == "refused"}
    assert failures(results) == []
    assert name in REFUSES or refused <= MAY_REFUSE
    assert sum(result.outcome == "passed" for result in results) >= 2


@pytest.mark.parametrize("name", ["rise/rise", "captum/occlusion", "cam/gradcam", "metrics_curves/monotonicity"])
def test_some_built_ins_pass_the_dear_checks(name: str) -> None:
    results = check_plugin(name, hub(), only=DEAR)

    assert failures(results) == []
    assert {result.outcome for result in results} == {"passed"}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_built_in_passes_the_dear_checks(name: str) -> None:
    results = check_plugin(name, hub(), only=DEAR)

    assert [result for result in results if result.outcome not in ("passed", "not applicable")] == []
    assert results


# What the exact evidence of a planted image scores: 400 of 64 x 64 pixels, all with one value.
EXACT = {
    "average_drop": 0,
    "complexity": math.log(400),
    "effective_complexity": 400,
    "faithfulness_correlation": 1,
    "grid_pointing": 1,
    "infidelity": 0,
    "pointing_game": 1,
    "relevance_mass": 1,
    "relevance_rank": 1,
    "sensitivity_n": 1,
    "sparseness": 1 - 400 / 64**2,  # its Gini index
}


@pytest.mark.parametrize("name", EXACT)
def test_the_exact_evidence_of_a_planted_image_scores_what_theory_says(name: str) -> None:
    (scene,) = planted_scenes(1)

    measured, _ = hub().get_metric(name).measure(planted_case(scene))

    assert measured.value == pytest.approx(EXACT[name], abs=1e-4)
