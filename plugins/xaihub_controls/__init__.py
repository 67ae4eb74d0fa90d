"""Controls: maps that explain nothing, to be scored next to the methods."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import ExplainerSpec

_LIMITS = "A control, not a method: it never runs the model. A method that does not beat it has demonstrated nothing."


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register the controls."""
    return [
        ExplainerSpec(
            name=f"control_{name}",
            target=f"xaihub_controls.method:{name.title()}Control",
            summary=f"Control: {summary}.",
            cost="none",
            limits=_LIMITS,
            variant=f"{variant}.",
            tags=("control",),
        )
        for name, summary, variant in (
            ("random", "uniform noise", "Independent uniform values in [0, 1), drawn from the seed and the image"),
            ("edges", "edge strength of the image", "Sobel magnitude of the channel mean, in pixel units"),
            (
                "centre",
                "a Gaussian at the centre, the same for every image",
                "An axis-aligned Gaussian whose standard deviation is a fraction of each side",
            ),
        )
    ]
