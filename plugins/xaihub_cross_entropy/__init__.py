"""Plain training: the twin that every other objective is compared with."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import ObjectiveSpec


@hookimpl
def xaihub_register_objectives() -> list[ObjectiveSpec]:
    """Register plain cross-entropy."""
    return [
        ObjectiveSpec(
            name="cross_entropy",
            target="xaihub_cross_entropy.method:CrossEntropy",
            summary="Plain classification, the twin to compare other objectives with.",
            cost="1 forward and 1 backward pass",
            limits="It asks nothing of explanations.",
        )
    ]
