"""Causal responsibility of pixels from random recursive partitions.

The search is that of ReX (Chockler, Kelly, Kroening; "Explanations for Occluded Images", arXiv 2103.03622); what is
chosen here where its descriptions differ or are silent stands in this folder's README.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xaihub_convad.partition import SUBSETS, Box, Chance, Distribution, Mask, mutants, painted, split
from xaihub_convad.question import Verdicts
from xaihub_convad.workqueue import Task

__all__ = ["Combine", "Credit", "Iteration", "Order", "Responsibility", "Search", "credits", "search"]

Credit = Literal["share", "definition"]
Order = Literal["area", "confidence", "random"]
Combine = Literal["mean", "product"]
Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Search:
    """How one iteration searches.

    Attributes:
        depth: A box that this many splits led to is not split again.
        smallest: Nor is a box of fewer pixels.
        refinements: Most boxes that one iteration splits.
        keep: Passing mutants that are followed at a time.
        order: Which passing mutants these are.
        carry: Boxes that were shown beside a refined one stay shown, and are refined in their turn.
        credit: What a passing mutant gives to the parts that it shows.
        weighted: Credit is multiplied by the mutant's confidence.
        distribution: Where boxes are cut.
        confidence: What a mutant's confidence must reach to pass; of a rule, as a share of the whole image's.
    """

    depth: int = 10
    smallest: int = 10
    refinements: int = 10
    keep: int = 1
    order: Order = "area"
    carry: bool = True
    credit: Credit = "share"
    weighted: bool = False
    distribution: Distribution = "uniform"
    confidence: float = 0.0

    def within(self, confidence: float, refinements: int) -> Search:
        """Return these rules for an image of this confidence, with so many refinements."""
        return replace(self, confidence=self.confidence * confidence, refinements=refinements)


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """What one iteration found: its (H, W) map, how often it split a box, and the boxes that it ended with."""

    values: Values
    refinements: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class _Node:
    """A passing mutant: boxes that may still be split, and boxes that stay as they are."""

    open: tuple[Box, ...]
    closed: tuple[Box, ...] = ()
    confidence: float = 0.0

    @property
    def boxes(self) -> tuple[Box, ...]:
        return self.open + self.closed

    @property
    def area(self) -> int:
        return sum(box.area for box in self.boxes)


def search(
    size: tuple[int, int],
    how: Search,
    rng: Chance,
    *,
    allowed: Mask | None = None,
    trivial: bool = False,
) -> Task[Iteration]:
    """Search once: split the largest box of a passing mutant, ask about its 14 mutants, follow those that pass.

    Args:
        size: (H, W).
        how: The rules.
        rng: This iteration's own numbers, so that it does not depend on the others.
        allowed: (H, W), pixels outside are always hidden.
        trivial: The target is kept with everything hidden.
    """
    values = np.zeros(size)
    nodes = [_Node((Box(0, 0, *size),))]
    refined = 0
    while True:
        chosen = [(node, box) for node in nodes if (box := _largest(node, how)) is not None]
        chosen = chosen[: how.refinements - refined]
        if not chosen:
            return Iteration(values=values, refinements=refined, boxes=nodes[0].boxes)
        refined += len(chosen)
        parts = [split(box, rng, how.distribution) for _, box in chosen]
        masks = [
            mutants(painted(size, (other for other in node.boxes if other is not box)), pieces)
            for (node, box), pieces in zip(chosen, parts, strict=True)
        ]
        asked = np.concatenate(masks)
        if allowed is not None:
            asked &= allowed
        verdicts = yield asked
        children = [node for node in nodes if all(node is not other for other, _ in chosen)]
        for place, ((node, box), pieces) in enumerate(zip(chosen, parts, strict=True)):
            heard = verdicts[place * len(SUBSETS) : (place + 1) * len(SUBSETS)]
            passed = heard.pass_at(how.confidence)
            nothing = trivial and len(node.boxes) == 1
            given = credits(passed, heard.confidence if how.weighted else None, how.credit, nothing=nothing)
            for piece, credit in zip(pieces, given, strict=True):
                values[piece.pixels] += credit
            children += _children(node, box, pieces, passed, heard, carry=how.carry)
        nodes = _best(children, how, rng)


def credits(passed: NDArray[np.bool_], confidence: Values | None, rule: Credit, *, nothing: bool = False) -> Values:
    """Return what each of the four parts earns from the 14 mutants: (4,).

    `share`: every passing mutant gives 1 over its number of parts to each of them. `definition`: 1 / (1 + k) for the
    smallest number k of other parts that must be hidden until hiding this part, too, changes the answer. All four
    parts pass, none at all passes only if `nothing` says so.
    """
    if rule == "share":
        weight = passed / SUBSETS.sum(1)
        if confidence is not None:
            weight = weight * confidence
        shares: Values = weight @ SUBSETS
        return shares
    # By the bits of the subset: nothing, the 14 mutants, everything.
    outcome = [nothing, *map(bool, passed), True]
    earned = np.zeros(4)
    for code in range(1, 16):
        for part in range(4):
            if code >> part & 1 and outcome[code] and not outcome[code & ~(1 << part)]:
                weight_of = 1.0 if confidence is None or code == 15 else float(confidence[code - 1])
                earned[part] = max(earned[part], weight_of / (1 + 4 - code.bit_count()))
    return earned


def _largest(node: _Node, how: Search) -> Box | None:
    """Return the largest box that may be split; of equal ones the first."""
    able = [
        box
        for box in node.open
        if box.depth < how.depth
        and box.area >= max(how.smallest, 2)
        and min(box.bottom - box.top, box.right - box.left) > 1
    ]
    return max(able, key=lambda box: box.area, default=None)


def _children(
    node: _Node, box: Box, pieces: tuple[Box, ...], passed: NDArray[np.bool_], heard: Verdicts, *, carry: bool
) -> list[_Node]:
    """Return the mutants that passed, or the node with the box left whole if none did."""
    others = tuple(other for other in node.open if other is not box)
    if not passed.any():
        return [_Node(others, (*node.closed, box), node.confidence)]
    found = []
    for code in np.flatnonzero(passed):
        shown = tuple(piece for piece, is_shown in zip(pieces, SUBSETS[code], strict=True) if is_shown)
        kept = (others + shown, node.closed) if carry else (shown, ())
        found.append(_Node(*kept, float(heard.confidence[code])))
    return found


def _best(nodes: list[_Node], how: Search, rng: Chance) -> list[_Node]:
    """Keep the nodes that are followed; equal ones in the order in which they were found."""
    if how.order == "random":
        return [nodes[place] for place in rng.permutation(len(nodes))[: how.keep]]
    if how.order == "confidence":
        return sorted(nodes, key=lambda node: -node.confidence)[: how.keep]
    return sorted(nodes, key=lambda node: node.area)[: how.keep]


class Responsibility:
    """The maps of all iterations, put together one after the other.

    `mean` adds them; `product` multiplies them, each raised by 1, and takes the root of their number, which ranks as
    the product does and cannot overflow.
    """

    def __init__(self, size: tuple[int, int], combine: Combine) -> None:
        self.combine = combine
        self.count = 0
        self._mean = np.zeros(size)
        self._squares = np.zeros(size)
        self._spread = 0.0  # sum over searches of their squared distance from their own mean

    def add(self, values: Values) -> None:
        """Take in one iteration's map (Welford's running mean and variance)."""
        term = np.log1p(values) if self.combine == "product" else values
        self.count += 1
        change = term - self._mean
        self._mean += change / self.count
        self._squares += change * (term - self._mean)
        self._spread += float(np.square(term - term.mean()).sum())

    @property
    def values(self) -> Values:
        """The (H, W) map; 0 where no passing mutant ever showed a pixel without showing everything."""
        return np.expm1(self._mean) if self.combine == "product" else self._mean

    @property
    def standard_error(self) -> Values:
        """(H, W) standard error of the map over iterations; 0 for a single one."""
        if self.count < 2:
            return np.zeros_like(self._mean)
        error: Values = np.sqrt(self._squares / (self.count - 1) / self.count)
        # Delta method: the error of exp(m) - 1 is exp(m) times that of m.
        return error * np.exp(self._mean) if self.combine == "product" else error

    @property
    def agreement(self) -> float:
        """Expected correlation of this map with one of another seed; 0 for a single search or a constant map.

        Searches are measurements of one map, so this is their reliability, n / (n - 1) (1 - sum_i |v_i|^2 / |sum_i
        v_i|^2) with the mean over pixels taken from each v_i (Cronbach 1951). Searches of one seed complement each
        other, so two seeds rather agree better.
        """
        total = self.count**2 * float(np.square(self._mean - self._mean.mean()).sum())
        if self.count < 2 or total == 0:
            return 0.0
        return max(0.0, self.count / (self.count - 1) * (1 - self._spread / total))
