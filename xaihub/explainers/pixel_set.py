"""A set of pixels that an explainer returns, such as the pixels that suffice for the class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

KEEPS_TARGET = frozenset({"sufficient", "contrastive", "complete"})


@dataclass(frozen=True, kw_only=True)
class PixelSet:
    """A set of pixels with a claim about it.

    Attributes:
        mask: (H, W) bool on the CPU, at the size of the model's input; True for the pixels of the set.
        role: The claim, in a word: "sufficient" (the set alone keeps the target), "necessary" (the target is lost
            without it), "contrastive" (both), "complete" (sufficient, with the whole image's score), or another word.
        holds: Whether the model confirmed the claim; None if it was not checked.
        score: The target's probability (of a contrast, the difference of two) with this set alone, or None.
        whole: The same for the whole image, or None.
        runner_up: The highest probability of another class with this set alone, or None.
        baseline: What replaced the other pixels for `score` and `holds`, by name, or None.
        details: Further facts for the record, JSON types only.
    """

    mask: Tensor
    role: str = "sufficient"
    holds: bool | None = None
    score: float | None = None
    whole: float | None = None
    runner_up: float | None = None
    baseline: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line: the role, the claim and the shape of the mask."""
        return f"<PixelSet {self.role}: {self.claim}, mask {tuple(self.mask.shape)}>"

    @property
    def area(self) -> float:
        """Fraction of the input's pixels, in [0, 1]."""
        return float(self.mask.double().mean())

    @property
    def keeps_target(self) -> bool:
        """Whether the role claims that the set alone keeps the target."""
        return self.role in KEEPS_TARGET

    @property
    def claim(self) -> str:
        """The set in words: "area 34 %, keeps 32 % of 94 %, runner-up 3 %"."""
        parts = [f"area {percent(self.area)}"]
        if self.score is not None:
            whole = "" if self.whole is None else f" of {percent(self.whole)}"
            parts.append(f"keeps {percent(self.score)}{whole}")
        if self.runner_up is not None:
            parts.append(f"runner-up {percent(self.runner_up)}")
        if self.holds is False:
            parts.append(f"not {self.role}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the mask."""
        return {
            "role": self.role,
            "area": self.area,
            "holds": self.holds,
            "score": self.score,
            "whole": self.whole,
            "runner_up": self.runner_up,
            "baseline": self.baseline,
            "details": dict(self.details),
        }


def percent(fraction: float) -> str:
    """Format a fraction to whole percent; below 1 %, to one digit."""
    value = 100 * fraction
    return f"{value:.0f} %" if abs(value) >= 1 or value == 0 else f"{value:.1g} %"
