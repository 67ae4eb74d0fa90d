"""Layer-wise relevance propagation. Every command imports this module, so it imports nothing heavy."""

from xaihub import ExplainerSpec, hookimpl


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register LRP."""
    return [
        ExplainerSpec(
            name="lrp",
            target="xaihub_zennit.method:LRP",
            summary="Layer-wise relevance propagation, with zennit's composites.",
            needs=("gradients",),
            cost="2 forward passes, 1 backward pass",
            limits="Refuses where relevance is not conserved: residual sums, attention, gates without a rule.",
        )
    ]
