"""SHAP: Owen values over a hierarchy of regions, computed by the shap library."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import ExplainerSpec, Paper


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register Partition SHAP."""
    return [
        ExplainerSpec(
            name="shap",
            target="xaihub_shap.method:PartitionSHAP",
            summary="Distribute the score among regions by Owen values, splitting the most important regions first.",
            paper=Paper(
                "A Unified Approach to Interpreting Model Predictions", 2017, "https://arxiv.org/abs/1705.07874"
            ),
            needs=("black-box",),
            cost="at most evaluations forward passes",
            limits="Regions that the budget does not reach share their parent's value evenly; for Shapley values use"
            " shapley_values.",
            variant="Our choice: shap's PartitionExplainer, whose Owen values are not the paper's Shapley values;"
            " regions are halved across their longer side.",
            tags=("perturbation", "shapley"),
        )
    ]
