"""Controls: maps that explain nothing, to be scored next to the methods."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import ExplainerSpec

_LIMITS = (
    "A control, not a method: it never runs the model. A method that does not beat it has demonstrated nothing on the"
    " metric."
)


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register the controls."""
    return [
        ExplainerSpec(
            name="control_random",
            target="xaihub_controls.method:RandomControl",
            summary="Control: uniform noise.",
            cost="none",
            limits=_LIMITS,
            variant="Independent uniform values in [0, 1), drawn from the seed and the image.",
            tags=("control",),
        ),
        ExplainerSpec(
            name="control_edges",
            target="xaihub_controls.method:EdgesControl",
            summary="Control: edge strength of the image.",
            cost="none",
            limits=_LIMITS,
            variant="Sobel magnitude of the channel mean, in pixel units.",
            tags=("control",),
        ),
        ExplainerSpec(
            name="control_centre",
            target="xaihub_controls.method:CentreControl",
            summary="Control: a Gaussian at the centre, the same for every image.",
            cost="none",
            limits=_LIMITS,
            variant="An axis-aligned Gaussian whose standard deviation is a fraction of each side.",
            tags=("control",),
        ),
    ]
