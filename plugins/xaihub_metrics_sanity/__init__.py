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
            summary="Similarity of the map to those of increasingly randomised copies of the network.",
            paper=Paper("Sanity Checks for Saliency Maps", 2018, "https://arxiv.org/abs/1810.03292"),
            higher_is_better=False,
            bounds=(-1.0, 1.0),
            formula="(1/L) sum_l similarity(a(f), a(f_l)), f_l = f with the l-th stage of its weights randomised",
            variant="Our choice: the mean over `layers` stages of consecutive modules from the output down, cumulative"
            " (cascading) or one at a time (independent). Rank correlation of absolute values; 0 means unrelated.",
            cost="`layers` additional explanations, each on a copy of the network",
            limits="Passing is necessary, not sufficient: noise that depends on the weights passes. Structural"
            " similarity and cosine rate any two smooth maps as similar; rank correlation weighs many small values.",
            tags=("sanity",),
            axes=("fraction of the stages randomised", "similarity to the original map"),
        ),
        MetricSpec(
            name="random_logit",
            target="xaihub_metrics_sanity.random_logit:RandomLogit",
            summary="Similarity of the map to that for a random other class.",
            paper=Paper(
                "When Explanations Lie: Why Many Modified BP Attributions Fail",
                2020,
                "https://arxiv.org/abs/1912.09818",
            ),
            higher_is_better=False,
            bounds=(-1.0, 1.0),
            formula="similarity(a(f, y), a(f, y')), y' a random class other than y",
            variant="Our choice: one other class per image, the same for all explainers; rank correlation of signed"
            " values. Stated by the authors: structural similarity, available as a parameter.",
            cost="1 additional explanation",
            limits="Two classes may use the same pixels, so 0 is not the goal: compare with class-agnostic maps,"
            " which score 1.",
            tags=("sanity",),
        ),
    ]
