"""ScoresActivation: a softmax gate whose trained weights rank the features of a model as a whole."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import GlobalExplainerSpec, ObjectiveSpec, Paper, ReproductionSpec

_PAPER = Paper(
    "ScoresActivation: A New Activation Function for Model Agnostic Global Explainability by Design",
    2025,
    "https://arxiv.org/abs/2511.13809",
)


@hookimpl
def xaihub_register_objectives() -> list[ObjectiveSpec]:
    """Register training with a gate."""
    return [
        ObjectiveSpec(
            name="scores_activation",
            target="xaihub_scores_activation.objective:GatedClassifier",
            summary="Classification through a softmax gate that ranks channels, positions, patches or input channels.",
            paper=_PAPER,
            cost="1 forward and 1 backward pass, plus one softmax and one product",
            limits="Channels and positions need one linear classifier; two-headed and convolutional ones are refused."
            " A short training leaves the weights nearly equal, which a warning reports. A weight describes the trained"
            " model, not causes.",
            variant="our reconstruction: trained scores that rank the features at any moment (stated); one softmax over"
            " the features and its product with them (stated in two machine-written reviews only); the gate adds no"
            " capacity and can be folded (derived); gain d, learning rates, initial scores and every use on images (our"
            " choice).",
        )
    ]


@hookimpl
def xaihub_register_global_explainers() -> list[GlobalExplainerSpec]:
    """Register the reading of a trained gate, and two estimates to compare it with."""
    return [
        GlobalExplainerSpec(
            name="scores",
            target="xaihub_scores_activation.global_explainers:Scores",
            summary="Read the weights of a trained ScoresActivation gate.",
            paper=_PAPER,
            needs=("a trained gate",),
            cost="one softmax",
            limits="Only for models trained with the objective scores_activation; correlated features share credit"
            " arbitrarily.",
            variant="our reconstruction: the trained weights as the ranking (stated); readout=weight_x_norm and the"
            " warning about flat rankings (our choice).",
        ),
        GlobalExplainerSpec(
            name="shap_global",
            target="xaihub_scores_activation.global_explainers:GlobalSHAP",
            summary="Mean |SHAP value| of the classifier's input channels, over images and classes.",
            paper=Paper(
                "A Unified Approach to Interpreting Model Predictions", 2017, "https://arxiv.org/abs/1705.07874"
            ),
            needs=("images",),
            cost="1 forward pass per image; rows * permutations * (2 d + 1) * background passes of the classifier",
            limits="Channels of the classifier's input only; a masked channel takes its value in other images.",
            variant="SHAP values by the shap library (stated); channels as features, and the mean of |value| over"
            " images and classes (our choice).",
        ),
        GlobalExplainerSpec(
            name="permutation_importance",
            target="xaihub_scores_activation.global_explainers:PermutationImportance",
            summary="Drop in the classifier's quality when one of its input channels is shuffled among images.",
            paper=Paper("Random Forests", 2001, "https://doi.org/10.1023/A:1010933404324"),
            needs=("images", "labels, or else the model's own predictions"),
            cost="1 forward pass per image; d * repeats passes of the classifier",
            limits="Redundant channels, which can replace each other, all look unimportant.",
            variant="Drop in quality when a feature is shuffled (stated, for random forests; by scikit-learn); channels"
            " of a classifier, and the log loss as quality (our choice).",
        ),
    ]


@hookimpl
def xaihub_register_reproductions() -> list[ReproductionSpec]:
    """Register the reconstruction of the paper's experiments."""
    return [
        ReproductionSpec(
            name="scores-activation",
            target="xaihub_scores_activation.reproduction.command:command",
            summary="Rankings, agreement with SHAP, accuracy and cost of the gate on tables.",
            paper=_PAPER,
        )
    ]
