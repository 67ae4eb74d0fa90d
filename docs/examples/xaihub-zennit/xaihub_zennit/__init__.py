"""Registration of LRP. Every command imports this module, so it must not import anything heavy."""

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
            variant="Epsilon, gamma, zplus, flat and zbox rules (stated); biases receive no relevance (our choice).",
        )
    ]
