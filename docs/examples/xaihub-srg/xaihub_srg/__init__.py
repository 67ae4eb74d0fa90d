"""Symmetric relevance gain. Every command imports this module, so it imports nothing heavy."""

from xaihub import MetricSpec, hookimpl


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    """Register SRG."""
    return [
        MetricSpec(
            name="srg",
            target="xaihub_srg.method:SRG",
            summary="Area between hiding the least and the most important segments first.",
            bounds=(-float("inf"), float("inf")),
            formula="mean over k of f(x without the k worst) - f(x without the k best)",
            cost="2 * segments forward passes",
            limits="Depends on the segments and on what hidden pixels become.",
        )
    ]
