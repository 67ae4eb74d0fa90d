"""Exact integrals of measures on lines, `axis_lebesgue` and `fd_ig`, on images and on vectors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from xaihub import ExplainerRefused, Model, ResolvedTarget
from xaihub.masking import Features, Fill, Removal
from xaihub_first_principles.families import AxisLebesgue, FiniteDifferenceIG, start_of
from xaihub_first_principles.line_integrals import line_integrals
from xaihub_first_principles.measures import MeasureFamily, MeasureResult, exact_result

LINES_PER_PASS = 8
MAX_PIECES = 5000  # on one line of an image; one forward pass each


def exact_lines(
    family: MeasureFamily, x: Tensor, f: Callable[[Tensor], Tensor], along: Callable[[Tensor, Tensor], Tensor]
) -> MeasureResult:
    """Return the exact integrals at the (d,) input `x`.

    `f` maps (n, d) to (n,), and `along` integrates it over segments from (L, d) starts to ends: (L,).

    Raises:
        ExplainerRefused: The family's measure is not on lines.
    """
    eye = torch.eye(len(x), dtype=torch.float64)
    if isinstance(family, AxisLebesgue):
        values = 2 * along(0 * eye, eye)
        if family.centre:
            with torch.no_grad():
                values = values - 2 * f(0 * eye[:1])
        return exact_result(values, mass=2.0 - 2 * family.centre, variation=2.0 + 2 * family.centre)
    if isinstance(family, FiniteDifferenceIG):
        b, shift = start_of(family.baseline, x), family.h * eye
        slope = (x - b) / (2 * family.h)
        values = slope * (along(b + shift, x + shift) - along(b - shift, x - shift))
        return exact_result(values, mass=0.0, variation=2 * slope.abs())
    raise ExplainerRefused(f"no exact route for {family.name}: its measure has no finite support and is not on lines")


def exact_lines_on_image(
    family: MeasureFamily,
    model: Model,
    image: Tensor,
    features: Features,
    removals: list[Removal],
    target: ResolvedTarget,
) -> MeasureResult:
    """Return the exact integrals over the regions of an image, by a copy of the network in double precision.

    Raises:
        ExplainerRefused: Another family, a network that is not piecewise affine, or too many pieces.
    """
    removal = removals[0]
    if not isinstance(removal, Fill):
        raise ExplainerRefused("exact lines need a single replacement image")
    module = copy.deepcopy(model.module).to("cpu").double()  # with the hooks that count passes
    baseline, original = removal.baseline.double().cpu(), image.double().cpu()

    score = replace(target, seen=None).score  # noting scores would be a call that is not piecewise affine

    def f(images: Tensor) -> Tensor:
        return score(module(images.clone()))  # a network may write to its input

    def faded(amounts: Tensor) -> Tensor:
        return baseline + features.masks(amounts) * (original - baseline)

    def along(start: Tensor, end: Tensor) -> Tensor:
        parts = zip(start.split(LINES_PER_PASS), end.split(LINES_PER_PASS), strict=True)
        return torch.cat([line_integrals(f, faded(a), faded(b), max_pieces=MAX_PIECES).values for a, b in parts])

    x = torch.ones(features.count, dtype=torch.float64)
    return exact_lines(family, x, lambda amounts: f(faded(amounts)), along)
