"""Robustness: how much a map changes under small changes to the image."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import MetricSpec, Paper

_LIMITS = "A lower bound, found by sampling. A map that ignores model and image is perfectly robust."


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    """Register the robustness metrics."""
    return [
        MetricSpec(
            name="max_sensitivity",
            target="xaihub_metrics_robustness.method:MaxSensitivity",
            summary="Largest relative change of the map under small uniform noise on the image.",
            paper=Paper(
                "On the (In)fidelity and Sensitivity of Explanations", 2019, "https://arxiv.org/abs/1901.09392"
            ),
            higher_is_better=False,
            bounds=(0.0, float("inf")),
            formula="max over ||y - x||_inf <= r of ||map(y) - map(x)||_2 / ||map(x)||_2",
            variant="Stated: Def. 3.1, by sampling. Our choice: divided by the map's norm.",
            cost="samples additional explanations, shared with local_lipschitz",
            limits=_LIMITS,
            tags=("robustness",),
        ),
        MetricSpec(
            name="local_lipschitz",
            target="xaihub_metrics_robustness.method:LocalLipschitz",
            summary="Largest change of the map relative to the change of the image, under small uniform noise.",
            paper=Paper("On the Robustness of Interpretability Methods", 2018, "https://arxiv.org/abs/1806.08049"),
            higher_is_better=False,
            bounds=(0.0, float("inf")),
            formula="max over ||y - x||_inf <= r of ||map(y) - map(x)||_2 / (||map(x)||_2 ||y - x||_2)",
            variant="Our choice: the largest of a few random samples; pixels in [0, 1]; divided by the map's norm.",
            cost="samples additional explanations, shared with max_sensitivity",
            limits=_LIMITS,
            tags=("robustness",),
        ),
    ]
