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
            cost="at most masks forward passes, fewer if the tolerance is met",
            limits="Random masks: the record has the standard error as a fraction of the map's spread. Values rank"
            " pixels; they do not sum to the score.",
            variant="Stated: Eq. 6, the weighted sum of masks divided by the number of masks and the keep probability"
            " (estimator plain). Derived: the default estimator, which has the same expectation and less variance, and"
            " its standard error. Our choice: at most 1000 masks, ended early by the standard error; of values"
            " (regression, similarity), the mean over the masks is subtracted.",
            tags=("perturbation",),
        )
    ]
