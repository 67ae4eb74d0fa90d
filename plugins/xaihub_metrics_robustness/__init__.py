"""Robustness: how much a map changes when the image hardly does."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import MetricSpec, Paper

_LIMITS = "a lower bound, found by sampling; a map that ignores model and image is perfectly robust"


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    """Register the robustness metrics."""
    return [
        MetricSpec(
            name="max_sensitivity",
            target="xaihub_metrics_robustness.method:MaxSensitivity",
            summary="Largest relative change of the map under small uniform noise on the image.",
            paper=Paper(
                title="On the (In)fidelity and Sensitivity of Explanations",
                year=2019,
                url="https://arxiv.org/abs/1901.09392",
            ),
            higher_is_better=False,
            bounds=(0.0, float("inf")),
            formula="max over ||y - x||_inf <= r of ||map(y) - map(x)||_2 / ||map(x)||_2",
            variant="the largest of a few random samples, divided by the map's norm",
            cost="samples further explanations, shared with local_lipschitz",
            limits=_LIMITS,
            tags=("robustness",),
        ),
        MetricSpec(
            name="local_lipschitz",
            target="xaihub_metrics_robustness.method:LocalLipschitz",
            summary="Largest change of the map per change of the image, under small uniform noise.",
            paper=Paper(
                title="On the Robustness of Interpretability Methods",
                year=2018,
                url="https://arxiv.org/abs/1806.08049",
            ),
            higher_is_better=False,
            bounds=(0.0, float("inf")),
            formula="max over ||y - x||_inf <= r of ||map(y) - map(x)||_2 / (||map(x)||_2 ||y - x||_2)",
            variant="the largest of a few random samples; pixels in [0, 1]; divided by the map's norm",
            cost="samples further explanations, shared with max_sensitivity",
            limits=_LIMITS,
            tags=("robustness",),
        ),
    ]
