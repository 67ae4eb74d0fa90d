"""RISE: explain by masking random patches."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import ExplainerSpec, Paper


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register RISE."""
    return [
        ExplainerSpec(
            name="rise",
            target="xaihub_rise.method:RISE",
            summary="Average of random masks, weighted by the class probability of the masked images.",
            paper=Paper(
                "RISE: Randomized Input Sampling for Explanation of Black-box Models",
                2018,
                "https://arxiv.org/abs/1806.07421",
            ),
            needs=("black-box",),
            cost="masks forward passes",
            limits="Noisy below about 1000 masks. Values rank pixels; they do not sum to the score.",
            variant="Stated: Eq. 6, the weighted sum of masks divided by the number of masks and the keep probability."
            " Our choice: 1000 masks by default, drawn for each image from its seed; of values (regression,"
            " similarity), the mean over the masks is subtracted.",
            tags=("perturbation",),
        )
    ]
