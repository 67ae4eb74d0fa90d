"""Registration of SRG. Every command imports this module, so it must not import anything heavy."""

from xaihub import MetricSpec, hookimpl


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    """Register SRG."""
    return [
        MetricSpec(
            name="srg",
            target="xaihub_srg.method:SRG",
            summary="Area between the curves that mask the least and the most important segments first.",
            bounds=(-float("inf"), float("inf")),
            formula="mean over k of f(x without the k lowest) - f(x without the k highest)",
            cost="2 * segments forward passes",
            limits="Depends on the segments and the fill for masked pixels.",
            variant="LIF - MIF over all steps (stated); 25 superpixels, mean fill (our choice).",
        )
    ]
