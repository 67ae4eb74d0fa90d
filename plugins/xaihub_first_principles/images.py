"""Exact line measures on images: a copy of the network in double precision, and one segment a region."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from xaihub import ExplainerRefused, Model, ResolvedTarget
from xaihub.masking import Features, Fill, Removal
from xaihub_first_principles.families import AxisLebesgue, FiniteDifferenceIG
from xaihub_first_principles.lines import line_integrals
from xaihub_first_principles.measures import Measured, MeasureFamily

__all__ = ["exact_lines"]

LINES_A_PASS = 8
MAX_PIECES = 5000  # on one line; a pass each


def exact_lines(
    family: MeasureFamily,
    model: Model,
    image: Tensor,
    features: Features,
    removals: list[Removal],
    target: ResolvedTarget,
) -> Measured:
    """Return the exact integrals of `axis_lebesgue` or `fd_ig` over the regions of an image.

    Raises:
        ExplainerRefused: Another family, a network that is not piecewise affine, or too many pieces.
    """
    removal = removals[0]
    if not isinstance(removal, Fill):
        raise ExplainerRefused("exact lines need a replacement that is one image")
    module = copy.deepcopy(model.module).to("cpu").double()  # its counting hooks come along
    d = features.count
    eye = torch.eye(d, dtype=torch.float64)
    hidden, shown = removal.baseline.double().cpu(), image.double().cpu()

    def f(images: Tensor) -> Tensor:
        return target.score(module(images.clone()))  # a network may write to its input

    def masked(amounts: Tensor) -> Tensor:
        return hidden + features.masks(amounts) * (shown - hidden)

    def along(start: Tensor, end: Tensor) -> Tensor:
        parts = zip(start.split(LINES_A_PASS), end.split(LINES_A_PASS), strict=True)
        return torch.cat([line_integrals(f, masked(a), masked(b), max_pieces=MAX_PIECES).values for a, b in parts])

    if isinstance(family, AxisLebesgue):
        nothing = _plain(f, masked(torch.zeros(1, d, dtype=torch.float64))) if family.centre else 0.0
        values, mass, variation = 2 * (along(0 * eye, eye) - nothing), 0.0 if family.centre else 2.0, 2.0
        variation += 2.0 * family.centre
    elif isinstance(family, FiniteDifferenceIG):
        h = family.h
        values = (along(h * eye, 1 + h * eye) - along(-h * eye, 1 - h * eye)) / (2 * h)
        mass, variation = 0.0, 1 / h
    else:
        raise ExplainerRefused(f"no exact route for {family.name} on a deep network: its measure lies on no lines")
    return Measured(
        values=values,
        stderr=torch.zeros(d, dtype=torch.float64),
        mass=torch.full((d,), mass, dtype=torch.float64),
        variation=torch.full((d,), variation, dtype=torch.float64),
        points=0,
        exact=True,
    )


def _plain(f: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    with torch.no_grad():
        return f(image)
