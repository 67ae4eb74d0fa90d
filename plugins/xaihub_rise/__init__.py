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
            summary="Average random masks, weighted by the class's probability under each.",
            paper=Paper(
                title="RISE: Randomized Input Sampling for Explanation of Black-box Models",
                year=2018,
                url="https://arxiv.org/abs/1806.07421",
            ),
            needs=("black-box",),
            cost="masks forward passes",
            limits="Noisy below about 1000 masks; a map of the image's importance, not a sum over pixels.",
            variant="Eq. 6: the weighted sum of masks, divided by the number of masks and the keep probability.",
            tags=("perturbation",),
        )
    ]
