"""The parameters of the causal search."""

from __future__ import annotations

from typing import Annotated, Literal

from xaihub.params import Meta, Parametrised, Passes, When


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
    ] = 0.5
    iterations: Annotated[int, Meta(ge=1, description="Maximum number of random searches.")] = 10
    agreement: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Stop when the expected correlation with another seed's map reaches this; 1 never stops early.",
        ),
    ] = 0.5
    budget: Annotated[
        int | None,
        Meta(
            description="Maximum number of forward passes per image: three quarters for the search, the rest for the"
            " sets, which may then be larger; if unset, the other parameters bound the cost."
        ),
        Passes(maximum=True),
    ] = None
    refinements: Annotated[int, Meta(ge=1, description="Maximum number of boxes split per search.")] = 2
    confidence_filter: Annotated[
        float,
        Meta(ge=0, le=1, description="Minimum fraction of the original confidence for a mutant to pass in the search."),
    ] = 0.5
    cell: Annotated[
        int, Meta(ge=1, description="Side, in pixels, of the cells that sets consist of, each with a margin.")
    ] = 16
    shrink: Annotated[
        int,
        Meta(
            ge=0,
            description="Maximum number of forward passes for removing cells from the sets of an image, large blocks of"
            " cells first; 0 returns sets as cut from the ranking.",
        ),
    ] = 100
    radius: Annotated[
        float,
        Meta(gt=0, description="Radius, in pixels, of the smallest disc that is tried."),
        When(strategy="spatial"),
    ] = 25.0
    alternatives: Annotated[
        int, Meta(ge=1, description="Maximum number of disjoint sets."), When(strategy="multiple")
    ] = 4
