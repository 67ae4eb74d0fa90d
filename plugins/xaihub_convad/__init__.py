"""Activation-Deactivation: hide pixels by switching off what stands for them inside the network."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import BaselineSpec, Paper

_PAPER = Paper(
    title="Activation-Deactivation: A General Framework for Robust Post-hoc Explainable AI",
    year=2025,
    url="https://arxiv.org/abs/2510.01038",
)
_LIMITS = (
    "Refused for windowed and hierarchical transformers and for layers that mix places in an unknown way."
    " Only the full mask is guaranteed to leave the network as it is."
)


@hookimpl
def xaihub_register_baselines() -> list[BaselineSpec]:
    """Register deactivation, and its variants whose scores differ."""
    return [
        _baseline("deactivate", "make_deactivation", "Switch off the units that stand for hidden pixels; no fill value."),
        _baseline("deactivate_live", "make_live", "Deactivation whose means over places leave out what is off."),
        _baseline(
            "deactivate_layerwise", "make_layerwise", "Deactivation by the share of live places in each layer's windows."
        ),
        _baseline(
            "deactivate_neighbours", "make_neighbours", "Deactivation that fills from live neighbours before convolutions."
        ),
    ]


def _baseline(name: str, target: str, summary: str) -> BaselineSpec:
    return BaselineSpec(
        name=name,
        target=f"xaihub_convad.deactivation:{target}",
        summary=summary,
        paper=_PAPER,
        limits=_LIMITS,
        tags=("deactivation",),
    )
