"""SHAP: Owen values over a hierarchy of regions, and expected gradients, both by the shap library."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import ExplainerSpec, Paper

_PAPER = Paper(
    title="A Unified Approach to Interpreting Model Predictions",
    year=2017,
    url="https://arxiv.org/abs/1705.07874",
)


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register Partition SHAP and expected gradients."""
    return [
        ExplainerSpec(
            name="shap",
            target="xaihub_shap.method:PartitionSHAP",
            summary="Share the score among regions of the image by Owen values, most important regions first.",
            paper=_PAPER,
            needs=("black-box",),
            cost="at most evaluations forward passes",
            limits="Regions that the evaluations do not reach share their parent's value evenly.",
            variant="shap's PartitionExplainer; regions halved along their longer side down to the features.",
            tags=("perturbation", "shapley"),
        ),
        ExplainerSpec(
            name="shap_gradient",
            target="xaihub_shap.method:GradientSHAP",
            summary="Average gradients between baselines and the image, times the difference (expected gradients).",
            paper=Paper(
                title="Improving performance of deep learning models with axiomatic attribution priors and expected"
                " gradients",
                year=2021,
                url="https://arxiv.org/abs/1906.10670",
            ),
            needs=("gradients",),
            cost="samples forward and backward passes, 1 + 2 forward passes for each baseline",
            limits="Complete on average only: the gap shrinks with the square root of samples.",
            variant="shap's GradientExplainer.",
            tags=("gradient", "shapley"),
        ),
    ]
