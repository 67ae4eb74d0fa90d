"""Sanity checks: a map must change when the network or the class does."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import MetricSpec, Paper


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    """Register the randomisation tests."""
    return [
        MetricSpec(
            name="mprt",
            target="xaihub_metrics_sanity.mprt:MPRT",
            summary="Similarity of the map to those of ever more randomised copies of the network.",
            paper=Paper(title="Sanity Checks for Saliency Maps", year=2018, url="https://arxiv.org/abs/1810.03292"),
            higher_is_better=False,
            bounds=(-1.0, 1.0),
            formula="(1/L) sum_l similarity(a(f), a(f_l)), f_l = f with the l-th stage of its weights randomised",
            variant="Mean over `layers` stages of consecutive modules from the output down, cumulative (cascading) or"
            " one stage at a time (independent); rank correlation of absolute values, about 0 where no trace is left.",
            cost="`layers` further explanations, each on a copy of the network",
            limits="Passing is necessary, not sufficient: noise that follows the weights passes. Structural similarity"
            " and cosine rate any two smooth maps as alike; rank correlation reads the many small values.",
            tags=("sanity",),
            axes=("share of the stages randomised", "similarity to the map before"),
        ),
        MetricSpec(
            name="random_logit",
            target="xaihub_metrics_sanity.random_logit:RandomLogit",
            summary="Similarity of the map to the one for a random other class.",
            paper=Paper(
                title="When Explanations Lie: Why Many Modified BP Attributions Fail",
                year=2020,
                url="https://arxiv.org/abs/1912.09818",
            ),
            higher_is_better=False,
            bounds=(-1.0, 1.0),
            formula="similarity(a(f, y), a(f, y')), y' a random class other than y",
            variant="One other class an image, the same for every explainer; rank correlation of signed values (the"
            " paper uses structural similarity, which is a parameter).",
            cost="1 further explanation",
            limits="Two classes may rest on the same pixels, so 0 is no target: compare with class-agnostic maps,"
            " which score 1.",
            tags=("sanity",),
        ),
    ]
