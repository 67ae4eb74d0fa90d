"""Activation-Deactivation: hide pixels by switching off what stands for them inside the network; causal search."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import BaselineSpec, ExplainerSpec, Paper

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
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register the causal search, with pixels replaced and with units switched off."""
    cost = "14 iterations x refinements + 2 forward passes at most, and some hundred for the sets of pixels"
    limits = (
        "The set is sufficient under its own way of hiding pixels only, minimal up to a cell and not the smallest there"
        " is; without a confidence to keep, its own is often low."
    )
    return [
        ExplainerSpec(
            name="convad",
            target="xaihub_convad.causal:ConvAD",
            summary="Causal responsibility and a minimal set of pixels that keeps the answer, units switched off.",
            paper=_PAPER,
            needs=("activations",),
            cost=cost,
            limits=limits,
            variant="The causal search of rex, with units switched off; the paper's own settings are unknown to us.",
            tags=("perturbation", "causal", "masks"),
        ),
        ExplainerSpec(
            name="rex",
            target="xaihub_convad.causal:Rex",
            summary="Causal responsibility and a minimal set of pixels that keeps the answer, the others replaced.",
            paper=Paper(title="Explanations for Occluded Images", year=2021, url="https://arxiv.org/abs/2103.03622"),
            cost=cost,
            limits=limits,
            variant="Responsibility as defined, from mutants that keep half of the confidence; mean; carried boxes.",
            tags=("perturbation", "causal", "masks"),
        ),
    ]


@hookimpl
def xaihub_register_baselines() -> list[BaselineSpec]:
    """Register deactivation, its variants whose scores differ, and the two fills of ReX that the hub lacks."""
    fills = [
        BaselineSpec(
            name=name,
            target=f"xaihub_convad.extremes:make_{name}",
            summary=f"The {word} number of the model's input, over all channels.",
            limits="Its colour depends on the image and on the model's normalisation.",
            tags=("fill",),
        )
        for name, word in (("min", "lowest"), ("max", "highest"))
    ]
    return [
        *fills,
        _baseline(
            "deactivate", "make_deactivation", "Switch off the units that stand for hidden pixels; no fill value."
        ),
        _baseline(
            "deactivate_whole", "make_whole", "Deactivation that leaves on only what stands for no hidden pixel."
        ),
        _baseline("deactivate_live", "make_live", "Deactivation whose means over places leave out what is off."),
        _baseline(
            "deactivate_layerwise",
            "make_layerwise",
            "Deactivation by the share of live places in each layer's windows.",
        ),
        _baseline(
            "deactivate_neighbours",
            "make_neighbours",
            "Deactivation that fills from live neighbours before convolutions.",
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
