"""ScoresActivation: a softmax gate whose trained weights rank the features of a model as a whole."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import GlobalExplainerSpec, ObjectiveSpec, Paper, ReproductionSpec

_PAPER = Paper(
    title="ScoresActivation: A New Activation Function for Model Agnostic Global Explainability by Design",
    year=2025,
    url="https://arxiv.org/abs/2511.13809",
)


@hookimpl
def xaihub_register_objectives() -> list[ObjectiveSpec]:
    """Register training with a gate."""
    return [
        ObjectiveSpec(
            name="scores_activation",
            target="xaihub_scores_activation.objective:GatedClassifier",
            summary="Classification through a softmax gate whose weights rank channels, positions, patches or bands.",
            paper=_PAPER,
            cost="1 forward pass and 1 backward pass; one softmax and one product more",
            limits="Channels and positions need one linear classifier; two-headed and convolutional ones are refused."
            " A weight tells of the trained model, not of causes.",
        )
    ]


@hookimpl
def xaihub_register_global_explainers() -> list[GlobalExplainerSpec]:
    """Register the reading of a trained gate, and two estimates to compare it with."""
    return [
        GlobalExplainerSpec(
            name="scores",
            target="xaihub_scores_activation.rankers:Scores",
            summary="Read the weights of a trained ScoresActivation gate.",
            paper=_PAPER,
            needs=("a trained gate",),
            cost="one softmax",
            limits="Only for models trained with the objective scores_activation; correlated features share credit.",
        ),
        GlobalExplainerSpec(
            name="shap_global",
            target="xaihub_scores_activation.rankers:GlobalSHAP",
            summary="Mean size of SHAP values of the classifier's input channels, over images and classes.",
            paper=Paper(
                title="A Unified Approach to Interpreting Model Predictions",
                year=2017,
                url="https://arxiv.org/abs/1705.07874",
            ),
            needs=("images",),
            cost="1 forward pass an image; rows * permutations * (2 d + 1) * background passes of the classifier",
            limits="Channels of the classifier's input only; an absent channel takes its value in other images.",
        ),
        GlobalExplainerSpec(
            name="permutation_importance",
            target="xaihub_scores_activation.rankers:PermutationImportance",
            summary="How much worse the classifier gets when one input channel is shuffled among images.",
            paper=Paper(title="Random Forests", year=2001, url="https://doi.org/10.1023/A:1010933404324"),
            needs=("images", "labels, or else the model's own decisions"),
            cost="1 forward pass an image; d * repeats passes of the classifier",
            limits="Channels that stand in for each other all look unimportant.",
        ),
    ]


@hookimpl
def xaihub_register_reproductions() -> list[ReproductionSpec]:
    """Register the reconstruction of the paper's experiments."""
    return [
        ReproductionSpec(
            name="scores-activation",
            target="xaihub_scores_activation.reproduce:command",
            summary="Rankings, agreement with SHAP, accuracy and cost of the gate on tables.",
            paper=_PAPER,
        )
    ]
