"""ExpO: penalties that make a network easy to explain by local linear models, and measures of such explanations."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import ObjectiveSpec, Paper, ReproductionSpec

_PAPER = Paper(
    title="Regularizing Black-box Models for Improved Interpretability",
    year=2020,
    url="https://arxiv.org/abs/1902.06787",
)
_PROMISE = (
    "it makes local linear explanations better, not true; read scale-free measures, as small logits flatter others"
)


@hookimpl
def xaihub_register_objectives() -> list[ObjectiveSpec]:
    """Register the three penalties."""
    return [
        ObjectiveSpec(
            name="expo-fidelity",
            target="xaihub_expo.objectives:Fidelity",
            summary="Cross-entropy, and how far the logits are from affine in which patches are shown.",
            paper=_PAPER,
            cost="1 + penalty_batch * samples / batch / every forward and backward passes",
            limits=_PROMISE,
            tags=("local-linear",),
        ),
        ObjectiveSpec(
            name="expo-1d",
            target="xaihub_expo.objectives:LineFidelity",
            summary="Cross-entropy, and how far the logits are from affine in the opacity of one random patch.",
            paper=_PAPER,
            cost="1 + penalty_batch * samples / batch / every forward and backward passes",
            limits=f"blind to interactions between patches; {_PROMISE}",
            tags=("local-linear",),
        ),
        ObjectiveSpec(
            name="expo-stability",
            target="xaihub_expo.objectives:Stability",
            summary="Cross-entropy, and the squared change of the logits under small noise or faded patches.",
            paper=_PAPER,
            cost="1 + penalty_batch / batch / every forward and backward passes; with batch statistics or dropout, twice"
            " the penalised rows",
            limits=f"it flattens the function, so it is for classifiers only; {_PROMISE}",
            tags=("local-linear", "robustness"),
        ),
    ]


@hookimpl
def xaihub_register_reproductions() -> list[ReproductionSpec]:
    """Register the paper's experiment on tables."""
    return [
        ReproductionSpec(
            name="expo",
            target="xaihub_expo.reproduction:reproduce_expo",
            summary="Accuracy, fidelity and stability of networks for tables, with and without ExpO.",
            paper=_PAPER,
            extra="tables",
        )
    ]
