"""Shapley values: networks trained to vote with them, and estimates for any model."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import BaselineSpec, ExplainerSpec, ObjectiveSpec, Paper, ReproductionSpec

_PAPER = Paper(
    title="Enhancing Interpretability for Vision Models via Shapley Value Optimization",
    year=2025,
    url="https://arxiv.org/abs/2512.14354",
)


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register the self-explanation and the estimates for any model."""
    return [
        ExplainerSpec(
            name="shapley",
            target="xaihub_shapley.own:SelfExplained",
            summary="The patch votes of a network that was trained to vote with Shapley values; every class at once.",
            paper=_PAPER,
            needs=("activations",),
            cost="1 + refine forward passes",
            limits="Only models trained with the objective shapley. The votes are Shapley values of the network's own"
            " masked predictions as far as training went: refine=128 corrects them, and shapley_values with"
            " baseline=own_masking checks them.",
            variant="Centred over classes. Architecture as the paper states it; its loss and masks are unknown to us.",
            tags=("self-explaining", "shapley"),
        ),
        ExplainerSpec(
            name="shapley_values",
            target="xaihub_shapley.posthoc:ShapleyValues",
            summary="Shapley values of regions for any model, with standard errors: enumerated, or estimated in pairs.",
            paper=Paper(
                title="Improving KernelSHAP: Practical Shapley Value Estimation Using Linear Regression",
                year=2021,
                url="https://arxiv.org/abs/2012.01536",
            ),
            cost="at most budget forward passes, 2^regions if exact",
            limits="The values depend on the regions and on what hides them; a standard error says nothing of that.",
            variant="Paired, without repetition, sizes that are due as a whole taken as a whole; see estimator.",
            tags=("perturbation", "shapley", "completeness"),
        ),
    ]


@hookimpl
def xaihub_register_baselines() -> list[BaselineSpec]:
    """Register the own masking of self-explaining networks."""
    return [
        BaselineSpec(
            name="own_masking",
            target="xaihub_shapley.own:make_own_masking",
            summary="What a self-explaining network says of the patches left, the way it was trained to.",
            paper=_PAPER,
            limits="Only models trained with the objective shapley; a patch is there if half of its pixels are shown.",
            tags=("self-explaining",),
        )
    ]


@hookimpl
def xaihub_register_objectives() -> list[ObjectiveSpec]:
    """Register the training objective."""
    return [
        ObjectiveSpec(
            name="shapley",
            target="xaihub_shapley.objective:ShapleyObjective",
            summary="Class scores as a sum of patch votes, each trained to be its patch's Shapley value.",
            paper=_PAPER,
            cost="1 + coalitions forward and backward passes",
            limits="Needs a timm network whose features are a grid. Pulls towards patches that ignore each other, and"
            " softens predictions, the more so the larger lambda is.",
            tags=("self-explaining", "shapley"),
        )
    ]


@hookimpl
def xaihub_register_reproductions() -> list[ReproductionSpec]:
    """Register the small experiments."""
    return [
        ReproductionSpec(
            name="shapley",
            target="xaihub_shapley.reproduction:reproduce_shapley",
            summary="Small self-explaining networks against exact Shapley values and post-hoc maps.",
            paper=_PAPER,
        )
    ]
