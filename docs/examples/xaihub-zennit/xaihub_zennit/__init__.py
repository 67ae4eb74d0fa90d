"""What xaihub is told. Every command imports this module, so it imports nothing heavy."""

from xaihub import ExplainerSpec, Paper, hookimpl


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register LRP."""
    return [
        ExplainerSpec(
            name="lrp",
            target="xaihub_zennit.method:LRP",
            summary="Layer-wise relevance propagation, with zennit's composites.",
            needs=("gradients",),
            cost="1 forward, 1 backward",
            limits="Refuses where relevance is not conserved: residual sums, attention, gates without a rule.",
            variant="Biases take no relevance, so that the values sum to the score.",
            paper=Paper(
                title="On Pixel-Wise Explanations by Layer-Wise Relevance Propagation",
                year=2015,
                url="https://doi.org/10.1371/journal.pone.0130140",
            ),
        )
    ]
