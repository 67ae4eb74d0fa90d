"""The parameters of the causal search."""

from __future__ import annotations

from typing import Annotated, Literal

from xaihub.params import Meta, Parametrised


class Settings(Parametrised):
    """Parameters that `rex` and `convad` share."""

    strategy: Annotated[
        Literal["global", "spatial", "contrastive", "complete", "multiple"],
        Meta(
            description="Which sets to return: global (keeps the class), spatial (the same within a disc), contrastive"
            " (keeps the class, which is lost without it), complete (keeps the whole image's confidence), multiple"
            " (several disjoint sets)."
        ),
    ] = "global"
    confidence: Annotated[
        float, Meta(ge=0, le=1, description="Minimum fraction of the original confidence that a set must keep.")
    ] = 0.0
    iterations: Annotated[int, Meta(ge=1, description="Maximum number of random searches.")] = 100
    agreement: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Stop when the expected correlation with another seed's map reaches this; 1 never stops early.",
        ),
    ] = 0.85
    budget: Annotated[
        int | None,
        Meta(
            description="Maximum number of forward passes per image: three quarters for the search, the rest for the"
            " sets, which may then be larger; if unset, the other parameters bound the cost."
        ),
    ] = None
    refinements: Annotated[int, Meta(ge=1, description="Maximum number of boxes split per search.")] = 2
    confidence_filter: Annotated[
        float,
        Meta(ge=0, le=1, description="Minimum fraction of the original confidence for a mutant to pass in the search."),
    ] = 0.5
    step: Annotated[int, Meta(ge=1, description="Resolution, in pixels, to which the size of a set is determined.")] = (
        10
    )
    shrink: Annotated[bool, Meta(description="Remove cells from a set until no further one can be removed.")] = True
    cell: Annotated[int, Meta(ge=1, description="Side of such a cell, in pixels.")] = 16
    radius: Annotated[float, Meta(gt=0, description="First radius, in pixels (strategy=spatial).")] = 25.0
    alternatives: Annotated[int, Meta(ge=1, description="Maximum number of disjoint sets (strategy=multiple).")] = 4
