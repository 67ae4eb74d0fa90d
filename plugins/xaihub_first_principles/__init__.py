"""Feature attribution from first principles: attributions as measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xaihub.hookspecs import hookimpl
from xaihub.specs import ExplainerSpec, Paper

if TYPE_CHECKING:
    import click


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register the explainer on images."""
    return [
        ExplainerSpec(
            name="first_principles",
            target="xaihub_first_principles.method:FirstPrinciples",
            summary="Integrate the score against one measure a region: keep-p, Shapley, occlusion and others.",
            paper=Paper(
                title="Feature Attribution from First Principles",
                year=2025,
                url="https://arxiv.org/abs/2505.24729",
            ),
            needs=("black-box",),
            cost="at most budget forward passes, fewer if the tolerance is met",
            limits="The replacements of hidden regions are part of the question; gradients and IG are not measures.",
            variant="Measures on regions; keep-p at 0.5, centred, by default. Exact for finite support"
            " and, on small piecewise-linear networks, for lines.",
            tags=("perturbation",),
        )
    ]


@hookimpl
def xaihub_register_commands() -> list[click.Command]:
    """Register `xaihub optimise-measure`."""
    from xaihub_first_principles.command import optimise_measure

    return [optimise_measure]
