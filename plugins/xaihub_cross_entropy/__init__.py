"""Plain training with cross-entropy: the baseline for every other objective."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import ObjectiveSpec


@hookimpl
def xaihub_register_objectives() -> list[ObjectiveSpec]:
    """Register plain cross-entropy."""
    return [
        ObjectiveSpec(
            name="cross_entropy",
            target="xaihub_cross_entropy.method:CrossEntropy",
            summary="Plain classification, the baseline for other objectives.",
            cost="1 forward and 1 backward pass",
            limits="It does not train for explanations.",
        )
    ]
