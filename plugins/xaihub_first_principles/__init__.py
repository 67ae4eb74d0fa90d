"""Feature attribution from first principles: attributions as measures over masked inputs."""

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
            summary="Attribute each region by a weighted average of scores on masked inputs (keep-p, Shapley,"
            " occlusion, ...).",
            paper=Paper(
                title="Feature Attribution from First Principles",
                year=2025,
                url="https://arxiv.org/abs/2505.24729",
            ),
            needs=("black-box",),
            cost="at most budget forward passes, fewer if the tolerance is met",
            limits="The baseline that replaces masked regions is part of the result; gradients and IG are refused.",
            variant="Stated: attributions as measures; the families conditional, independent, pdp, axis_dirac,"
            " axis_lebesgue and length_weighted. Derived: keep_p, shapley, occlusion and the other families. Our"
            " choice: regions of images, baselines and masks; the defaults (keep_p at 0.5, centred and adjusted, on one"
            " grid, balanced masks, ended early by the standard error).",
            tags=("perturbation",),
        )
    ]


@hookimpl
def xaihub_register_commands() -> list[click.Command]:
    """Register `xaihub optimise-measure`."""
    from xaihub_first_principles.command import optimise_measure

    return [optimise_measure]
