"""What a record says a method costs, as numbers: the forward passes in a sentence such as "2 x samples + 1 forwards"."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["BUDGETS", "announced"]

# Parameters that, by their names, say how often the network may be asked.
BUDGETS = ("budget", "evaluations", "masks", "samples", "steps", "forwards", "queries")
_CLAUSE = re.compile(
    r"^(?:at most |up to |about )?(?P<count>[\w\s+*/()^.-]+?) (?:forward and backward|forwards? and|forward|backward)?"
    r"\s*(?P<unit>forwards|forward pass(?:es)?|passes|pass)\b"
)


def announced(cost: str, parameters: Mapping[str, Any]) -> float | None:
    """Return the forward passes that a record's `cost` announces for these parameters, or None if it is mere prose.

    Understood are clauses, joined by commas or "and", of the form "EXPRESSION forward passes", "EXPRESSION forward and
    backward passes" and "EXPRESSION forwards", where an expression is made of numbers, parameters and + - * / ^.
    """
    raise NotImplementedError
