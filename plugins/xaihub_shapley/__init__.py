"""Shapley values: networks trained to sum them to their class scores, and post-hoc estimates for any model."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import BaselineSpec, ExplainerSpec, ObjectiveSpec, Paper, ReproductionSpec

_PAPER = Paper(
    "Enhancing Interpretability for Vision Models via Shapley Value Optimization",
    2025,
    "https://arxiv.org/abs/2512.14354",
)
_STATED = (
    "our reconstruction: patch scores that sum to the class scores, cross-entropy and a Shapley loss on masked images"
    " (stated)"
)


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register the patch scores of self-explaining networks, and the estimates for any model."""
    return [
        ExplainerSpec(
            name="shapley",
            target="xaihub_shapley.self_explaining:SelfExplained",
            summary="The patch scores of a network trained with the objective shapley, for every class at once.",
            paper=_PAPER,
            needs=("activations",),
            cost="1 + refine forward passes",
            limits="Only models trained with the objective shapley. Patch scores are Shapley values of the network's"
            " own masked predictions as far as training went: refine=128 corrects them, and shapley_values with"
            " baseline=own_masking checks them.",
            variant=f"{_STATED}; the correction by refine (derived); centring over classes and refine itself (our"
            " choice).",
            tags=("self-explaining", "shapley"),
        ),
        ExplainerSpec(
            name="shapley_values",
            target="xaihub_shapley.posthoc:ShapleyValues",
            summary="Shapley values of regions for any model, with standard errors: of all post-hoc estimators we"
            " measured, the smallest error at every budget.",
            paper=Paper(
                "Improving KernelSHAP: Practical Shapley Value Estimation Using Linear Regression",
                2021,
                "https://arxiv.org/abs/2012.01536",
            ),
            cost="at most budget forward passes; 2^regions if exact",
            limits="The values depend on the regions and on how they are masked; standard errors cover the choice of"
            " coalitions only.",
            variant="Stated: estimator kernel. Our choice: its coalitions, in pairs and without repetition; the default"
            " estimator interactions, a Gaussian process over games; regions, baseline and budget. Derived: the Shapley"
            " values and errors of interactions in closed form.",
            tags=("perturbation", "shapley", "completeness"),
        ),
    ]


@hookimpl
def xaihub_register_baselines() -> list[BaselineSpec]:
    """Register the own masking of self-explaining networks."""
    return [
        BaselineSpec(
            name="own_masking",
            target="xaihub_shapley.self_explaining:make_own_masking",
            summary="A self-explaining network's output for the visible patches, masked as in training.",
            paper=_PAPER,
            limits="Only models trained with the objective shapley; a patch is visible if half of its pixels are.",
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
            summary="Class scores as a sum of patch scores, each trained to be its patch's Shapley value.",
            paper=_PAPER,
            cost="1 + coalitions forward and backward passes",
            limits="Needs a timm network whose features form a grid. Pulls towards patches that ignore each other and"
            " softens predictions, more so the larger lambda is. After a short training the patch scores are not yet"
            " Shapley values: read patch_score_r2 on the epoch line or the card.",
            variant=f"{_STATED}; Shapley values at that loss's minimum (derived); squared error over pairs of"
            " coalitions, masked patches at the mean colour, lambda = 1, its schedule and votes_lambda (our choice).",
            tags=("self-explaining", "shapley"),
        )
    ]


@hookimpl
def xaihub_register_reproductions() -> list[ReproductionSpec]:
    """Register the small experiments."""
    return [
        ReproductionSpec(
            name="shapley",
            target="xaihub_shapley.reproduction.command:reproduce_shapley",
            summary="Small self-explaining networks against exact Shapley values and post-hoc maps.",
            paper=_PAPER,
        )
    ]
