"""Activation-Deactivation: mask pixels by switching off units inside the network; causal search for pixel sets."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import BaselineSpec, ExplainerSpec, Paper

_AD = Paper(
    "Activation-Deactivation: A General Framework for Robust Post-hoc Explainable AI",
    2025,
    "https://arxiv.org/abs/2510.01038",
)
_REX = Paper("Explanations for Occluded Images", 2021, "https://arxiv.org/abs/2103.03622")


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register the causal search, with masked pixels replaced and with units switched off."""
    summary = "Causal responsibility of pixels and a minimal set that keeps the class, with"
    cost = (
        "at most 14 * iterations * refinements + shrink + 100 forward passes; contrastive and complete sets add at most"
        " 200, and strategy=multiple multiplies all of it by alternatives"
    )
    limits = (
        "A set is sufficient under its own removal only, and not the smallest possible; with a low confidence it can be"
        " lost by one pixel."
    )
    tags = ("perturbation", "causal", "masks")
    return [
        ExplainerSpec(
            name="convad",
            target="xaihub_convad.explainers:ConvAD",
            summary=f"{summary} units switched off.",
            paper=_AD,
            needs=("activations",),
            cost=cost,
            limits=limits,
            variant="Our reconstruction: the full text was not available to us. Units of masked pixels set to 0, no"
            " retraining (stated); aligned rule, seven eighths of a cell, the search and sets of rex (our choice).",
            tags=tags,
        ),
        ExplainerSpec(
            name="rex",
            target="xaihub_convad.explainers:Rex",
            summary=f"{summary} masked pixels replaced.",
            paper=_REX,
            cost=cost,
            limits=limits,
            variant="14 mutants per split, responsibility 1/(1+k) (stated); mean over searches, passing mutants keep"
            " half of the confidence, sets keep half of it, are shrunk and padded (our choice).",
            tags=tags,
        ),
    ]


@hookimpl
def xaihub_register_baselines() -> list[BaselineSpec]:
    """Register deactivation, its variants with different scores, and the two fills of ReX that the hub lacks."""
    fills = [
        BaselineSpec(
            name=name,
            target=f"xaihub_convad.baselines:make_{name}",
            summary=f"The {word} value of the model's input, over all channels.",
            limits="Its colour depends on the image and on the model's normalisation.",
            tags=("fill",),
        )
        for name, word in (("min", "smallest"), ("max", "largest"))
    ]
    variants = {
        "deactivate": ("deactivation", "Switch off units that represent masked pixels; no fill value."),
        "deactivate_most": ("most", "Deactivation that keeps only units of whose cell seven eighths are visible."),
        "deactivate_whole": ("whole", "Deactivation that keeps only units whose whole cell is visible."),
        "deactivate_live": ("live", "Deactivation with spatial means over active units only."),
        "deactivate_layerwise": ("layerwise", "Deactivation by the active fraction of each layer's windows."),
        "deactivate_neighbours": ("neighbours", "Deactivation with inactive units filled from neighbours."),
    }
    return fills + [
        BaselineSpec(
            name=name,
            target=f"xaihub_convad.baselines:make_{maker}",
            summary=summary,
            paper=_AD,
            limits="Not supported for windowed and hierarchical transformers and for layers that mix positions in an"
            " unknown way. Only the full mask is guaranteed to leave the network's output unchanged.",
            tags=("deactivation",),
        )
        for name, (maker, summary) in variants.items()
    ]
